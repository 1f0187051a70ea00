"""gather_kv: bit-equal keys and values forward, a segmented sum in a fixed order backward."""

import pytest
import torch

from rmkit_kernels import gather_kv, kv_copies
from rmkit_kernels.gather_kv import BLOCK_T, BLOCK_W, _backward_kernel, _forward_kernel
from rmkit_kernels.gather_kv import _triton_backward as triton_backward
from rmkit_kernels.gather_kv import _triton_forward as triton_forward
from support.kernel_checks import DEVICES, DTYPES, assert_bounded, far_rows, triton_kernels

SIZES = [
    (1, 1, 1, 1),
    (7, 3, 5, 11),
    (BLOCK_T, 2, BLOCK_W // 2, BLOCK_T),
    (BLOCK_T + 1, 5, BLOCK_W // 5 + 1, 2 * BLOCK_T + 1),
    (13, 2, 16, 61),
]


def example(T, Hkv, D, Tk, dtype, device, seed=0):
    torch.manual_seed(seed)
    k, v = (torch.randn(T, Hkv, D).to(device, dtype).requires_grad_() for _ in range(2))
    upstream = [torch.randn(Tk, Hkv, D).to(device, dtype) for _ in range(2)]
    return k, v, torch.randint(0, T, (Tk,), device=device), upstream


def run(k, v, kv_index, upstream, copies=None, op=gather_kv, **kwargs):
    out = op(k, v, kv_index, copies, **kwargs)
    return [x.detach() for x in out] + list(torch.autograd.grad(out, (k, v), upstream))


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@DEVICES
@DTYPES
@pytest.mark.parametrize(("T", "Hkv", "D", "Tk"), SIZES)
def test_rows_and_gradients(T, Hkv, D, Tk, dtype, device):
    k, v, kv_index, upstream = example(T, Hkv, D, Tk, dtype, device)
    by_torch = run(k, v, kv_index, upstream, kernels="reference")
    with triton_kernels(device):
        ours = run(k, v, kv_index, upstream)
        assert_same(run(k, v, kv_index, upstream), ours)
        assert_same(run(k, v, kv_index, upstream, kv_copies(kv_index, T)), ours)
    assert_same(ours[:2], (k[kv_index], v[kv_index]))
    zeros = torch.zeros(T, Hkv, D, dtype=torch.float64, device=device)
    for grad, torchs, up in zip(ours[2:], by_torch[2:], upstream, strict=True):
        truth = zeros.index_add(0, kv_index, up.double())
        added = zeros.index_add(0, kv_index, up.double().abs()).max().item()
        assert_bounded(grad, torchs, truth, 3, added, dtype)


@DEVICES
@pytest.mark.parametrize("branches", [1, 2, 3, 17])
def test_copies_add_in_their_order(branches, device):
    """A prefix with K branches, as the trie stores it: bit for bit the sum in order of i."""
    prefix, own = 5, 3
    T = prefix + branches * own
    pieces = [torch.cat([torch.arange(prefix), prefix + b * own + torch.arange(own)]) for b in range(branches)]
    kv_index = torch.cat(pieces).to(device)
    k, v, _, upstream = example(T, 2, 3, kv_index.numel(), torch.float32, device)
    in_order = [torch.zeros(T, 2, 3, device=device) for _ in upstream]
    for i, t in enumerate(kv_index.tolist()):
        for grad, up in zip(in_order, upstream, strict=True):
            grad[t] += up[i]
    with triton_kernels(device):
        assert_same(run(k, v, kv_index, upstream)[2:], in_order)
    if device == "cpu":
        assert_same(run(k, v, kv_index, upstream)[2:], in_order)


@DEVICES
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_strided_tensors(index_dtype, device):
    """Keys as attention has them, [Hkv, T, D] transposed, beside contiguous values; upstream expanded."""
    k = torch.randn(2, 9, 6, device=device).transpose(0, 1).requires_grad_()
    v = torch.randn(9, 2, 6, device=device, requires_grad=True)
    kv_index = torch.tensor([0, 1, 1, 8, 8, 8], device=device, dtype=index_dtype)
    upstream = [torch.randn(6, 1, 1, device=device).expand(6, 2, 6), torch.randn(6, 2, 6, device=device).flip(0)]
    expected = run(k, v, kv_index, upstream, kernels="reference")
    with triton_kernels(device):
        assert_same(run(k, v, kv_index, upstream), expected)


@DEVICES
def test_nan_stays_in_its_row(device):
    k, v, _, upstream = example(9, 1, 3, 4, torch.float32, device)
    kv_index = torch.tensor([2, 5, 2, 6], device=device)
    with torch.no_grad():
        k[5] = upstream[1][2] = float("nan")
    with triton_kernels(device):
        k_out, v_out, grad_k, grad_v = run(k, v, kv_index, upstream)
    assert k_out.isnan().any(2).any(1).tolist() == [False, True, False, False]
    assert grad_v.isnan().any(2).any(1).nonzero().tolist() == [[2]]
    assert not v_out.isnan().any()
    assert not grad_k.isnan().any()


@DEVICES
def test_nothing_to_gather(device):
    k, v, kv_index, upstream = example(4, 2, 3, 0, torch.float32, device)
    with triton_kernels(device):
        k_out, v_out, grad_k, grad_v = run(k, v, kv_index, upstream)
    assert k_out.shape == v_out.shape == (0, 2, 3)
    assert_same((grad_k, grad_v), (torch.zeros_like(k), torch.zeros_like(v)))


@DEVICES
def test_one_of_the_two_is_used(device):
    k, v, kv_index, upstream = example(4, 2, 3, 6, torch.float32, device)
    with triton_kernels(device):
        grad_v = torch.autograd.grad(gather_kv(k, v, kv_index)[1], v, upstream[1])[0]
    assert torch.allclose(grad_v, torch.zeros_like(v).index_add(0, kv_index, upstream[1]))


@pytest.mark.parametrize("bad", [-1, 4])
def test_rows_out_of_range(bad):
    k, v, kv_index = torch.randn(4, 1, 2), torch.randn(4, 1, 2), torch.tensor([0, bad, 3])
    for kernels in ("auto", "reference"):
        with pytest.raises(ValueError, match=r"kv_index reaches from .* give rows in \[0, 4\)"):
            gather_kv(k, v, kv_index, kernels=kernels)
    # Where nothing checks (a GPU): NaN forward, nothing backward, and no other row is touched.
    ones = torch.ones(3, 1, 2)
    with triton_kernels("cpu"):
        outs = triton_forward(k, v, kv_index, None, None)
        grads = triton_backward(ones, ones, kv_index, *kv_copies(kv_index, 4))
    for out, data, grad in zip(outs, (k, v), grads, strict=True):
        assert torch.equal(out[[0, 2]], data[[0, 3]])
        assert out[1].isnan().all()
        assert grad[:, 0, 0].tolist() == [1, 0, 0, 1]


def test_wrong_arguments():
    k, index = torch.randn(4, 1, 2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"k is torch.float32 of shape \[4, 1\]: give .* \[T, Hkv, D\]"):
        gather_kv(k[..., 0], k, index)
    with pytest.raises(ValueError, match=r"v is torch.float16 .* give what k is"):
        gather_kv(k, k.half(), index)
    with pytest.raises(ValueError, match=r"v is torch.float32 of shape \[4, 1, 1\]"):
        gather_kv(k, k[..., :1], index)
    with pytest.raises(ValueError, match=r"kv_index is torch.bool"):
        gather_kv(k, k, index.bool())
    with pytest.raises(ValueError, match="copies have 2 and 4 entries"):
        gather_kv(k, k, index, kv_copies(index, 3))
    with pytest.raises(ValueError, match="kernels is 'fast': set auto or reference"):
        gather_kv(k, k, index, kernels="fast")


def test_float64_is_exact():
    k, v, kv_index, _ = example(5, 2, 2, 9, torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda a, b: gather_kv(a, b, kv_index), (k, v))


@DEVICES
def test_opcheck_and_compile(device):
    k, v, kv_index, upstream = example(7, 2, 4, 12, torch.float32, device)
    copies = kv_copies(kv_index, 7)
    compiled = torch.compile(gather_kv, fullgraph=True, backend="aot_eager")
    torch.library.opcheck(torch.ops.rmkit.gather_kv, (k, v, kv_index, None, None))
    with triton_kernels(device):
        expected = run(k, v, kv_index, upstream)
        torch.library.opcheck(torch.ops.rmkit.gather_kv, (k, v, kv_index, None, None))
        torch.library.opcheck(torch.ops.rmkit.gather_kv, (k, v, kv_index, *copies))
        assert_same(run(k, v, kv_index, upstream, op=compiled), expected)
        assert_same(run(k, v, kv_index, upstream, copies, op=compiled), expected)
        by_reference = run(k, v, kv_index, upstream, op=compiled, kernels="reference")
    for one, other in zip(by_reference, expected, strict=True):
        assert torch.allclose(one, other)


def test_offsets_beyond_int32():
    """Rows 2^30 elements apart on both sides: 2 * 2^30 wraps in int32, which the interpreter reproduces."""
    D = 4
    (k, k_rows, W), (v, v_rows, _) = far_rows(3, D), far_rows(3, D)
    (k_out, k_out_rows, _), (v_out, v_out_rows, _) = far_rows(3, D), far_rows(3, D)
    for row in range(3):
        k_rows[row].fill_(row + 1)
        v_rows[row].fill_(-row - 1)
    kv_index = torch.tensor([2, 0, 2], dtype=torch.int32)
    # W is the stride of the outputs too; the one program of this grid stops after its first D columns.
    sizes, blocks = (W, W, D, 1, W, D, 1), {"D": D, "BLOCK_T": 4, "BLOCK_W": D}
    with triton_kernels("cpu"):
        _forward_kernel[(1, 1)](k, v, kv_index, k_out, v_out, 3, 3, *sizes, **blocks)
        assert [row[0].item() for row in k_out_rows + v_out_rows] == [3, 1, 3, -3, -1, -3]
        order, start = kv_copies(kv_index, 3)
        _backward_kernel[(1, 1)](k_out, v_out, order.int(), start.int(), k, v, 3, *sizes, **blocks)
    assert [row[0].item() for row in k_rows + v_rows] == [1, 0, 6, -1, 0, -6]
