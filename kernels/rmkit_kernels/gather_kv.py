"""Keys and values of the trie, gathered for every sequence: k_out[i] = k[kv_index[i]], v_out[i] = v[kv_index[i]].

    grad_k[t] = sum of grad_k_out[i] over the i with kv_index[i] == t, in the order of i; grad_v likewise

The gradient of a row that K sequences share is the sum over its K copies. index_add sums with atomics: two terms
commute, three do not, so a run would not repeat. Here the copies of row t are looked up in an inverse index,
`kv_copies`: a stable sort of kv_index and the T + 1 borders between its rows, all on the device, without a host
synchronisation. It is the same for every layer of a network, so a caller may build it once per batch and hand it in;
without it the backward pass builds it again in each layer. Keys and values share one launch, forward and backward.

Shapes: k, v [T, Hkv, D], kv_index [Tk], out [Tk, Hkv, D]; T tokens of the packed row, Tk keys of all sequences, Hkv
heads, D head size, W = Hkv * D. float16, bfloat16 and float32 keep their dtype, sums run in float32; float64 runs the
reference.
"""

import torch
from torch import Tensor

from rmkit_kernels import _backend
from rmkit_kernels._backend import Kernels, check_float, check_index, check_range, tl, triton

# 8 KiB of keys and as much of values in bf16 per program; a tile of rows, for a row alone (2 KiB) is little work.
BLOCK_T, BLOCK_W = 4, 1024


def kv_copies(kv_index: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """(order [Tk], start [T + 1]): the copies of row t are order[start[t] : start[t + 1]], smallest first."""
    sorted_index, order = torch.sort(kv_index, stable=True)
    rows = torch.arange(T + 1, dtype=kv_index.dtype, device=kv_index.device)
    return order, torch.searchsorted(sorted_index, rows)


def gather_kv_reference(k: Tensor, v: Tensor, kv_index: Tensor) -> tuple[Tensor, Tensor]:
    """The specification, in differentiable PyTorch: results of `gather_kv`."""
    return k.index_select(0, kv_index), v.index_select(0, kv_index)


def gather_kv_backward_reference(
    grad_k_out: Tensor, grad_v_out: Tensor, kv_index: Tensor, order: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """(grad_k, grad_v). Takes kv_index, not its inverse: on a CPU index_add runs in the order of i."""
    grads = []
    for grad_out in (grad_k_out, grad_v_out):
        dtype = torch.promote_types(grad_out.dtype, torch.float32)
        grad = torch.zeros((start.shape[0] - 1, *grad_out.shape[1:]), dtype=dtype, device=grad_out.device)
        grads.append(grad.index_add_(0, kv_index, grad_out.to(dtype)).to(grad_out.dtype))
    return grads[0], grads[1]


@triton.jit
def _forward_kernel(
    k_ptr, v_ptr, kv_index_ptr, k_out_ptr, v_out_ptr, Tk, T, W,
    stride_kt, stride_kh, stride_kd, stride_vt, stride_vh, stride_vd,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    # int64 before any product with a stride: T * W passes 2^31 for long rows of many heads.
    i = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    w = tl.program_id(1).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    h, d = w // D, w % D
    t = tl.load(kv_index_ptr + i, mask=i < Tk, other=0).to(tl.int64)
    store = (i < Tk)[:, None] & (w < W)[None, :]
    # A row out of range reads as NaN instead of memory that is not ours.
    load = store & ((t >= 0) & (t < T))[:, None]
    k = tl.load(
        k_ptr + t[:, None] * stride_kt + (h * stride_kh + d * stride_kd)[None, :], mask=load, other=float("nan")
    )
    v = tl.load(
        v_ptr + t[:, None] * stride_vt + (h * stride_vh + d * stride_vd)[None, :], mask=load, other=float("nan")
    )
    tl.store(k_out_ptr + i[:, None] * W + w[None, :], k, mask=store)
    tl.store(v_out_ptr + i[:, None] * W + w[None, :], v, mask=store)


@triton.jit
def _backward_kernel(
    gk_out_ptr, gv_out_ptr, order_ptr, start_ptr, gk_ptr, gv_ptr, T, W,
    stride_kt, stride_kh, stride_kd, stride_vt, stride_vh, stride_vd,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    w = tl.program_id(1).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    h, d = w // D, w % D
    first = tl.load(start_ptr + t, mask=t < T, other=0)
    count = tl.load(start_ptr + t + 1, mask=t < T, other=0) - first
    gk = tl.zeros([BLOCK_T, BLOCK_W], dtype=tl.float32)
    gv = tl.zeros([BLOCK_T, BLOCK_W], dtype=tl.float32)
    # Neighbours in the row mostly have equally many copies, so few lanes wait for the longest.
    for copy in range(0, tl.max(count, axis=0)):
        i = tl.load(order_ptr + first + copy, mask=copy < count, other=0).to(tl.int64)
        load = (copy < count)[:, None] & (w < W)[None, :]
        k_ptrs = gk_out_ptr + i[:, None] * stride_kt + (h * stride_kh + d * stride_kd)[None, :]
        v_ptrs = gv_out_ptr + i[:, None] * stride_vt + (h * stride_vh + d * stride_vd)[None, :]
        # Upcast at once: the interpreter computes garbage in bfloat16, and the sum is float32 anyway.
        gk += tl.load(k_ptrs, mask=load, other=0.0).to(tl.float32)
        gv += tl.load(v_ptrs, mask=load, other=0.0).to(tl.float32)
    store = (t < T)[:, None] & (w < W)[None, :]
    tl.store(gk_ptr + t[:, None] * W + w[None, :], gk.to(gk_ptr.dtype.element_ty), mask=store)
    tl.store(gv_ptr + t[:, None] * W + w[None, :], gv.to(gv_ptr.dtype.element_ty), mask=store)


def _launch(kernel, tensors: tuple[Tensor, ...], sizes: tuple[int, ...], k: Tensor, v: Tensor, rows: int) -> None:
    W = k.shape[1] * k.shape[2]
    if rows == 0 or W == 0:
        return
    block_w = min(BLOCK_W, triton.next_power_of_2(W))
    grid = (triton.cdiv(rows, BLOCK_T), triton.cdiv(W, block_w))
    with _backend.on_device(k):
        kernel[grid](*tensors, *sizes, W, *k.stride(), *v.stride(), D=k.shape[2], BLOCK_T=BLOCK_T, BLOCK_W=block_w)


def _triton_forward(
    k: Tensor, v: Tensor, kv_index: Tensor, order: Tensor | None, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    T, Tk = k.shape[0], kv_index.shape[0]
    shape = (Tk, *k.shape[1:])
    k_out, v_out = (torch.empty(shape, dtype=tensor.dtype, device=tensor.device) for tensor in (k, v))
    _launch(_forward_kernel, (k, v, kv_index.contiguous(), k_out, v_out), (Tk, T), k, v, Tk)
    return k_out, v_out


def _triton_backward(
    grad_k_out: Tensor, grad_v_out: Tensor, kv_index: Tensor, order: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    T = start.shape[0] - 1
    shape = (T, *grad_k_out.shape[1:])
    gk, gv = (torch.empty(shape, dtype=grad.dtype, device=grad.device) for grad in (grad_k_out, grad_v_out))
    tensors = (grad_k_out, grad_v_out, order.contiguous(), start.contiguous(), gk, gv)
    _launch(_backward_kernel, tensors, (T,), grad_k_out, grad_v_out, T)
    return gk, gv


_op = torch.library.custom_op("rmkit::gather_kv", _triton_forward, mutates_args=(), device_types="cuda")
_backward_op = torch.library.custom_op(
    "rmkit::gather_kv_backward", _triton_backward, mutates_args=(), device_types="cuda"
)


@_op.register_kernel("cpu")
def _op_cpu(k, v, kv_index, order, start):
    check_range("kv_index", kv_index, k.shape[0])
    if _backend.cpu_runs_triton(k, v):
        return _triton_forward(k, v, kv_index, order, start)
    return gather_kv_reference(k, v, kv_index)


@_backward_op.register_kernel("cpu")
def _backward_cpu(grad_k_out, grad_v_out, *rest):
    triton_runs = _backend.cpu_runs_triton(grad_k_out, grad_v_out)
    return (_triton_backward if triton_runs else gather_kv_backward_reference)(grad_k_out, grad_v_out, *rest)


@_op.register_fake
def _op_fake(k, v, kv_index, order, start):
    shape = (kv_index.shape[0], *k.shape[1:])
    return k.new_empty(shape), v.new_empty(shape)


@_backward_op.register_fake
def _backward_fake(grad_k_out, grad_v_out, kv_index, order, start):
    shape = (start.shape[0] - 1, *grad_k_out.shape[1:])
    return grad_k_out.new_empty(shape), grad_v_out.new_empty(shape)


def _setup_context(ctx, inputs, output):
    k, _v, kv_index, order, start = inputs
    ctx.T, ctx.has_copies = k.shape[0], order is not None
    ctx.save_for_backward(kv_index, *((order, start) if ctx.has_copies else ()))


def _backward(ctx, grad_k_out, grad_v_out):
    kv_index, *copies = ctx.saved_tensors
    if not ctx.has_copies:
        copies = kv_copies(kv_index, ctx.T)
    return *_backward_op(grad_k_out, grad_v_out, kv_index, *copies), None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


def gather_kv(
    k: Tensor,
    v: Tensor,
    kv_index: Tensor,
    copies: tuple[Tensor, Tensor] | None = None,
    *,
    kernels: Kernels = "auto",
) -> tuple[Tensor, Tensor]:
    """Gather the keys and values of all sequences out of the packed row: (k_out, v_out).

    Args:
        k, v: [T, Hkv, D], float16, bfloat16, float32 or float64, any strides (a transposed view costs no copy).
        kv_index: [Tk] rows of k and v, int32 or int64, in any order and as often as wanted. Tk = 0 is allowed.
        copies: `kv_copies(kv_index, T)`, made once per batch for all layers; built in the backward pass if absent.
        kernels: "auto", or "reference" for plain PyTorch on any device (which ignores copies).

    Returns:
        Two tensors [Tk, Hkv, D], contiguous, bit for bit the rows of k and v. Their gradients repeat bit for bit for
        any number of copies (the CUDA reference's index_add does not).

    Raises:
        ValueError: on shapes, dtypes and devices; on a row out of range, for CPU tensors. On a GPU that check would
            cost a synchronisation: there such a row reads as NaN and its gradient goes nowhere (the reference stops
            on a device-side assertion). The contents of `copies` are trusted.
    """
    check_float("k", k, "[T, Hkv, D]")
    check_float("v", v, "[T, Hkv, D]")
    if v.shape != k.shape or v.dtype != k.dtype or v.device != k.device:
        got = f"{v.dtype} of shape {list(v.shape)} on {v.device}"
        raise ValueError(f"v is {got}: give what k is, {k.dtype} of shape {list(k.shape)} on {k.device}")
    check_index("kv_index", kv_index, k)
    order, start = copies or (None, None)
    if copies is not None:
        check_index("copies[0]", order, k)
        check_index("copies[1]", start, k)
        if order.shape != kv_index.shape or start.shape[0] != k.shape[0] + 1:
            raise ValueError(f"copies have {order.shape[0]} and {start.shape[0]} entries: give kv_copies(kv_index, T)")
    if _backend.takes_op(kernels, k):
        return _op(k, v, kv_index, order, start)
    if not torch.compiler.is_compiling():
        check_range("kv_index", kv_index, k.shape[0])
    return gather_kv_reference(k, v, kv_index)
