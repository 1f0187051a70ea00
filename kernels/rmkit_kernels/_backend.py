"""Shared by the kernel files: the import of Triton, the choice of kernel or reference, and argument checks.

`auto` runs Triton on CUDA tensors (float16, bfloat16, float32) and the PyTorch reference on anything else;
`reference` runs the plain, differentiable reference everywhere. Under `auto` CPU tensors go through the same custom
op as CUDA tensors, with the reference as its cpu kernel: autograd, `torch.compile` and `opcheck` see one path on both.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:  # macOS, Windows, or a CPU-only install: the references need none of it
    HAS_TRITON = False

    class _Absent:
        """Stands in for triton and tl, so that `@triton.jit` and `tl.constexpr` evaluate; no kernel is ever called."""

        constexpr = None

        @staticmethod
        def jit(function: Any = None, **_: Any) -> Any:
            return function or (lambda given: given)

    triton = tl = _Absent()

Kernels = Literal["auto", "reference"]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_triton_on_cpu = False


@contextlib.contextmanager
def triton_on_cpu() -> Iterator[None]:
    """For tests: within the block CPU tensors run the Triton kernels too, in the interpreter (TRITON_INTERPRET=1)."""
    global _triton_on_cpu
    if not HAS_TRITON or not triton.knobs.runtime.interpret:
        raise RuntimeError("triton_on_cpu() needs Triton, and TRITON_INTERPRET=1 set before rmkit_kernels is imported")
    before, _triton_on_cpu = _triton_on_cpu, True
    try:
        yield
    finally:
        _triton_on_cpu = before


def cpu_runs_triton(*tensors: Tensor) -> bool:
    """Whether CPU tensors run the Triton kernels (`triton_on_cpu`); float64 runs the reference, as on CUDA."""
    return _triton_on_cpu and all(tensor.dtype != torch.float64 for tensor in tensors)


def takes_op(kernels: str, *tensors: Tensor) -> bool:
    """Whether the custom op runs on these tensors; if not, the plain reference does."""
    if kernels not in ("auto", "reference"):
        raise ValueError(f"kernels is {kernels!r}: set auto or reference")
    if kernels == "reference":
        return False
    if tensors[0].device.type == "cuda":
        return HAS_TRITON and all(tensor.dtype != torch.float64 for tensor in tensors)
    return tensors[0].device.type == "cpu"


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def check_float(name: str, tensor: Tensor, shape: str) -> None:
    if tensor.dim() != shape.count(",") + 1 or tensor.dtype not in FLOATS:
        got = f"{tensor.dtype} of shape {list(tensor.shape)}"
        raise ValueError(f"{name} is {got}: give float16, bfloat16, float32 or float64 of shape {shape}")


def check_index(name: str, index: Tensor, like: Tensor) -> None:
    if index.dim() != 1 or index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} is {index.dtype} of shape {list(index.shape)}: give int32 or int64, one dimension")
    if index.device != like.device:
        raise ValueError(f"{name} is on {index.device}: put it on {like.device}, where the data is")


def check_range(name: str, index: Tensor, size: int) -> None:
    """ValueError on indices outside [0, size). CPU tensors only: on a GPU the check would cost a synchronisation."""
    if index.device.type != "cpu" or index.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < 0 or high >= size:
        raise ValueError(f"{name} reaches from {low} to {high}: give rows in [0, {size})")
