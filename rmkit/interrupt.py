"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, leave with a status that says so."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """What was asked for while a block ran; None as long as nothing was."""

    received: signal.Signals | None = None


def agreed_stop(stop: Stop, accelerator: Accelerator) -> signal.Signals | None:
    """What any rank was asked, on every rank: a checkpoint is written by all of them or hangs."""
    if accelerator.num_processes == 1:
        return stop.received
    number = torch.tensor([stop.received or 0], device=accelerator.device)
    number = int(accelerator.gather(number).max())
    return signal.Signals(number) if number else None


@contextlib.contextmanager
def stop_asked() -> Iterator[Stop]:
    """Within the block, the first SIGINT or SIGTERM is noted; a second one acts as it did before the block."""
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
