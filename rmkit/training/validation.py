"""Reward accuracy on held-out preferences: the same set each time, every pair once, however small it is."""

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
"""Pairs that are split into microbatches at once: enough to fill them, few enough to hold."""


def measure(model: nn.Module, batches: Batches, loss: LossConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Evaluate on all ranks together; metrics as HALOs names them, means over all pairs.

    A tie counts as wrong, as HALOs counts it. Every rank runs the same number of forward passes, an empty one where
    it has no pair left.
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
    """The sums over all ranks, on every one."""
    return PairSums(sums.names, accelerator.reduce(sums.values, "sum"))


def means(sums: dict[str, float], rows: int, mode: str) -> dict[str, float]:
    """HALOs' metric names from the sums of a comparison: the loss over all `rows`, the others over the pairs among
    them, and for each objective the mean squared error of its ratings. What there is none of is left out."""
    found = {f"loss/{mode}": sums["loss"] / rows}
    if pairs := sums["pairs"]:
        found[f"rewards_{mode}/chosen"] = sums["chosen"] / pairs
        found[f"rewards_{mode}/rejected"] = sums["rejected"] / pairs
        found[f"rewards_{mode}/accuracies"] = sums["correct"] / pairs
        found[f"rewards_{mode}/margins"] = sums["margin"] / pairs
    for name, count in sums.items():
        if name.startswith("rated/") and count:
            objective = name.removeprefix("rated/")
            found[f"squared_error_{mode}/{objective}"] = sums[f"squared_error/{objective}"] / count
    return found
