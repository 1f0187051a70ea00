"""The process and the machine: versions, memory, signals."""

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import rmkit

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""glibc takes no more on 64 bits"""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

GPU_FULL = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors say of a full GPU, besides torch.OutOfMemoryError"""


def environment(device: torch.device, ranks: int) -> dict[str, Any]:
    """What env.json records: versions, commit, device, ranks and command."""
    versions = {}
    for package in ("torch", "transformers", "accelerate", "datasets", "safetensors", "peft", "triton", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "rmkit": rmkit.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions,
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def commit() -> str | None:
    """Commit of the checkout that this code runs from, -dirty where it was changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def keep_freed() -> bool:
    """Ask glibc to keep freed memory instead of returning it to the kernel; whether it was asked.

    By default every large activation is mapped when it is made and unmapped when it is freed, and the kernel fills its
    pages with zeros each time. With memory kept, bench/label_bench.py scores 10 to 16 % more completions per second.
    Other platforms, and CUDA's caching allocator, need nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD))


def full(error: BaseException | None) -> str | None:
    """Whose memory is full, where an error or one that it comes from says so: "GPU", "machine"; else None."""
    while error is not None:
        said = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(words in said for words in GPU_FULL):
            return "GPU"
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in said:
            return "machine"
        error = error.__cause__
    return None


@dataclass
class Stop:
    """The signal that asked a block to stop; None until one came."""

    received: signal.Signals | None = None


@contextlib.contextmanager
def stop_asked() -> Iterator[Stop]:
    """Within the block the first SIGINT or SIGTERM is recorded in the `Stop`; a second acts as before the block."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def receive(number: int, frame: FrameType | None) -> None:
        stop.received = signal.Signals(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in SIGNALS:
        signal.signal(number, receive)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
