"""What the steps of a training compute, planned as they will be, before any weight is read."""

from dataclasses import dataclass, replace

import numpy as np

from rmkit.batch.build import Batches, tokens_of_each
from rmkit.batch.lengths import Counts, count, joined
from rmkit.batch.pairs import TokenisedPairs
from rmkit.batch.planner import epoch_order
from rmkit.config import TrainConfig
from rmkit.training.estimate import Load

SAMPLED = 2048
"""Steps that are planned at most: beyond, as many evenly spaced ones, and their sums are scaled."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the steps of a training compute, over all ranks."""

    pairs: int
    steps: int
    flat: float
    """Tokens of all sides of all pairs, each written out in full"""
    computed: float
    """Tokens of the tries; at most, since groups of a microbatch may share a prefix too"""
    keys: float
    """(query, key) pairs of attention in a layer"""
    ends: float
    """Rows that the last layer runs on"""
    end_keys: float
    """(query, key) pairs of its attention"""
    microbatches: float
    """Of each rank, in a step"""
    load: Load
    """The largest microbatch"""


def workload(batches: Batches, config: TrainConfig, at_most: int = SAMPLED) -> Workload:
    """What a training of these pairs computes, told of its first epoch, which is like the others. Where no more than
    some steps are planned, so is that of the longest pair, for the largest microbatch alone."""
    pairs: TokenisedPairs = batches.items
    order = epoch_order(pairs.group, 0, config)
    starts = np.arange(0, len(order), config.batch.pairs)
    steps = len(starts) * config.optim.epochs
    steps = min(steps, config.optim.max_steps or steps)
    chosen = starts[:steps]
    if len(chosen) > at_most:
        chosen = chosen[np.linspace(0, len(chosen) - 1, at_most).astype(int)]
    known, longest = set(chosen.tolist()), _start_of_longest(batches, order, config.batch.pairs, steps)
    compared = pairs.labels["compared"] > 0  # a rated response stands alone: it has one side
    sides = pairs.lengths.length[pairs.lengths.place].astype(np.int64)
    both = sides[:, 0] + np.where(compared, sides[:, 1], 0)
    sums, most, planned, microbatches = np.zeros(5), Load.of_nothing(), 0, 0
    for start in [*chosen.tolist(), *({longest} - known)]:
        indices = order[start : start + config.batch.pairs]
        parts = batches.split(indices)
        found = _counted(batches, [part for of_rank in parts for part in of_rank])
        largest = max(found, key=lambda load: load.tokens)
        if largest.tokens > most.tokens:
            most = replace(largest, microbatches=most.microbatches)
        most = replace(most, microbatches=max(most.microbatches, len(parts[0])))
        if start not in known:
            continue
        planned, microbatches = planned + len(indices), microbatches + len(parts[0])
        of_step = [(load.tokens, load.pairs, load.ends, load.end_keys) for load in found]
        sums += [int(both[indices].sum()), *np.sum(of_step, 0)]
    total = min(steps * config.batch.pairs, len(pairs) * config.optim.epochs)
    flat, computed, keys, ends, end_keys = (sums * (total / planned)).tolist()
    return Workload(
        pairs=total,
        steps=steps,
        flat=flat,
        computed=computed,
        keys=keys,
        ends=ends,
        end_keys=end_keys,
        microbatches=microbatches / len(chosen),
        load=most,
    )


def _start_of_longest(batches: Batches, order: np.ndarray, pairs: int, steps: int) -> int:
    """Where in `order` the step begins that has the longest pair of all `steps`."""
    seen = order[: steps * pairs]
    return int(tokens_of_each(batches.items, batches.config.layout)[seen].argmax()) // pairs * pairs


def _counted(batches: Batches, parts: list[np.ndarray]) -> list[Load]:
    """What each of the microbatches of a step holds."""
    lengths, layout = batches.items.lengths, batches.config.layout
    items, slot = np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    units, unit = np.unique(np.stack([lengths.group[items], slot]), axis=1, return_inverse=True)

    def counted(kind: str) -> Counts:
        return joined(count(lengths, items, unit.ravel(), units.shape[1], kind), units[1], len(parts), kind)

    here, whole = counted(layout), counted("packed").tokens  # keys of a segment are its sequence in full
    padded = layout == "padded"  # the last layer runs on all of a rectangle, each row of which is a segment
    return [
        Load(
            tokens=int(here.tokens[i]),
            pairs=int(here.keys[i]),
            gathered=int(whole[i]) if layout == "trie" else 0,
            segments=int(here.sequences[i] if padded else here.ends[i]),
            ends=int(here.tokens[i] if padded else here.ends[i]),
            end_keys=int(here.keys[i] if padded else whole[i]),
        )
        for i in range(len(parts))
    ]
