"""What the kernel tests share: Triton on either device over poisoned outputs, error bounds, rows beyond 2^31."""

import contextlib
import mmap
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rmkit_kernels._backend import triton, triton_on_cpu

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


@contextlib.contextmanager
def triton_kernels(device: str) -> Iterator[None]:
    """Within it `kernels="auto"` means Triton on this device, and what torch.empty returns is full of NaN."""
    if device == "cpu" and not triton.knobs.runtime.interpret:
        pytest.skip("a machine with a GPU runs the kernels there, not in the interpreter")

    def poisoned(make):
        def empty(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return empty

    with torch.device("meta"):
        torch.empty(0)  # PyTorch keeps, once a process, which functions a device context catches: never the patched
    with pytest.MonkeyPatch.context() as patch, triton_on_cpu() if device == "cpu" else contextlib.nullcontext():
        patch.setattr(torch, "empty", poisoned(torch.empty))
        patch.setattr(torch, "empty_like", poisoned(torch.empty_like))
        yield


def assert_bounded(
    ours: Tensor, torchs: Tensor, truth: Tensor, factor: float, scale: float, stored: torch.dtype
) -> None:
    """Our largest error is at most `factor` times PyTorch's in the same dtype, and a few last bits of `scale`.

    scale: the sum of the magnitudes that were added up, whose rounding nobody escapes. The interpreter truncates when
    it stores bfloat16 (the hardware rounds to nearest), which costs it one unit in the last place of its own.
    """
    assert ours.dtype == torchs.dtype
    error, bar = ((x.double() - truth).abs().max().item() if x.numel() else 0.0 for x in (ours, torchs))
    slack = 4 * torch.finfo(torch.float32).eps * scale
    if stored == torch.bfloat16 and ours.device.type == "cpu":
        slack += torch.finfo(torch.bfloat16).eps * scale
    assert error <= factor * bar + slack, f"error {error:.3g}, PyTorch {bar:.3g}, slack {slack:.3g}"


def far_rows(rows: int, width: int) -> tuple[Tensor, list[Tensor], int]:
    """A float16 pointer and its rows, 2^30 elements apart, so that row 2 lies beyond int32; and that stride.

    12 GiB of address space of which only the touched pages exist. The pointer is in the middle: an offset that wraps
    to a negative int32 reads zeros instead of stopping the process.
    """
    stride, middle = 2**30, 2**32
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    space = mmap.mmap(-1, middle + 2 * stride * rows + 2**20, flags=private)
    views = [
        torch.frombuffer(space, dtype=torch.float16, count=width, offset=middle + 2 * stride * row)
        for row in range(rows)
    ]
    return views[0], views, stride
