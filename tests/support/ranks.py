"""Several ranks on this machine without a launcher: what a rank imports is imported once, so a run takes a second."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["rmkit.train", "rmkit.evaluate", "rmkit.label", "rmkit.evaluation.report"])


@dataclass
class Ranks:
    """Processes that run, and the folder with rank-N.out and rank-N.err."""

    processes: list[multiprocessing.Process]
    folder: Path

    def wait(self, seconds: float) -> list[int]:
        """Exit statuses when all have ended; AssertionError where one has not after so many seconds."""
        end = time.monotonic() + seconds
        for rank, process in enumerate(self.processes):
            process.join(max(0.0, end - time.monotonic()))
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGUSR1)
                time.sleep(1.0)
                raise AssertionError(f"rank {rank} hangs: {self.err(rank)}")
        return [process.exitcode for process in self.processes]

    def out(self, rank: int) -> str:
        return (self.folder / f"rank-{rank}.out").read_text()

    def err(self, rank: int) -> str:
        return (self.folder / f"rank-{rank}.err").read_text()

    def told(self, rank: int) -> str:
        """What stands in this rank's boxes, on one line."""
        inside = (line.strip("\u2502 ") for line in self.err(rank).splitlines() if line.startswith("\u2502"))
        return " ".join(inside)


@contextlib.contextmanager
def started(
    count: int, folder: Path, work: Callable[..., int | None], *arguments, **environment: str
) -> Iterator[Ranks]:
    """`work(*arguments)` on every rank, as torchrun starts it on one node; what still runs at the end is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    settings |= {"OMP_NUM_THREADS": 1, "COLUMNS": 100, **environment}
    processes = []
    for rank in range(count):
        own = {**settings, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(CONTEXT.Process(target=_rank, args=(own, folder / f"rank-{rank}", work, arguments)))
        processes[-1].start()
    try:
        yield Ranks(processes, folder)
    finally:
        for process in processes:
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()


def run(count: int, folder: Path, work: Callable[..., int | None], *arguments, seconds: float = 120.0, **environment):
    """The ranks, ended; AssertionError with their words unless all end with status 0."""
    with started(count, folder, work, *arguments, **environment) as ranks:
        found = ranks.wait(seconds)
        assert found == [0] * count, f"{found}: " + "".join(ranks.err(rank) for rank in range(count))
        return ranks


def with_bf16(work: Callable[..., int | None], *arguments) -> int | None:
    """`work(*arguments)` on a processor that is said to have bf16 instructions: torch computes without them too."""
    from rmkit.model import precision

    precision.has_bf16 = lambda: True
    return work(*arguments)


def _rank(settings: dict, files: Path, work: Callable[..., int | None], arguments: tuple) -> None:
    import torch

    os.environ.update({name: str(value) for name, value in settings.items()})
    for name, number in ((".out", 1), (".err", 2)):
        descriptor = os.open(f"{files}{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # where it hangs
    sys.exit(work(*arguments))
