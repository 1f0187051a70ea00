"""Loss, accuracy and rewards on the held-out pairs: the same set each time, every pair once."""

import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from rmkit.batch.build import Batches
from rmkit.config import LossConfig
from rmkit.model.loss import PairSums

CHUNK = 256
"""Pairs that are split into microbatches at once: enough to fill them, few enough for memory."""


def measure(model: nn.Module, batches: Batches, loss: LossConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Evaluate on all ranks: means over all pairs, under HALOs' metric names.

    A tie counts as wrong, as in HALOs. Every rank runs the same number of forward passes, an empty one where it has
    no pair left.
    """
    start, sums, pairs = time.perf_counter(), None, batches.items
    order = np.argsort(pairs.group, kind="stable")  # pairs on one prompt meet
    with torch.no_grad():
        for chunk in np.split(order, range(CHUNK, len(order), CHUNK)):
            for batch, _ in batches.microbatches(chunk):
                of_batch = model(batch.to(accelerator.device), loss).sums
                sums = of_batch if sums is None else sums + of_batch
    metrics = means(all_ranks(sums, accelerator).as_dict(), len(pairs), "eval")
    return {**metrics, "pairs": len(pairs), "seconds": time.perf_counter() - start}


def all_ranks(sums: PairSums, accelerator: Accelerator) -> PairSums:
    """The sums added up over all ranks, on every rank."""
    return PairSums(sums.names, accelerator.reduce(sums.values, "sum"))


def means(sums: dict[str, float], rows: int, mode: str) -> dict[str, float]:
    """The metrics of a comparison's sums, under HALOs' names: mean loss over all `rows`, the other means over the pairs
    among them, and for each objective the mean squared error of its ratings. A mean over nothing is left out."""
    metrics = {f"loss/{mode}": sums["loss"] / rows}
    if pairs := sums["pairs"]:
        metrics[f"rewards_{mode}/chosen"] = sums["chosen"] / pairs
        metrics[f"rewards_{mode}/rejected"] = sums["rejected"] / pairs
        metrics[f"rewards_{mode}/accuracies"] = sums["correct"] / pairs
        metrics[f"rewards_{mode}/margins"] = sums["margin"] / pairs
    for name, count in sums.items():
        if name.startswith("rated/") and count:
            objective = name.removeprefix("rated/")
            metrics[f"squared_error_{mode}/{objective}"] = sums[f"squared_error/{objective}"] / count
    return metrics
