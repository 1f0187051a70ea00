"""Running an action on all ranks, or on the first one, with errors and results shared by all.

    on_every_rank(action)       every rank runs it; all get the results of all
    on_first_rank(action)       rank 0 runs it; all get its result
    first_then_others(action)   rank 0 runs it and fills a cache, then the others run it and read the cache
    agreed(action)              every rank runs it and gets its own result

Each of them returns when all ranks are done. A rank that failed alone would leave the others waiting for ever in
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
"""How long a rank waits for another one that prepares the data, labels or evaluates."""


def rank(group: dist.ProcessGroup | None = None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def ranks(group: dist.ProcessGroup | None = None) -> int:
    return dist.get_world_size(group) if dist.is_initialized() else 1


def on_every_rank(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Run `action` on every rank of `group` (None: all); its results, by rank. A single process needs no group.

    Where it raises a user's error on one rank, all raise AgreedError. Any other error is raised as it is on its own
    rank and as a RuntimeError on the others. An error of another rank names that rank.
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
    """Run `action` on rank 0 alone; every rank returns its result, or raises its error."""
    return on_every_rank(action if rank(group) == 0 else lambda: None, group)[0]


def sent_by_first_rank(action: Callable[[], T]) -> T:
    """`on_first_rank` for a large result: it is sent to each rank once, not gathered from all by all."""
    made: list[T | None] = [None]

    def keep() -> None:
        made[0] = action()

    on_first_rank(keep)
    if ranks() > 1:
        dist.broadcast_object_list(made, src=0)
    return made[0]


def agreed(action: Callable[[], T]) -> T:
    """Run `action` on every rank and return this rank's result, once all are done, however long that takes.

    `action` must not wait for another rank itself.
    """
    made: list[T] = []
    on_every_rank(lambda: made.append(action()), _patient() if dist.is_initialized() else None)
    return made[0]


def first_then_others(action: Callable[[], T]) -> T:
    """Run `action` on rank 0, which fills a cache, and then on the others, which read it; this rank's result."""
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
    """An error as plain values for the other ranks: not every exception survives pickling."""
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
    """The signal that any rank has received, on every rank: writing a checkpoint takes all of them."""
    if ranks() == 1:
        return stop.received
    number = torch.tensor([stop.received or 0], device=device)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return signal.Signals(int(number)) if int(number) else None
