"""Reward accuracy on held-out preferences: the same set each time, every pair once, however small it is."""

import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rmkit.batch.build import build, microbatches
from rmkit.batch.pairs import TokenisedPairs
from rmkit.config import TrainConfig

CHUNK = 256
"""Pairs that are split into microbatches at once: enough to fill them, few enough to hold."""


def measure(
    model: nn.Module,
    pairs: TokenisedPairs,
    config: TrainConfig,
    accelerator: Accelerator,
    pad_token_id: int,
    attention: float,
) -> dict[str, Any]:
    """Evaluate on all ranks together; metrics as HALOs names them, means over all pairs.

    A tie counts as wrong, as HALOs counts it. Every rank runs the same number of forward passes, an empty one where
    it has no pair left.
    """
    start = time.perf_counter()
    totals = torch.zeros(5, dtype=torch.float64, device=accelerator.device)
    order = np.argsort(pairs.group, kind="stable")  # pairs on one prompt meet
    with torch.no_grad():
        for chunk in np.split(order, range(CHUNK, len(order), CHUNK)):
            of_ranks = microbatches(pairs, chunk, config, accelerator.num_processes, attention)
            for indices in of_ranks[accelerator.process_index]:
                batch = build(pairs, indices, config, pad_token_id).to(accelerator.device)
                _, _, stats = model(batch, config.loss.center)
                totals += stats
    metrics = means(accelerator.reduce(totals, "sum"), len(pairs), "eval")
    return {**metrics, "pairs": len(pairs), "seconds": time.perf_counter() - start}


def means(totals: Tensor, count: int, mode: str) -> dict[str, float]:
    """HALOs' metric names from the five sums that the loss kernel returns, over `count` pairs."""
    chosen, rejected, margin, correct, loss = (totals.double() / count).tolist()
    return {
        f"loss/{mode}": loss,
        f"rewards_{mode}/chosen": chosen,
        f"rewards_{mode}/rejected": rejected,
        f"rewards_{mode}/accuracies": correct,
        f"rewards_{mode}/margins": margin,
    }
