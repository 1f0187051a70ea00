"""What all ranks do together: what each made of it, known to every one, or one error that all of them raise.

A rank that failed alone would leave the others waiting for ever in their next collective call.
"""

import signal
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors import SafetensorError

from rmkit.runtime import Stop

T = TypeVar("T")


def together(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Run `action` on every rank of `group` (None: all); what it returned, by rank. One process needs no group.

    Where it fails on a rank, that rank raises its own error, and the others an OSError, a ValueError or, for what is
    not the user's to mend, a RuntimeError that names the rank.
    """
    outcome = error = None
    try:
        outcome = action()
    except Exception as caught:
        error = caught
    outcomes = [(outcome, error and _told(error))]
    if dist.is_initialized():
        outcomes *= dist.get_world_size(group)
        dist.all_gather_object(outcomes, (outcome, error and _told(error)), group=group)
    if error is not None:
        raise error
    for rank, (_, told) in enumerate(outcomes):
        if told is not None:
            kind, text = told
            raise kind(f"rank {rank}: {text}")
    return [outcome for outcome, _ in outcomes]


def first(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Run `action` on rank 0 alone; what it returned, or its error, on every rank."""
    return together(action if rank(group) == 0 else lambda: None, group)[0]


def rank(group: dist.ProcessGroup | None = None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def ranks(group: dist.ProcessGroup | None = None) -> int:
    return dist.get_world_size(group) if dist.is_initialized() else 1


def _told(error: Exception) -> tuple[type[Exception], str]:
    """Not the error itself: not every one survives the way to another process."""
    if isinstance(error, (OSError, SafetensorError)):  # safetensors has an error of its own for a full disk
        return OSError, str(error)
    if isinstance(error, ValueError):
        return ValueError, str(error)
    return RuntimeError, f"{type(error).__name__}: {error}"


def agreed_stop(stop: Stop, accelerator: Accelerator) -> signal.Signals | None:
    """What any rank was asked, on every rank: a checkpoint is written by all of them or hangs."""
    if accelerator.num_processes == 1:
        return stop.received
    number = torch.tensor([stop.received or 0], device=accelerator.device)
    number = int(accelerator.gather(number).max())
    return signal.Signals(number) if number else None
