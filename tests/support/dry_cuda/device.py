"""A CUDA device that computes nothing, for fake tensors: dtypes, devices, shapes, allocations and waits are real.

Imported before torch by a process of its own; FAKE_CUDA names the library that fake_cuda.cpp was built into.
"""

import contextlib
import ctypes
import os

ctypes.CDLL(os.environ["FAKE_CUDA"], ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
import torch.cuda.amp.common  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

RANKS = 4


class Stream:
    """The one stream, on which everything is done when it is asked for; and its own event."""

    stream_id = device_index = 0
    device_type = 1
    device = torch.device("cuda", 0)

    def __init__(self, *_, **__) -> None:
        pass

    def _nothing(self, *_) -> None:
        pass

    wait_stream = wait_event = wait = synchronize = record = _nothing

    def record_event(self, event=None):
        return event or Stream()

    def query(self) -> bool:
        return True


STREAM = Stream()


def _apply(module: torch.nn.Module, change, recurse: bool = True) -> torch.nn.Module:
    """Module.to and its like with new parameters: fake ones can be neither set nor swapped."""
    for child in module.children() if recurse else ():
        child._apply(change)
    for name, parameter in module.named_parameters(recurse=False):
        with torch.no_grad():
            new = change(parameter)
        if new is not parameter:
            module._parameters[name] = torch.nn.Parameter(new, parameter.requires_grad)
    for name, buffer in module.named_buffers(recurse=False):
        module._buffers[name] = change(buffer)
    return module


def _patched() -> None:
    torch.set_num_threads(1)
    # Autocast is refused where torch was built without CUDA.
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    # What FSDP2 asks torch.cuda for. A function each: torch.compile tells them apart by identity.
    torch.cuda.Stream = torch.cuda.Event = Stream
    torch.cuda.current_stream = lambda *_, **__: STREAM
    torch.cuda.default_stream = lambda *_, **__: STREAM
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.cuda.current_device = lambda: 0
    torch.cuda.set_device = lambda *_: None
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.device_count = lambda: RANKS
    torch.cuda.is_initialized = lambda: True
    torch.cuda._lazy_init = lambda: None
    torch.Tensor.record_stream = lambda self, stream: None
    torch.Tensor.pin_memory = lambda self, *_: self
    torch.nn.Module._apply = _apply
    # A build for CPUs would take this one apart.
    silu = torch.library.Library("aten", "IMPL")
    silu.impl("silu_backward", lambda gradient, x: torch.empty_like(x), "CUDA")
    _patched.kept = silu


def join(ranks: int) -> None:
    """Be rank 0 of a process group whose collectives do nothing."""
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())


_patched()
