"""Scores of the end tokens, and the Bradley-Terry loss over pairs of them.

    s[i] = end_hidden[i] . weight
    d[n] = s[chosen[n]] - s[rejected[n]] - margin[n]
    l[n] = pair_weight[n] * (target[n] * softplus(-d[n]) + (1 - target[n]) * softplus(d[n]))
           + center * (s[chosen[n]] + s[rejected[n]])^2
    loss = sum(l) / normalizer

    dl[n]/ds[chosen[n]]   =  v + c    where v = pair_weight * ((1 - target) * sigmoid(d) - target * sigmoid(-d))
    dl[n]/ds[rejected[n]] = -v + c          c = 2 * center * (s[chosen] + s[rejected])
    grad_scores = those, summed per sequence, * grad_loss / normalizer;  grad_end_hidden = grad_scores x weight;
    grad_weight = grad_scores . end_hidden

Shapes: end_hidden [S, H], weight [H] (the row of the head whose label is the reward), what belongs to a pair [N];
S sequences, H hidden, N preferences. Arithmetic is float32 from float16, bfloat16 and float32, and float64 from float64.
Every sum runs in a fixed order, so that a run repeats bit for bit. The Triton kernels: _score_bt_loss_triton.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rmkit_kernels import _backend
from rmkit_kernels._backend import Kernels, check_float, check_index, check_range
from rmkit_kernels._score_bt_loss_triton import triton_backward, triton_forward


def _widest(end_hidden: Tensor, weight: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (end_hidden.dtype, weight.dtype) else torch.float32


def bt_losses(s_c: Tensor, s_r: Tensor, margin: Tensor, target: Tensor, pair_weight: Tensor, center: float) -> Tensor:
    """l[n] of N pairs with scores s_c and s_r, by the formula above, in the dtype of the scores; differentiable."""
    d = s_c - s_r - margin.to(s_c.dtype)
    target = target.to(s_c.dtype)
    # softplus(x) = -logsigmoid(-x). F.softplus is linear beyond 20, an error that float64 sees.
    nll = -(target * F.logsigmoid(d) + (1 - target) * F.logsigmoid(-d))
    return pair_weight.to(s_c.dtype) * nll + center * (s_c + s_r).square()


def score_bt_loss_reference(
    end_hidden, weight, chosen, rejected, margin, target, pair_weight, center, normalizer
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification, in differentiable PyTorch: arguments and results of `score_bt_loss`."""
    dtype = _widest(end_hidden, weight)
    # Not a matmul: autocast would run it in bfloat16, and TF32 may be on.
    scores = (end_hidden.to(dtype) * weight.to(dtype)).sum(-1)
    s_c, s_r = scores.index_select(0, chosen), scores.index_select(0, rejected)
    total = bt_losses(s_c, s_r, margin, target, pair_weight, center).sum()
    stats = torch.stack([s_c.sum(), s_r.sum(), (s_c - s_r).sum(), (s_c > s_r).to(dtype).sum(), total])
    return total / normalizer, scores.detach(), stats.detach()


def score_bt_loss_backward_reference(
    grad_loss, scores, end_hidden, weight, chosen, rejected, margin, target, pair_weight, center, normalizer
) -> tuple[Tensor, Tensor]:
    """(grad_end_hidden, grad_weight) by the formulas above. On a CPU index_add runs in order."""
    dtype = scores.dtype
    s_c, s_r = scores.index_select(0, chosen), scores.index_select(0, rejected)
    d = s_c - s_r - margin.to(dtype)
    target = target.to(dtype)
    # Both sigmoids, for sigmoid(d) - target would cancel where the answer is clear.
    v = pair_weight.to(dtype) * ((1 - target) * torch.sigmoid(d) - target * torch.sigmoid(-d))
    c = 2.0 * center * (s_c + s_r)
    g = grad_loss.to(dtype) / normalizer
    grad_scores = torch.zeros_like(scores).index_add(0, chosen, g * (c + v)).index_add(0, rejected, g * (c - v))
    grad_end_hidden = grad_scores[:, None] * weight.to(dtype)
    grad_weight = (grad_scores[:, None] * end_hidden.to(dtype)).sum(0)
    return grad_end_hidden.to(end_hidden.dtype), grad_weight.to(weight.dtype)


_INPUTS = (
    "Tensor end_hidden, Tensor weight, Tensor chosen, Tensor rejected, Tensor margin, Tensor target, "
    "Tensor pair_weight, float center, float normalizer"
)
_op = torch.library.custom_op(
    "rmkit::score_bt_loss",
    triton_forward,
    mutates_args=(),
    device_types="cuda",
    schema=f"({_INPUTS}) -> (Tensor loss, Tensor scores, Tensor stats)",
)
_backward_op = torch.library.custom_op(
    "rmkit::score_bt_loss_backward",
    triton_backward,
    mutates_args=(),
    device_types="cuda",
    schema=f"(Tensor grad_loss, Tensor scores, {_INPUTS}) -> (Tensor grad_end_hidden, Tensor grad_weight)",
)


@_op.register_kernel("cpu")
def _op_cpu(end_hidden, weight, chosen, rejected, *rest):
    check_range("chosen", chosen, end_hidden.shape[0])
    check_range("rejected", rejected, end_hidden.shape[0])
    run = triton_forward if _backend.cpu_runs_triton(end_hidden, weight) else score_bt_loss_reference
    return run(end_hidden, weight, chosen, rejected, *rest)


@_backward_op.register_kernel("cpu")
def _backward_cpu(grad_loss, scores, end_hidden, weight, *rest):
    run = triton_backward if _backend.cpu_runs_triton(end_hidden, weight) else score_bt_loss_backward_reference
    return run(grad_loss, scores, end_hidden, weight, *rest)


@_op.register_fake
def _op_fake(end_hidden, weight, *rest):
    dtype = _widest(end_hidden, weight)
    return tuple(end_hidden.new_empty(shape, dtype=dtype) for shape in ((), end_hidden.shape[:1], (5,)))


@_backward_op.register_fake
def _backward_fake(grad_loss, scores, end_hidden, weight, *rest):
    return end_hidden.new_empty(end_hidden.shape), weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.center, ctx.normalizer = inputs
    _loss, scores, stats = output
    ctx.mark_non_differentiable(scores, stats)
    ctx.save_for_backward(scores, *tensors)


def _backward(ctx, grad_loss, _grad_scores, _grad_stats):
    grads = _backward_op(grad_loss, *ctx.saved_tensors, ctx.center, ctx.normalizer)
    return *grads, None, None, None, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


def score_bt_loss(
    end_hidden: Tensor,
    weight: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor,
    target: Tensor,
    pair_weight: Tensor,
    center: float,
    normalizer: float,
    *,
    kernels: Kernels = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Score end tokens and sum the Bradley-Terry loss over pairs of them: (loss, scores, stats).

    Args:
        end_hidden: [S, H] hidden states of the end tokens; float16, bfloat16, float32 or float64, any strides.
        weight: [H] row of the head that gives the reward; any of the dtypes, any stride.
        chosen, rejected: [N] rows of end_hidden, int32 or int64; a sequence may serve in many pairs. N = 0 is allowed
            (labelling: only scores are wanted), and so is S = 0.
        margin, target, pair_weight: [N] floats, constants (no gradient): see the formula at the top of this file.
        center: weight of (s_chosen + s_rejected)^2; pair_weight does not multiply it.
        normalizer: what the sum is divided by, the preferences of the global batch.
        kernels: "auto", or "reference" for plain PyTorch on any device.

    Returns:
        loss [], scores [S], stats [5] = sums over the pairs of chosen score, rejected score, s_chosen - s_rejected
        (without the margin), whether s_chosen > s_rejected (a tie is not), and l (the loss before the division).
        All float32; float64 where end_hidden or weight is. Gradients flow through loss alone, to end_hidden and
        weight; scores and stats are marked non-differentiable. NaN in a pair gives a NaN loss, never a finite one.

    Raises:
        ValueError: on shapes, dtypes, devices, center or normalizer; on an index out of range, for CPU tensors. On a
            GPU that check would cost a synchronisation: there the pair's scores read as NaN, and so does the loss
            (the reference stops on a device-side assertion).
    """
    center, normalizer = float(center), float(normalizer)
    arguments = (end_hidden, weight, chosen, rejected, margin, target, pair_weight)
    _check(*arguments, center, normalizer)
    if _backend.takes_op(kernels, end_hidden, weight):
        return _op(*arguments, center, normalizer)
    if not torch.compiler.is_compiling():
        check_range("chosen", chosen, end_hidden.shape[0])
        check_range("rejected", rejected, end_hidden.shape[0])
    return score_bt_loss_reference(*arguments, center, normalizer)


def _check(end_hidden, weight, chosen, rejected, margin, target, pair_weight, center, normalizer) -> None:
    check_float("end_hidden", end_hidden, "[S, H]")
    check_float("weight", weight, "[H]")
    H, device = end_hidden.shape[1], end_hidden.device
    if H == 0 or weight.shape[0] != H or weight.device != device:
        got = f"of shape {list(weight.shape)} on {weight.device}"
        raise ValueError(f"weight is {got}: give [{H}] on {device}, H at least 1")
    check_index("chosen", chosen, end_hidden)
    check_index("rejected", rejected, end_hidden)
    for name, tensor in (("margin", margin), ("target", target), ("pair_weight", pair_weight)):
        check_float(name, tensor, "[N]")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}: put it on {device}, where end_hidden is")
    lengths = [tensor.shape[0] for tensor in (chosen, rejected, margin, target, pair_weight)]
    if lengths != lengths[:1] * 5:
        raise ValueError(f"chosen, rejected, margin, target, pair_weight have lengths {lengths}: give one per pair")
    if not 0.0 <= center < float("inf"):
        raise ValueError(f"center is {center}: give a finite number of at least 0")
    if not 0.0 < normalizer < float("inf"):
        raise ValueError(f"normalizer is {normalizer}: give the preferences of the global batch, more than 0")
