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


def measure(
    model: nn.Module, batches: Batches, loss: LossConfig, accelerator: Accelerator
) -> tuple[dict[str, Any], np.ndarray]:
    """Evaluate on all ranks: means over all N pairs, under HALOs' metric names; and the rewards of both sides of each
    pair, float32 [N, 2], on every rank.

    A tie counts as wrong, as in HALOs. Every rank runs the same number of forward passes, an empty one where it has
    no pair left.
    """
    start, sums, pairs, parts = time.perf_counter(), None, batches.items, []
    order = np.argsort(pairs.group, kind="stable")  # pairs on one prompt meet
    with torch.no_grad():
        for chunk in np.split(order, range(CHUNK, len(order), CHUNK)):
            for indices in batches.split(chunk)[batches.rank]:
                batch = batches.pack(indices).to(accelerator.device)
                compared = model(batch, loss)
                sums = compared.sums if sums is None else sums + compared.sums
                sides = [compared.rewards.index_select(0, side) for side in (batch.chosen, batch.rejected)]
                parts.append((indices, torch.stack(sides, 1)))
    metrics = means(all_ranks(sums, accelerator).as_dict(), len(pairs), "eval")
    rewards = everywhere(parts, len(pairs), accelerator)
    return {**metrics, "pairs": len(pairs), "seconds": time.perf_counter() - start}, rewards


def everywhere(parts: list[tuple[np.ndarray, torch.Tensor]], count: int, accelerator: Accelerator) -> np.ndarray:
    """The rewards of `count` pairs, from what each rank has of them: a pair is one rank's, so the sum is exact."""
    rewards = torch.zeros((count, 2), dtype=torch.float32, device=accelerator.device)
    if mine := [(indices, of_part) for indices, of_part in parts if len(indices)]:
        where = torch.from_numpy(np.concatenate([indices for indices, _ in mine])).to(accelerator.device)
        rewards[where] = torch.cat([of_part for _, of_part in mine]).float()
    return accelerator.reduce(rewards, "sum").cpu().numpy()


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
