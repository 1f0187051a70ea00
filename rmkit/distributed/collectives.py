"""What the processes of a run (its ranks) do together, in the words that every program uses for it.

    on_every_rank(action)       every rank acts and learns what each of them made of it
    on_first_rank(action)       the first one acts, and all learn what it made of it
    first_then_others(action)   the first one fills a cache, then the others read it
    agreed(action)              every rank acts for itself

Each of them returns when all ranks have done it. A rank that failed alone would leave the others waiting for ever in
their next collective call, so an error of one is raised by all: a user's error as an AgreedError, which is told once.
"""

import signal
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from rmkit.errors import AgreedError, UserError
from rmkit.runtime import Stop

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""After which a process gives up that waits for one which prepares the data, labels or evaluates its share."""


def rank(group: dist.ProcessGroup | None = None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def ranks(group: dist.ProcessGroup | None = None) -> int:
    return dist.get_world_size(group) if dist.is_initialized() else 1


def on_every_rank(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Run `action` on every rank of `group` (None: all); what it returned, by rank. One process needs no group.

    Raises AgreedError on all of them where it met a user's error on one. What is not the user's to mend keeps its kind
    on the rank that met it and is a RuntimeError on the others. An error of another rank names that rank.
    """
    outcome = error = None
    try:
        outcome = action()
    except Exception as caught:
        error = caught
    outcomes = [(outcome, error and _sent(error))]
    if dist.is_initialized():
        outcomes *= dist.get_world_size(group)
        dist.all_gather_object(outcomes, (outcome, error and _sent(error)), group=group)
    if error is not None:
        if _of_user(error):
            raise AgreedError(error) from error
        raise error
    for other, (_, sent) in enumerate(outcomes):
        if sent is not None:
            raise _received(other, *sent)
    return [outcome for outcome, _ in outcomes]


def on_first_rank(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Run `action` on rank 0 alone; what it returned, or its error, on every rank."""
    return on_every_rank(action if rank(group) == 0 else lambda: None, group)[0]


def agreed(action: Callable[[], T]) -> T:
    """What `action` returns here, once it has ended on every rank, however long that takes.

    `action` must not wait for another rank itself.
    """
    made: list[T] = []
    on_every_rank(lambda: made.append(action()), _patient() if dist.is_initialized() else None)
    return made[0]


def first_then_others(action: Callable[[], T]) -> T:
    """What `action` returns here: it runs on rank 0, which fills a cache, and then on the others, which read it."""
    first = rank() == 0
    made = agreed(action if first else lambda: None)
    again = agreed(action if not first else lambda: None)
    return made if first else again


@cache
def _patient() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def _of_user(error: Exception) -> bool:
    return isinstance(error, (ValueError, OSError, SafetensorError))  # safetensors' own error: a full disk


def _sent(error: Exception) -> tuple[object, ...]:
    """What tells other ranks of an error. Not the error itself: not every one survives the way to another process."""
    if isinstance(error, UserError):
        return (error.field, None if error.value is None else str(error.value), error.hint, *error.ways)
    if _of_user(error):
        return "", None, str(error)
    return (f"{type(error).__name__}: {error}",)


def _received(other: int, *sent: str) -> Exception:
    if len(sent) == 1:
        return RuntimeError(f"rank {other}: {sent[0]}")
    error = AgreedError(UserError(*sent))
    error.rank = other
    return error


def agreed_stop(stop: Stop, device: torch.device) -> signal.Signals | None:
    """What any rank was asked, on every rank: a checkpoint is written by all of them or hangs."""
    if ranks() == 1:
        return stop.received
    number = torch.tensor([stop.received or 0], device=device)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return signal.Signals(int(number)) if int(number) else None
