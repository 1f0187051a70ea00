"""The demo model in runs/, trained by `python -m rmkit.train`, or here where label or evaluate need it."""

import os
from collections.abc import Callable

import torch

from rmkit import train
from rmkit.config import DEMO_MODEL
from rmkit.distributed.collectives import ranks


def prepare(say: Callable[[str], None]) -> None:
    """Train the demo model if it is not there yet, resuming an interrupted training.

    Raises ValueError where several processes run, or where the training did not come to its end.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # the model is too small to gain from a second core
    if DEMO_MODEL.is_dir():
        return
    if ranks() > 1:
        raise ValueError(f"{DEMO_MODEL} is not there; make it in one process first: python -m rmkit.train")
    say(f"{DEMO_MODEL} is not there: the demo model is trained first, in about a minute")
    if train.main(["--resume"]) != 0:
        raise ValueError(f"{DEMO_MODEL}: the demo model was not trained to its end")
