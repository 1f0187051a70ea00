"""Triton kernels of score_bt_loss; formulas, shapes and references are in score_bt_loss.py.

Two launches forward (a row each; all pairs in one program), two backward (scores; hidden and weight by columns).
"""

import torch

from rmkit_kernels import _backend
from rmkit_kernels._backend import tl, triton

BLOCK_H, BLOCK_N = 1024, 1024  # forward: columns of one row, pairs of the one program
BACKWARD_S, BACKWARD_N = 32, 128  # a tile that compares sequences with pairs
WEIGHT_S, WEIGHT_H = 64, 32  # narrow column blocks: H = 4096 still fills 128 multiprocessors


@triton.jit
def _score_kernel(end_hidden_ptr, weight_ptr, scores_ptr, H, stride_es, stride_eh, stride_wh, BLOCK_H: tl.constexpr):
    s = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK_H], dtype=tl.float32)
    for h0 in range(0, H, BLOCK_H):
        h = h0 + tl.arange(0, BLOCK_H).to(tl.int64)
        # Upcast at once: float32 is the contract, and the interpreter computes garbage in bfloat16.
        x = tl.load(end_hidden_ptr + s * stride_es + h * stride_eh, mask=h < H, other=0.0).to(tl.float32)
        w = tl.load(weight_ptr + h * stride_wh, mask=h < H, other=0.0).to(tl.float32)
        total += x * w
    tl.store(scores_ptr + s, tl.sum(total, axis=0))


@triton.jit
def _pair(scores_ptr, chosen_ptr, rejected_ptr, margin_ptr, target_ptr, pair_weight_ptr, n, N, S):
    """Loads of the pairs n, 0 beyond N. An index outside [0, S) reads NaN, never memory that is not ours."""
    i = tl.load(chosen_ptr + n, mask=n < N, other=0).to(tl.int64)
    j = tl.load(rejected_ptr + n, mask=n < N, other=0).to(tl.int64)
    s_c = tl.load(scores_ptr + i, mask=(n < N) & (i >= 0) & (i < S), other=float("nan"))
    s_r = tl.load(scores_ptr + j, mask=(n < N) & (j >= 0) & (j < S), other=float("nan"))
    s_c, s_r = tl.where(n < N, s_c, 0.0), tl.where(n < N, s_r, 0.0)
    margin = tl.load(margin_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    pair_weight = tl.load(pair_weight_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    return i, j, s_c, s_r, s_c - s_r - margin, target, pair_weight


@triton.jit
def _loss_kernel(
    scores_ptr, chosen_ptr, rejected_ptr, margin_ptr, target_ptr, pair_weight_ptr,
    loss_ptr, stats_ptr, center, normalizer, S, N, BLOCK_N: tl.constexpr
):  # fmt: skip
    chosen = tl.zeros([BLOCK_N], dtype=tl.float32)
    rejected = tl.zeros([BLOCK_N], dtype=tl.float32)
    between = tl.zeros([BLOCK_N], dtype=tl.float32)
    correct = tl.zeros([BLOCK_N], dtype=tl.float32)
    total = tl.zeros([BLOCK_N], dtype=tl.float32)
    for n0 in range(0, N, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        _i, _j, s_c, s_r, d, target, pair_weight = _pair(
            scores_ptr, chosen_ptr, rejected_ptr, margin_ptr, target_ptr, pair_weight_ptr, n, N, S
        )
        # softplus(x) = max(x, 0) + log1p(exp(-|x|)), which cannot overflow. tl.maximum drops a NaN; the log keeps it.
        # log1p without libdevice (which the interpreter lacks): exact while 1 + e rounds to 1, Kahan's ratio beyond.
        e = tl.exp(-tl.abs(d))
        u = 1.0 + e
        tail = tl.where(u == 1.0, e, tl.log(u) * e / tl.where(u == 1.0, 1.0, u - 1.0))
        nll = target * (tl.maximum(-d, 0.0) + tail) + (1.0 - target) * (tl.maximum(d, 0.0) + tail)
        chosen += s_c
        rejected += s_r
        between += s_c - s_r
        correct += tl.where(s_c > s_r, 1.0, 0.0)
        total += pair_weight * nll + center * (s_c + s_r) * (s_c + s_r)
    loss = tl.sum(total, axis=0)
    tl.store(loss_ptr, loss / normalizer)
    tl.store(stats_ptr + 0, tl.sum(chosen, axis=0))
    tl.store(stats_ptr + 1, tl.sum(rejected, axis=0))
    tl.store(stats_ptr + 2, tl.sum(between, axis=0))
    tl.store(stats_ptr + 3, tl.sum(correct, axis=0))
    tl.store(stats_ptr + 4, loss)


@triton.jit
def _grad_scores_kernel(
    grad_loss_ptr, scores_ptr, chosen_ptr, rejected_ptr, margin_ptr, target_ptr, pair_weight_ptr,
    grad_scores_ptr, center, normalizer, S, N, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    # Every program reads all pairs and keeps those of its own sequences: S * N comparisons (half a million for 512
    # pairs) instead of atomics, whose order would change from run to run.
    s = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    g = tl.load(grad_loss_ptr).to(tl.float32) / normalizer
    total = tl.zeros([BLOCK_S], dtype=tl.float32)
    for n0 in range(0, N, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        i, j, s_c, s_r, d, target, pair_weight = _pair(
            scores_ptr, chosen_ptr, rejected_ptr, margin_ptr, target_ptr, pair_weight_ptr, n, N, S
        )
        # sigmoid(|d|) and sigmoid(-|d|) from one exp that cannot overflow.
        e = tl.exp(-tl.abs(d))
        up = tl.where(d >= 0.0, 1.0, e) / (1.0 + e)
        down = tl.where(d >= 0.0, e, 1.0) / (1.0 + e)
        v = pair_weight * ((1.0 - target) * up - target * down)
        c = 2.0 * center * (s_c + s_r)
        # Lanes beyond the pairs loaded the index 0, with zeros to add.
        of_chosen, of_rejected = s[:, None] == i[None, :], s[:, None] == j[None, :]
        part = tl.where(of_chosen, (c + v)[None, :], 0.0) + tl.where(of_rejected, (c - v)[None, :], 0.0)
        total += tl.sum(part, axis=1)
    tl.store(grad_scores_ptr + s, g * total, mask=s < S)


@triton.jit
def _grad_kernel(
    grad_scores_ptr, end_hidden_ptr, weight_ptr, grad_end_hidden_ptr, grad_weight_ptr, S, H,
    stride_es, stride_eh, stride_wh, BLOCK_S: tl.constexpr, BLOCK_H: tl.constexpr
):  # fmt: skip
    # A program owns its columns for all rows, so the weight's sum needs neither atomics nor a second launch.
    h = tl.program_id(0).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    w = tl.load(weight_ptr + h * stride_wh, mask=h < H, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_H], dtype=tl.float32)
    for s0 in range(0, S, BLOCK_S):
        s = s0 + tl.arange(0, BLOCK_S).to(tl.int64)
        g = tl.load(grad_scores_ptr + s, mask=s < S, other=0.0)
        inside = (s < S)[:, None] & (h < H)[None, :]
        x_ptrs = end_hidden_ptr + s[:, None] * stride_es + h[None, :] * stride_eh
        x = tl.load(x_ptrs, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(g[:, None] * x, axis=0)
        grad_ptrs = grad_end_hidden_ptr + s[:, None] * H + h[None, :]
        tl.store(grad_ptrs, (g[:, None] * w[None, :]).to(grad_end_hidden_ptr.dtype.element_ty), mask=inside)
    tl.store(grad_weight_ptr + h, total.to(grad_weight_ptr.dtype.element_ty), mask=h < H)


def triton_forward(end_hidden, weight, *rest):
    """(loss, scores, stats): arguments and results of `score_bt_loss`."""
    *pairs, center, normalizer = rest
    (S, H), N = end_hidden.shape, pairs[0].shape[0]
    scores = torch.empty(S, dtype=torch.float32, device=end_hidden.device)
    loss = torch.empty((), dtype=torch.float32, device=end_hidden.device)
    stats = torch.empty(5, dtype=torch.float32, device=end_hidden.device)
    pairs = [tensor.contiguous() for tensor in pairs]
    with _backend.on_device(end_hidden):
        if S > 0:
            _score_kernel[(S,)](end_hidden, weight, scores, H, *end_hidden.stride(), weight.stride(0), BLOCK_H=BLOCK_H)
        _loss_kernel[(1,)](scores, *pairs, loss, stats, center, normalizer, S, N, BLOCK_N=BLOCK_N)
    return loss, scores, stats


def triton_backward(grad_loss, scores, end_hidden, weight, *rest):
    """(grad_end_hidden, grad_weight): arguments and results of `score_bt_loss_backward_reference`."""
    *pairs, center, normalizer = rest
    (S, H), N = end_hidden.shape, pairs[0].shape[0]
    grad_scores = torch.empty_like(scores)
    grad_end_hidden = torch.empty((S, H), dtype=end_hidden.dtype, device=end_hidden.device)
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    pairs = [tensor.contiguous() for tensor in pairs]
    with _backend.on_device(end_hidden):
        if S > 0:
            arguments = (grad_loss, scores, *pairs, grad_scores, center, normalizer, S, N)
            _grad_scores_kernel[(triton.cdiv(S, BACKWARD_S),)](*arguments, BLOCK_S=BACKWARD_S, BLOCK_N=BACKWARD_N)
        strides = (*end_hidden.stride(), weight.stride(0))
        arguments = (grad_scores, end_hidden, weight, grad_end_hidden, grad_weight, S, H, *strides)
        _grad_kernel[(triton.cdiv(H, WEIGHT_H),)](*arguments, BLOCK_S=WEIGHT_S, BLOCK_H=WEIGHT_H)
    return grad_end_hidden, grad_weight
