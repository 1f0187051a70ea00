"""score_bt_loss: scores, loss, statistics and gradients against float64; and what holds for the whole package."""

import math
import subprocess
import sys
from itertools import product

import pytest
import torch

from rmkit_kernels import score_bt_loss
from rmkit_kernels._score_bt_loss_triton import (
    BACKWARD_N,
    BACKWARD_S,
    BLOCK_H,
    BLOCK_N,
    WEIGHT_S,
    _grad_kernel,
    _score_kernel,
    triton_backward,
    triton_forward,
)
from support.kernel_checks import DEVICES, DTYPES, assert_bounded, far_rows, triton_kernels

SIZES = [
    (1, 1, 1),
    (2, 7, 1),
    (13, 31, 7),
    (BACKWARD_S, BLOCK_H, BACKWARD_N),
    (BACKWARD_S + 1, BLOCK_H + 1, BACKWARD_N + 1),
    (WEIGHT_S + 1, 33, BLOCK_N + 1),
]
CENTER, NORMALIZER = 0.3, 7.0


def example(S, H, N, dtype, device="cpu", weight_dtype=None):
    """A random case whose scores are of order one, and the upstream gradient of its loss."""
    torch.manual_seed(S + H + N)
    end_hidden = torch.randn(S, H).to(device, dtype).requires_grad_()
    weight = (torch.randn(H) / H**0.5).to(device, weight_dtype or dtype).requires_grad_()
    pairs = [torch.randint(0, S, (N,), device=device) for _ in range(2)]
    pairs += [torch.randn(N, device=device), torch.rand(N, device=device), 3 * torch.rand(N, device=device)]
    return (end_hidden, weight, *pairs, CENTER, NORMALIZER), torch.randn((), device=device)


def given(scores, chosen, rejected, margin=0.0, target=1.0, pair_weight=1.0, center=0.0, device="cpu"):
    """A case with exactly these scores: H = 1 and a weight of one."""
    N = len(chosen)
    constants = [
        torch.full((N,), x) if isinstance(x, float) else torch.tensor(x) for x in (margin, target, pair_weight)
    ]
    pairs = [torch.tensor(chosen, dtype=torch.int64), torch.tensor(rejected, dtype=torch.int64), *constants]
    end_hidden = torch.tensor(scores, dtype=torch.float32)[:, None].to(device).requires_grad_()
    weight = torch.ones(1, device=device, requires_grad=True)
    return (end_hidden, weight, *(x.to(device) for x in pairs), center, 1.0)


def run(arguments, upstream, op=score_bt_loss, **kwargs):
    """loss, scores, stats, and the gradients of end_hidden and weight."""
    loss, scores, stats = op(*arguments, **kwargs)
    assert not scores.requires_grad
    assert not stats.requires_grad
    return [loss.detach(), scores, stats, *torch.autograd.grad(loss, arguments[:2], upstream)]


def in_double(arguments, upstream):
    """The truth: float64 from the same inputs, by the reference that test_the_formula holds against plain Python."""
    tensors = [x.detach().double() if x.is_floating_point() else x for x in arguments[:-2]]
    tensors[:2] = [x.requires_grad_() for x in tensors[:2]]
    return run((*tensors, *arguments[-2:]), upstream.double(), kernels="reference")


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@DEVICES
@DTYPES
@pytest.mark.parametrize(("S", "H", "N"), SIZES)
@pytest.mark.parametrize("weight_dtype", [torch.float32, None], ids=["fp32-weight", "same-weight"])
def test_errors_are_bounded_by_torchs_own(S, H, N, dtype, weight_dtype, device):
    arguments, upstream = example(S, H, N, dtype, device, weight_dtype)
    truth, by_torch = in_double(arguments, upstream), run(arguments, upstream, kernels="reference")
    with triton_kernels(device):
        ours = run(arguments, upstream)
        assert_same(run(arguments, upstream), ours)
    x, w = arguments[0].detach().double().abs(), arguments[1].detach().double().abs()
    dots = (x @ w).max().item()  # of |terms|, what the rounding of a dot product is relative to
    slope = abs(upstream.item()) / NORMALIZER * (3 + 4 * CENTER * dots)  # of a pair's loss, at most
    often = torch.bincount(torch.cat(arguments[2:4]), minlength=S).max().item()
    scales = [N * slope * dots + truth[0].abs().item(), dots, N * dots + truth[2][4].item()]
    scales += [often * slope * (1 + dots) * w.max().item(), 2 * N * slope * (1 + dots) * x.max().item()]
    stored = [torch.float32] * 3 + [dtype, weight_dtype or dtype]
    for i, factor in enumerate((2, 2, 2, 3, 3)):
        assert_bounded(ours[i], by_torch[i], truth[i], factor, scales[i], stored[i])


@DEVICES
def test_a_score_does_not_depend_on_its_batch(device):
    arguments, _ = example(9, 70, 4, torch.float32, device)
    none = [x[:0] for x in arguments[2:7]]
    with triton_kernels(device):
        batched = score_bt_loss(*arguments)[1]
        alone = [score_bt_loss(row[None], arguments[1], *none, 0.0, 1.0)[1] for row in arguments[0]]
    assert torch.equal(batched, torch.cat(alone))


def test_the_formula():
    """The reference, in float64, against the design's formula in plain Python."""
    arguments, upstream = example(6, 5, 40, torch.float64)
    loss, scores, stats = run(arguments, upstream)[:3]
    s = [sum(a * b for a, b in zip(row, arguments[1].tolist(), strict=True)) for row in arguments[0].tolist()]
    sums = [0.0] * 5
    for c, r, margin, p, v in zip(*(x.tolist() for x in arguments[2:7]), strict=True):
        d = s[c] - s[r] - margin
        pair = v * (p * math.log1p(math.exp(-d)) + (1 - p) * math.log1p(math.exp(d))) + CENTER * (s[c] + s[r]) ** 2
        sums = [a + b for a, b in zip(sums, (s[c], s[r], s[c] - s[r], s[c] > s[r], pair), strict=True)]
    assert loss.dtype == scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(s, rel=1e-13)
    assert stats.tolist() == pytest.approx(sums, rel=1e-12)
    assert loss.item() == pytest.approx(sums[4] / NORMALIZER, rel=1e-13)


def test_float64_is_exact():
    (end_hidden, weight, *rest), upstream = example(5, 3, 9, torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: score_bt_loss(x, w, *rest)[0], (end_hidden, weight))
    for ours, plain in zip(
        run((end_hidden, weight, *rest), upstream),
        run((end_hidden, weight, *rest), upstream, kernels="reference"),
        strict=True,
    ):
        assert torch.allclose(ours, plain, rtol=1e-13, atol=1e-13)


@DEVICES
@pytest.mark.parametrize("way", ["triton", "cpu", "reference"])
def test_extremes(way, device):
    """d from -1e4 to 1e4, one pair at a time, relative to float64: no overflow, and tails that do not vanish."""
    gaps = [sign * gap for gap, sign in product((1e4, 300.0, 88.0, 31.7, 17.0, 16.5, 1.0, 0.5, 1e-3), (1.0, -1.0))]
    for gap, target in product(gaps, (1.0, 0.0)):
        arguments = given([gap, 0.0], [0], [1], target=target, device=device)
        truth = in_double(arguments, torch.ones((), device=device))
        if way == "triton":
            with triton_kernels(device):
                ours = run(arguments, torch.ones((), device=device))
        else:
            ours = run(arguments, torch.ones((), device=device), kernels="auto" if way == "cpu" else "reference")
        for i in (0, 1, 2, 3):
            # exp carries an error of half a unit in |d|: at 88 that is 88 half units. Below 1e-37 float32 is subnormal.
            assert torch.allclose(ours[i].double(), truth[i], rtol=1e-5, atol=1e-37), (gap, target, i)


@DEVICES
def test_ties(device):
    """A zero head: every loss is ln 2, every pair pulls by a half, and no tie counts as correct."""
    arguments = given([0.0] * 4, [0, 0, 2], [1, 3, 3], device=device)
    with triton_kernels(device):
        loss, _, stats, grad, _ = run(arguments, torch.ones((), device=device))
    assert loss.item() == pytest.approx(3 * math.log(2), rel=1e-6)
    assert grad[:, 0].tolist() == [-1.0, 0.5, -0.5, 1.0]
    assert stats[:4].tolist() == [0.0] * 4
    assert_same(run(arguments, torch.ones(()).to(device), kernels="reference")[3:4], [grad])


@DEVICES
def test_one_sequence_in_many_pairs_and_against_itself(device):
    N = BLOCK_N + BACKWARD_N
    arguments = given([0.5, -0.25, 1.0], [0] * N, [1] * (N - 1) + [0], center=0.1, device=device)
    upstream = torch.tensor(1.3, device=device)
    truth = in_double(arguments, upstream)
    with triton_kernels(device):
        ours = run(arguments, upstream)
    for one, other in zip(ours, truth, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-5)
    assert ours[3][2].item() == 0.0


@DEVICES
def test_pair_weight_leaves_the_centering_alone(device):
    arguments = given([2.0, 1.0], [0], [1], pair_weight=0.0, center=0.5, device=device)
    with triton_kernels(device):
        loss, _, stats, grad, _ = run(arguments, torch.ones((), device=device))
    assert (loss.item(), stats[4].item(), grad[:, 0].tolist()) == (4.5, 4.5, [3.0, 3.0])


@DEVICES
@pytest.mark.parametrize("S", [3, 0])
def test_no_pairs(S, device):
    """Labelling: scores, and a loss of zero that is connected to the graph."""
    arguments, upstream = example(max(S, 1), 5, 0, torch.float32, device)
    arguments = (arguments[0][:S].detach().requires_grad_(), *arguments[1:])
    with triton_kernels(device):
        loss, scores, stats, *grads = run(arguments, upstream)
    assert loss.item() == 0.0
    assert stats.tolist() == [0.0] * 5
    assert torch.allclose(scores, arguments[0].detach() @ arguments[1].detach())
    assert_same(grads, [torch.zeros_like(x) for x in arguments[:2]])


@DEVICES
@pytest.mark.parametrize("place", ["end_hidden", "weight", "margin", "target", "pair_weight", "upstream"])
@pytest.mark.parametrize("way", ["triton", "reference"])
def test_nan_is_never_hidden(way, place, device):
    arguments, upstream = example(4, 5, 3, torch.float32, device)
    names = ("end_hidden", "weight", "chosen", "rejected", "margin", "target", "pair_weight", "upstream")
    named = dict(zip(names, (*arguments[:7], upstream), strict=True))
    arguments[2][:], arguments[3][:] = 1, 2
    with torch.no_grad():
        named[place].view(-1)[5 if place == "end_hidden" else 0] = float("nan")
    if way == "triton":
        with triton_kernels(device):
            loss, _, _, *grads = run(arguments, upstream)
    else:
        loss, _, _, *grads = run(arguments, upstream, kernels="reference")
    assert loss.isnan() or place == "upstream"
    assert all(grad.isnan().any() for grad in grads)


@pytest.mark.parametrize("bad", [-1, 3])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_rows_out_of_range(side, bad):
    (end_hidden, weight, *rest), _ = example(3, 4, 2, torch.float32)
    rest[side == "rejected"] = torch.tensor([0, bad])
    rest[side == "chosen"] = torch.tensor([1, 2])
    for kernels in ("auto", "reference"):
        with pytest.raises(ValueError, match=rf"{side} reaches from .* give rows in \[0, 3\)"):
            score_bt_loss(end_hidden, weight, *rest, kernels=kernels)
    # Where nothing checks (a GPU): a NaN loss, and a gradient of NaN for the partner alone.
    with triton_kernels("cpu"), torch.no_grad():
        loss, scores, _ = triton_forward(end_hidden, weight, *rest)
        grad, _ = triton_backward(torch.ones(()), scores, end_hidden, weight, *rest)
    assert loss.isnan()
    assert grad.isnan().any(1).tolist() == [False, False, True]


def test_wrong_arguments():
    (x, w, c, r, m, t, v, center, normalizer), _ = example(3, 4, 2, torch.float32)
    wrong = [
        ((x[0], w, c, r, m, t, v, 0, 1), r"end_hidden is torch.float32 of shape \[4\]: give .* \[S, H\]"),
        ((x, w.long(), c, r, m, t, v, 0, 1), r"weight is torch.int64"),
        ((x, w[:3], c, r, m, t, v, 0, 1), r"weight is of shape \[3\] on cpu: give \[4\]"),
        ((x, torch.ones(3, 4), c, r, m, t, v, 0, 1), r"weight is torch.float32 of shape \[3, 4\]: give .* \[H\]"),
        ((x[:, :0], w[:0], c, r, m, t, v, 0, 1), r"H at least 1"),
        ((x, w.to("meta"), c, r, m, t, v, 0, 1), r"weight is .* on meta"),
        ((x, w, c.float(), r, m, t, v, 0, 1), r"chosen is torch.float32"),
        ((x, w, c, r[None], m, t, v, 0, 1), r"rejected is torch.int64 of shape \[1, 2\]"),
        ((x, w, c, r[:1], m, t, v, 0, 1), r"have lengths \[2, 1, 2, 2, 2\]: give one per pair"),
        ((x, w, c, r, m, t.long(), v, 0, 1), r"target is torch.int64"),
        ((x, w, c, r, m, t, v.to("meta"), 0, 1), r"pair_weight is on meta"),
        ((x, w, c, r, m, t, v, -0.1, 1), r"center is -0.1"),
        ((x, w, c, r, m, t, v, float("nan"), 1), r"center is nan"),
        ((x, w, c, r, m, t, v, 0, 0), r"normalizer is 0.0"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            score_bt_loss(*arguments)
    with pytest.raises(ValueError, match="kernels is 'fast': set auto or reference"):
        score_bt_loss(x, w, c, r, m, t, v, center, normalizer, kernels="fast")


@DEVICES
def test_strided_tensors(device):
    arguments, upstream = example(8, 6, 9, torch.float32, device)
    x, w = (arguments[i].detach().T.contiguous().T.requires_grad_() for i in (0, 1))
    pairs = [torch.stack([t, t], 1)[:, 0] for t in arguments[2:7]]
    with triton_kernels(device):
        assert_same(run((x, w, *pairs, CENTER, NORMALIZER), upstream), run(arguments, upstream))


@DEVICES
def test_opcheck_and_compile(device):
    arguments, upstream = example(6, 10, 5, torch.float32, device)
    compiled = torch.compile(score_bt_loss, fullgraph=True, backend="aot_eager")
    torch.library.opcheck(torch.ops.rmkit.score_bt_loss, arguments)
    by_reference = run(arguments, upstream, kernels="reference")
    with triton_kernels(device):
        torch.library.opcheck(torch.ops.rmkit.score_bt_loss, arguments)
        assert_same(run(arguments, upstream, op=compiled), run(arguments, upstream))
        for one, other in zip(run(arguments, upstream, op=compiled, kernels="reference"), by_reference, strict=True):
            assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("way", ["triton", "cpu", "reference"])
def test_autocast_changes_nothing(way):
    arguments, upstream = example(6, 40, 5, torch.bfloat16, weight_dtype=torch.float32)
    kernels = "reference" if way == "reference" else "auto"
    with triton_kernels("cpu") if way == "triton" else torch.enable_grad():
        plain = run(arguments, upstream, kernels=kernels)
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(run(arguments, upstream, kernels=kernels), plain)


def test_offsets_beyond_int32():
    """Rows 2^30 elements apart: 2 * 2^30 wraps in int32, which the interpreter reproduces."""
    (x, x_rows, stride), (grad, grad_rows, _) = far_rows(3, 4), far_rows(3, 4)
    for row in range(3):
        x_rows[row].fill_(row + 1)
    w, g = torch.ones(4), torch.tensor([1.0, 10.0, 100.0])
    with triton_kernels("cpu"):
        scores, grad_weight = torch.empty(3), torch.empty(4)
        _score_kernel[(3,)](x, w, scores, 4, stride, 1, 1, BLOCK_H=4)
        # H is the stride of the gradient; the one program of this grid stops after its first 4 columns.
        sizes = (3, stride, stride, 1, 1)
        _grad_kernel[(1,)](g, x, w, grad, grad_weight, *sizes, BLOCK_S=4, BLOCK_H=4)
    assert scores.tolist() == [4.0, 8.0, 12.0]
    assert grad_weight.tolist() == [321.0] * 4
    assert [row[0].item() for row in grad_rows] == [1.0, 10.0, 100.0]


WITHOUT_TRITON = """
import sys
if {absent}:
    sys.modules["triton"] = None  # as an import that fails
import torch
from rmkit_kernels import gather_end_tokens, gather_kv, score_bt_loss
hidden, index = torch.randn(6, 2, 3, requires_grad=True), torch.tensor([1, 5, 5])
k, v = gather_kv(hidden, hidden, index)
ends = gather_end_tokens((k + v).flatten(1), torch.tensor([0, 2]))
one = torch.ones(1)
loss, scores, stats = score_bt_loss(ends, torch.ones(6), index[:1] * 0, index[:1], one, one, one, 0.1, 1)
loss.backward()
assert hidden.grad[[1, 5]].all() and not hidden.grad[[0, 2, 3, 4]].any()
"""


@pytest.mark.parametrize("absent", [True, False])
def test_a_cpu_needs_neither_triton_nor_its_interpreter(absent, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON.format(absent=absent)], check=True)


COMPILE_ALL = """
import importlib
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
sizes = {"D": 128, "BLOCK_T": 4, "BLOCK_H": 64, "BLOCK_W": 256, "BLOCK_S": 32, "BLOCK_N": 128}
compiled = 0
for file in ("gather_end_tokens", "gather_kv", "_score_bt_loss_triton"):
    for name, kernel in vars(importlib.import_module(f"rmkit_kernels.{file}")).items():
        if not isinstance(kernel, JITFunction) or not name.endswith("_kernel"):
            continue
        types = {}
        for arg in kernel.arg_names:
            if arg in ("chosen_ptr", "rejected_ptr", "end_index_ptr", "kv_index_ptr", "order_ptr", "start_ptr"):
                types[arg] = "*i64"
            elif arg.endswith("_ptr"):
                types[arg] = "*fp32" if arg.startswith(("loss", "stats", "scores", "grad_scores")) else "*bf16"
            else:
                types[arg] = "fp32" if arg in ("center", "normalizer") else "i32"
        constants = {arg: sizes[arg] for arg in types if arg in sizes}
        types |= dict.fromkeys(constants, "constexpr")
        for capability in (80, 90):
            source = ASTSource(kernel, types, constexprs=constants)
            assembly = compile(source, target=GPUTarget("cuda", capability, 32)).asm
            assert assembly["cubin"] and "atom." not in assembly["ptx"] and "red.global" not in assembly["ptx"], name
            compiled += 1
print(compiled)
"""


def test_every_kernel_compiles_for_gpus_and_has_no_atomics(monkeypatch, tmp_path):
    """As far as a machine without a GPU can go: Triton's compiler and ptxas, for sm_80 and sm_90."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE_ALL], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["16"]
