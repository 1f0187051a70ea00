"""The rows of the end tokens: out[s] = hidden[end_index[s]], and its dense gradient in one pass.

    grad_hidden[t] = sum of grad_out[s] over the s with end_index[s] == t, in the order of s; zero for all other rows

PyTorch's own backward fills [T, H] with zeros and then adds rows into it, with atomics on a GPU. Here each program
writes one tile of [T, H] once, zeros and rows together; sequences that end on one row (duplicates, a sequence that is
the prefix of another) add up in float32, always in the order of s. One launch each way, no inverse index, no sort:
a tile finds its rows by scanning end_index, S integers that stay in cache (S is about T / 64).

Shapes: hidden [T, H], end_index [S], out [S, H]; T tokens of the packed row, S sequences, H hidden. float16, bfloat16
and float32 keep their dtype; float64 runs the reference.
"""

import torch
from torch import Tensor

from rmkit_kernels import _backend
from rmkit_kernels._backend import Kernels, check_float, check_index, check_range, tl, triton

# Wide rows and tall tiles: the scan of end_index (8 S bytes) is then small beside the tile written (32 KiB in bf16).
BLOCK_T, BLOCK_H, BLOCK_S = 16, 1024, 1024


def gather_end_tokens_reference(hidden: Tensor, end_index: Tensor) -> Tensor:
    """The specification, in differentiable PyTorch: arguments and result of `gather_end_tokens`."""
    return hidden.index_select(0, end_index)


def gather_end_tokens_backward_reference(grad_out: Tensor, end_index: Tensor, T: int) -> Tensor:
    """The dense gradient [T, H]. On a CPU index_add runs in the order of s; only the rows that S names are added up."""
    dtype = torch.promote_types(grad_out.dtype, torch.float32)
    rows, row_of = torch.unique(end_index, return_inverse=True)
    sums = torch.zeros((rows.shape[0], grad_out.shape[1]), dtype=dtype, device=grad_out.device)
    sums.index_add_(0, row_of, grad_out.to(dtype))
    grad = torch.zeros((T, grad_out.shape[1]), dtype=grad_out.dtype, device=grad_out.device)
    return grad.index_copy_(0, rows.long(), sums.to(grad_out.dtype))


@triton.jit
def _forward_kernel(hidden_ptr, end_index_ptr, out_ptr, T, H, stride_ht, stride_hh, stride_os, BLOCK_H: tl.constexpr):
    # int64 before any product with a stride: T * H passes 2^31 at T = 524,288 for H = 4096.
    s = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    t = tl.load(end_index_ptr + s).to(tl.int64)
    # A row out of range reads as NaN instead of memory that is not ours.
    readable = tl.where((t >= 0) & (t < T), H, 0)
    row = tl.load(hidden_ptr + t * stride_ht + h * stride_hh, mask=h < readable, other=float("nan"))
    tl.store(out_ptr + s * stride_os + h, row, mask=h < H)


@triton.jit
def _backward_kernel(
    grad_out_ptr, end_index_ptr, grad_hidden_ptr, T, H, S, stride_os, stride_oh, stride_ht,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr
):  # fmt: skip
    t0 = tl.program_id(0).to(tl.int64) * BLOCK_T
    t = t0 + tl.arange(0, BLOCK_T)
    h = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    grad = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
    for s0 in range(0, S, BLOCK_S):
        lane = tl.arange(0, BLOCK_S)
        end = tl.load(end_index_ptr + s0 + lane, mask=s0 + lane < S, other=-1).to(tl.int64)
        ours = (end >= t0) & (end < t0 + BLOCK_T)
        # The sequences that end in this tile, smallest first; BLOCK_S stands for "none left".
        first = tl.min(tl.where(ours, lane, BLOCK_S), axis=0)
        while first < BLOCK_S:
            s = s0 + first.to(tl.int64)
            row = tl.load(end_index_ptr + s).to(tl.int64)
            # Upcast at once: the interpreter computes garbage in bfloat16, and the sum is float32 anyway.
            part = tl.load(grad_out_ptr + s * stride_os + h * stride_oh, mask=h < H, other=0.0).to(tl.float32)
            grad += tl.where((t == row)[:, None], part[None, :], 0.0)
            first = tl.min(tl.where(ours & (lane > first), lane, BLOCK_S), axis=0)
    grad_ptrs = grad_hidden_ptr + t[:, None] * stride_ht + h[None, :]
    tl.store(grad_ptrs, grad.to(grad_hidden_ptr.dtype.element_ty), mask=(t < T)[:, None] & (h < H)[None, :])


def _triton_forward(hidden: Tensor, end_index: Tensor) -> Tensor:
    (T, H), S = hidden.shape, end_index.shape[0]
    end_index = end_index.contiguous()
    out = torch.empty((S, H), dtype=hidden.dtype, device=hidden.device)
    if out.numel() > 0:
        with _backend.on_device(hidden):
            grid = (S, triton.cdiv(H, BLOCK_H))
            _forward_kernel[grid](hidden, end_index, out, T, H, *hidden.stride(), out.stride(0), BLOCK_H=BLOCK_H)
    return out


def _triton_backward(grad_out: Tensor, end_index: Tensor, T: int) -> Tensor:
    S, H = grad_out.shape
    end_index = end_index.contiguous()
    grad = torch.empty((T, H), dtype=grad_out.dtype, device=grad_out.device)
    if grad.numel() > 0:
        with _backend.on_device(grad_out):
            sizes = (T, H, S, *grad_out.stride(), grad.stride(0))
            blocks = {"BLOCK_T": BLOCK_T, "BLOCK_H": BLOCK_H, "BLOCK_S": BLOCK_S}
            grid = (triton.cdiv(T, BLOCK_T), triton.cdiv(H, BLOCK_H))
            _backward_kernel[grid](grad_out, end_index, grad, *sizes, **blocks, num_warps=8)
    return grad


_op = torch.library.custom_op("rmkit::gather_end_tokens", _triton_forward, mutates_args=(), device_types="cuda")
_backward_op = torch.library.custom_op(
    "rmkit::gather_end_tokens_backward", _triton_backward, mutates_args=(), device_types="cuda"
)


@_op.register_kernel("cpu")
def _op_cpu(hidden, end_index):
    check_range("end_index", end_index, hidden.shape[0])
    run = _triton_forward if _backend.cpu_runs_triton(hidden) else gather_end_tokens_reference
    return run(hidden, end_index)


@_backward_op.register_kernel("cpu")
def _backward_cpu(grad_out, end_index, T):
    run = _triton_backward if _backend.cpu_runs_triton(grad_out) else gather_end_tokens_backward_reference
    return run(grad_out, end_index, T)


@_op.register_fake
def _op_fake(hidden, end_index):
    return hidden.new_empty((end_index.shape[0], hidden.shape[1]))


@_backward_op.register_fake
def _backward_fake(grad_out, end_index, T):
    return grad_out.new_empty((T, grad_out.shape[1]))


def _setup_context(ctx, inputs, output):
    hidden, end_index = inputs
    ctx.T = hidden.shape[0]
    ctx.save_for_backward(end_index)


def _backward(ctx, grad_out):
    (end_index,) = ctx.saved_tensors
    return _backward_op(grad_out, end_index, ctx.T), None


_op.register_autograd(_backward, setup_context=_setup_context)


def gather_end_tokens(hidden: Tensor, end_index: Tensor, *, kernels: Kernels = "auto") -> Tensor:
    """Gather the end tokens' hidden states out of the packed row.

    Args:
        hidden: [T, H], float16, bfloat16, float32 or float64, any strides.
        end_index: [S] rows of hidden, int32 or int64, in any order; several sequences may end on one row. S = 0 is
            allowed.
        kernels: "auto", or "reference" for plain PyTorch on any device.

    Returns:
        [S, H], contiguous, in the dtype of hidden, bit for bit the rows of hidden. The gradient of hidden is dense
        [T, H] and repeats bit for bit (the CUDA reference's index_add does not).

    Raises:
        ValueError: on shapes, dtypes and devices; on a row out of range, for CPU tensors. On a GPU that check would
            cost a synchronisation: there such a sequence reads as NaN and its gradient goes nowhere (the reference
            stops on a device-side assertion).
    """
    check_float("hidden", hidden, "[T, H]")
    check_index("end_index", end_index, hidden)
    if _backend.takes_op(kernels, hidden):
        return _op(hidden, end_index)
    if not torch.compiler.is_compiling():
        check_range("end_index", end_index, hidden.shape[0])
    return gather_end_tokens_reference(hidden, end_index)
