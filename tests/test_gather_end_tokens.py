"""gather_end_tokens: bit-equal rows forward, a dense gradient in one fixed-order pass backward."""

import pytest
import torch

from rmkit_kernels import gather_end_tokens
from rmkit_kernels.gather_end_tokens import BLOCK_H, BLOCK_S, BLOCK_T, _backward_kernel, _forward_kernel
from rmkit_kernels.gather_end_tokens import _triton_backward as triton_backward
from rmkit_kernels.gather_end_tokens import _triton_forward as triton_forward
from support.kernel_checks import DEVICES, DTYPES, assert_bounded, far_rows, triton_kernels

SIZES = [
    (1, 1, 1),
    (7, 3, 5),
    (BLOCK_T, BLOCK_H, BLOCK_T),
    (BLOCK_T + 1, BLOCK_H + 1, 11),
    (37, 13, 101),
    (5, 2, 131),
]


def example(T, H, S, dtype, device, seed=0):
    torch.manual_seed(seed)
    hidden = torch.randn(T, H).to(device, dtype).requires_grad_()
    return hidden, torch.randint(0, T, (S,), device=device), torch.randn(S, H).to(device, dtype)


def run(hidden, end_index, upstream, **kwargs):
    out = gather_end_tokens(hidden, end_index, **kwargs)
    return out.detach(), torch.autograd.grad(out, hidden, upstream)[0]


@DEVICES
@DTYPES
@pytest.mark.parametrize(("T", "H", "S"), SIZES)
def test_rows_and_gradient(T, H, S, dtype, device):
    hidden, end_index, upstream = example(T, H, S, dtype, device)
    truth = torch.zeros(T, H, dtype=torch.float64, device=device).index_add_(0, end_index, upstream.double())
    added = torch.zeros_like(truth).index_add_(0, end_index, upstream.double().abs()).max().item()
    _, by_torch = run(hidden, end_index, upstream, kernels="reference")
    with triton_kernels(device):
        out, grad = run(hidden, end_index, upstream)
        again = run(hidden, end_index, upstream)
    assert torch.equal(out, hidden[end_index])
    assert torch.equal(out, again[0])
    assert torch.equal(grad, again[1])
    assert_bounded(grad, by_torch, truth, 3, added, dtype)


@DEVICES
def test_rows_shared_by_sequences_add_in_their_order(device):
    """Bit for bit the sum in order of s, which no other order gives; one row holds every second end, across blocks."""
    T, H, S = 18, 3, BLOCK_S + 5
    hidden, end_index, upstream = example(T, H, S, torch.float32, device)
    end_index[::2] = 17
    in_order = torch.zeros(T, H, device=device)
    for s, t in enumerate(end_index.tolist()):
        in_order[t] += upstream[s]
    with triton_kernels(device):
        assert torch.equal(run(hidden, end_index, upstream)[1], in_order)
    if device == "cpu":
        assert torch.equal(run(hidden, end_index, upstream)[1], in_order)


@DEVICES
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_strided_tensors(index_dtype, device):
    hidden = torch.randn(2 * 9, 20, device=device).T[::2].requires_grad_()
    end_index = torch.tensor([4, 9, 9, 4, 0, 9, 9, 9], device=device, dtype=index_dtype)[::2]
    upstream = torch.randn(4, 1, device=device).expand(4, 18)
    expected = run(hidden, end_index, upstream, kernels="reference")
    with triton_kernels(device):
        for ours, theirs in zip(run(hidden, end_index, upstream), expected, strict=True):
            assert torch.equal(ours, theirs)


@DEVICES
def test_nan_stays_in_its_row(device):
    hidden, _, upstream = example(20, 5, 3, torch.float32, device)
    end_index = torch.tensor([3, 7, 3], device=device)
    with torch.no_grad():
        hidden[7] = upstream[2] = float("nan")
    with triton_kernels(device):
        out, grad = run(hidden, end_index, upstream)
    assert out.isnan().any(1).tolist() == [False, True, False]
    assert grad.isnan().any(1).nonzero().tolist() == [[3]]


@DEVICES
@pytest.mark.parametrize(("T", "H", "S"), [(4, 3, 0), (0, 3, 0)])
def test_nothing_to_gather(T, H, S, device):
    with triton_kernels(device):
        out, grad = run(*example(T, H, S, torch.float32, device) if T else empty_example(H, device))
    assert out.shape == (S, H)
    assert torch.equal(grad, torch.zeros(T, H, device=device))


def empty_example(H, device):
    index = torch.zeros(0, dtype=torch.int64, device=device)
    return torch.zeros(0, H, device=device, requires_grad=True), index, torch.zeros(0, H, device=device)


@pytest.mark.parametrize("bad", [-1, 4])
def test_rows_out_of_range(bad):
    hidden, index = torch.randn(4, 3, requires_grad=True), torch.tensor([0, bad])
    for kernels in ("auto", "reference"):
        with pytest.raises(ValueError, match=r"end_index reaches from .* give rows in \[0, 4\)"):
            gather_end_tokens(hidden, index, kernels=kernels)
    # Where nothing checks (a GPU): NaN forward, nothing backward, and no other row is touched.
    with triton_kernels("cpu"):
        out, grad = triton_forward(hidden.detach(), index), triton_backward(torch.ones(2, 3), index, 4)
    assert torch.equal(out[0], hidden[0])
    assert out[1].isnan().all()
    assert torch.equal(grad, torch.tensor([[1.0] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3]))


def test_wrong_arguments():
    hidden, index = torch.randn(4, 3), torch.tensor([0])
    with pytest.raises(ValueError, match=r"hidden is torch.float32 of shape \[4\]: give .* \[T, H\]"):
        gather_end_tokens(hidden[:, 0], index)
    with pytest.raises(ValueError, match=r"hidden is torch.int64"):
        gather_end_tokens(hidden.long(), index)
    with pytest.raises(ValueError, match=r"end_index is torch.float32"):
        gather_end_tokens(hidden, index.float())
    with pytest.raises(ValueError, match=r"end_index is on meta"):
        gather_end_tokens(hidden, index.to("meta"))
    with pytest.raises(ValueError, match="kernels is 'fast': set auto or reference"):
        gather_end_tokens(hidden, index, kernels="fast")


def test_float64_is_exact():
    hidden, end_index, _ = example(9, 4, 6, torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda x: gather_end_tokens(x, end_index), hidden)


@DEVICES
def test_opcheck_and_compile(device):
    hidden, end_index, upstream = example(20, 6, 4, torch.float32, device)
    expected = run(hidden, end_index, upstream, kernels="reference")
    compiled = torch.compile(gather_end_tokens, fullgraph=True, backend="aot_eager")
    torch.library.opcheck(torch.ops.rmkit.gather_end_tokens, (hidden, end_index))
    with triton_kernels(device):
        torch.library.opcheck(torch.ops.rmkit.gather_end_tokens, (hidden, end_index))
        for kernels in ("auto", "reference"):
            out = compiled(hidden, end_index, kernels=kernels)
            assert torch.equal(out, expected[0])
            assert torch.allclose(torch.autograd.grad(out, hidden, upstream)[0], expected[1])


def test_offsets_beyond_int32():
    """Rows 2^30 elements apart: 2 * 2^30 wraps in int32, which the interpreter reproduces."""
    H = 3
    hidden, rows, stride = far_rows(3, H)
    for row, view in enumerate(rows):
        view.fill_(row + 1)
    end_index = torch.tensor([2, 0, 2], dtype=torch.int32)
    with triton_kernels("cpu"):
        out = torch.empty(3, H, dtype=torch.float16)
        _forward_kernel[(3, 1)](hidden, end_index, out, 3, H, stride, 1, H, BLOCK_H=4)
        assert out[:, 0].tolist() == [3, 1, 3]
        blocks = {"BLOCK_T": 4, "BLOCK_H": 4, "BLOCK_S": 4}
        _backward_kernel[(1, 1)](out, end_index, hidden, 3, H, 3, H, 1, stride, **blocks)
    assert [view.tolist() for view in rows] == [[1] * H, [0] * H, [6] * H]


@pytest.mark.gpu
def test_a_row_of_more_than_int32_elements():
    T, H = 2**31 // 4096 + 8, 4096
    hidden = torch.zeros(T, H, dtype=torch.bfloat16, device="cuda")
    hidden[-1] = 1
    end_index = torch.tensor([T - 1, 0], device="cuda")
    assert torch.equal(gather_end_tokens(hidden, end_index), hidden[end_index])
    grad = triton_backward(torch.ones(2, H, dtype=torch.bfloat16, device="cuda"), end_index, T)
    assert (grad[0] == 1).all()
    assert (grad[-1] == 1).all()
    assert grad[1:-1].count_nonzero() == 0
