"""Train from Python: `fit` is `python -m rmkit.train` without its flags, its signals and its exit status."""

import contextlib
from dataclasses import replace

import torch
from rich.console import Console

from rmkit.config import TrainConfig
from rmkit.runtime import Stop
from rmkit.train import run_training
from rmkit.training.inputs import Memory, Rows
from rmkit.training.record import Result


def fit(config: TrainConfig, *, train: Rows | None = None, test: Rows | None = None, quiet: bool = False) -> Result:
    """Train from Python, as `python -m rmkit.train` does, and return what it leaves.

    `train` and `test` are preferences that are in memory already, a list of rows or a `datasets.Dataset` in any form
    that a file may have; they take the place of `config.data.train` and `config.data.test`. Nothing of the process is
    changed (threads, signal handlers, the state of torch's random generator), and it can be called again. The programs
    also let threads sleep while they wait, which is faster beside other busy processes and can only be asked for before
    torch is loaded: set OMP_WAIT_POLICY=passive before you start Python.

    Raises ValueError with a sentence for the user, as the program prints it: an unknown loss, a run folder that holds
    results, a bad row.
    """
    names = {"train": ("rows in memory",) if train is not None else config.data.train}
    names["test"] = ("rows in memory",) if test is not None else config.data.test
    config = replace(config, data=replace(config.data, **names)).resolved()
    with torch.random.fork_rng():
        console, memory = Console(emoji=False, quiet=quiet), Memory(train=train, test=test)
        return run_training(config, console, lambda: contextlib.nullcontext(Stop()), memory)
