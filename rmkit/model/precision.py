"""The arithmetic of the backbone: what --model.precision asks for, and what the device can do."""

import platform
from collections.abc import Callable
from typing import Literal

import torch


def resolved(precision: str, device: str, say: Callable[[str], None]) -> Literal["fp32", "bf16"]:
    """What is computed in on "cuda" or "cpu", and said. A processor without bf16 instructions computes in fp32.

    Without them a product takes about a hundred times as long in bf16 as in fp32 (on AVX2: 1 against 126 GFLOP/s).
    """
    if precision == "bf16" and device == "cpu" and not has_bf16():
        say("computes in fp32: bf16 is asked for, but this processor has no bf16 instructions and would be slow")
        return "fp32"
    bf16 = precision == "bf16" or (precision == "auto" and device == "cuda")
    say(f"computes in {'bf16' if bf16 else 'fp32'}")
    return "bf16" if bf16 else "fp32"


def has_bf16() -> bool:
    """Whether the processor has bf16 instructions; not where ATEN_CPU_CAPABILITY tells torch to do without."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        allowed = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
        return allowed and torch.cpu._is_avx512_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
