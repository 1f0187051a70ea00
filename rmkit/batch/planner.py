"""The planner: which preferences form a global batch, and how it is split over ranks and microbatches.

The order of an epoch, and so every global batch, is a pure function of (data, seed, epoch), independent of the number
of ranks and the token budget. The split changes which rank computes what, never the gradient, because the loss is a
sum over the global batch.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rmkit.batch.lengths import Counts, Lengths, count, joined
from rmkit.config import Layout, TrainConfig
from rmkit.errors import UserError, flag

LOOK_AHEAD = 32
"""Prompt groups that may wait for a batch with enough room before one of them is cut."""
BLOCK = 1 << 16
"""Groups that are held as Python objects at once: ten million of them would take gigabytes."""
NEAR = 1.02
"""A step within this factor of its lower bound (mean load, or the heaviest single item) is not split more finely."""
SEGMENTS = 2048
"""Distinct end tokens of a microbatch, at most. Flash attention's backward keeps 128 rows in float32 for each segment
beside its tokens: 4.3 GB for Llama-3-8B at this bound; past 4,096 its 32-bit offsets may overflow."""
SHARES = (1.0, 0.85, 0.7)
"""Shares of a microbatch's mean load above which groups are cut, tried in turn. Smaller pieces balance the ranks
better, but each computes its prompt again: below these the step takes longer."""


def epoch_order(group: np.ndarray, epoch: int, config: TrainConfig) -> np.ndarray:
    """Order of N preferences in one epoch, int64 [N]; global batch b is order[b * pairs : (b + 1) * pairs].

    `group` int64 [N] is equal where the prompt is equal. Without --data.shuffle the order is that of the file. With
    --batch.group prompt whole groups are shuffled, and placed so that few are split over two batches; a group larger
    than a batch always is.
    """
    if not config.data.shuffle:
        return np.arange(len(group))
    rng = np.random.default_rng([config.seed, epoch])
    sizes = np.bincount(group)
    if config.batch.group == "none" or sizes.max() == 1:
        return rng.permutation(len(group))
    # int32 and blocks keep ten million pairs under 300 MB.
    members = np.argsort(group, kind="stable").astype(np.int32)
    starts = (np.cumsum(sizes) - sizes).astype(np.int32)
    shuffled = rng.permutation(np.flatnonzero(sizes))
    order, filled = np.empty(len(group), np.int64), 0
    for block in _whole_groups(shuffled, sizes, config.batch.pairs):
        of = sizes[block]
        inside = np.arange(of.sum()) - np.repeat(np.cumsum(of) - of, of)
        order[filled : filled + len(inside)] = members[np.repeat(starts[block], of) + inside]
        filled += len(inside)
    return order


def _whole_groups(groups: np.ndarray, sizes: np.ndarray, pairs: int) -> Iterator[np.ndarray]:
    """Reorder groups, block by block: one that does not fit into the current batch waits for one with enough room."""
    placed: list[int] = []
    waiting: deque[tuple[int, int]] = deque()
    room = pairs

    def place(g: int, size: int) -> None:
        nonlocal room
        placed.append(g)
        room = (room - size) % pairs or pairs

    for start in range(0, len(groups), BLOCK):
        block = groups[start : start + BLOCK]
        for g, size in zip(block.tolist(), sizes[block].tolist(), strict=True):
            if room == pairs and waiting:
                for _ in range(len(waiting)):
                    held = waiting.popleft()
                    place(*held) if held[1] <= room else waiting.append(held)
            if size <= room or size > pairs:
                place(g, size)
            else:
                waiting.append((g, size))
            if len(waiting) > LOOK_AHEAD:
                place(*waiting.popleft())
        yield np.array(placed, np.int64)
        placed.clear()
    if waiting:
        yield np.array([g for g, _ in waiting], np.int64)


def pair_cost_of(layers: int, heads: int, head_dim: int, parameters: int) -> float:
    """Work of one (query, key) pair of all layers, in tokens: 4 * layers * heads * head_dim FLOPs (the dot product and
    its share of the weighted sum, a multiplication and an addition for each component) over the 2 FLOPs of each of the
    `parameters` of the layers that a token takes.

    The counts are those of Kaplan et al. 2020, section 2.1, and of PyTorch's FLOP counter; backward and recomputation
    multiply both alike. Sliding windows are ignored, so such layers count as if they saw everything.
    """
    return 4 * layers * heads * head_dim / (2 * parameters)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The rank and microbatch of each unit (a prompt group or a piece of one) of a global batch."""

    slot: np.ndarray
    """int64 [U]: rank * microbatches + microbatch of each unit"""
    microbatches: int
    """Of each rank"""
    duration: float
    """Load of the step if the ranks wait for one another at every microbatch"""


def split(
    lengths: Lengths, items: np.ndarray, *, layout: Layout, pair_cost: float, ranks: int, max_tokens: int
) -> list[list[np.ndarray]]:
    """Split a global batch, `items` int64 [N], into [rank][microbatch] arrays of them, every rank with the same number.

    The unit is the prompt group, cut where it is over `max_tokens` or `SEGMENTS`. Its load is its tokens plus
    `pair_cost` times its (query, key) pairs: longest unit first onto the lightest microbatch, as few of them as fit
    (where they are 64 or more, up to 2 % more). A group heavier than the mean load of a microbatch, or nearly
    (`SHARES`), is cut too, and its prompt computed in each piece, where that makes the step shorter; it never does on
    one rank, except under padded, which shares nothing. A pure function, the same on every rank. Raises ValueError
    where one item alone is over the budget, which is exact; what a batch takes is at most what is counted (`joined`).
    """
    unit = np.unique(lengths.group[items], return_inverse=True)[1]
    counts = count(lengths, items, unit, int(unit.max(initial=-1)) + 1, layout)
    unit, counts = _cut(lengths, items, layout, unit, counts, lambda units: _fill(units, max_tokens))
    if (largest := counts.tokens.max(initial=0)) > max_tokens:
        hint = f"one pair takes {largest} tokens; raise the budget, or lower {flag('data.max_length')}"
        raise UserError("batch.max_tokens", max_tokens, hint)
    plan = _plan(counts, layout, pair_cost, ranks, max_tokens)
    mean = counts.load(pair_cost).sum() / (ranks * plan.microbatches)
    for share in SHARES:
        whole = counts.load(pair_cost)[np.bincount(unit) == 1].max(initial=0)
        if plan.duration <= NEAR * max(whole, mean * plan.microbatches):
            break

        def times(units: Counts, limit: float = share * mean) -> np.ndarray:
            return np.maximum(_fill(units, max_tokens), units.load(pair_cost) / limit)

        finer, of_finer = _cut(lengths, items, layout, unit, counts, times)
        other = _plan(of_finer, layout, pair_cost, ranks, max_tokens)
        if other.duration < plan.duration:
            unit, counts, plan = finer, of_finer, other
    slot = plan.slot[unit]
    ends = np.cumsum(np.bincount(slot, minlength=ranks * plan.microbatches)).tolist()
    dealt = items[np.argsort(slot, kind="stable")]
    parts = [dealt[start:end] for start, end in pairwise([0, *ends])]
    return [parts[start : start + plan.microbatches] for start in range(0, len(parts), plan.microbatches)]


def _cut(
    lengths: Lengths,
    items: np.ndarray,
    layout: Layout,
    unit: np.ndarray,
    counts: Counts,
    times: Callable[[Counts], np.ndarray],
) -> tuple[np.ndarray, Counts]:
    """Cut units until none of several items is too large; `times` gives the size of each unit over the largest allowed.
    Returns the unit of each item, int64 [N], and what each unit computes."""
    while True:
        size = np.bincount(unit)
        pieces = np.clip(np.ceil(times(counts)).astype(np.int64), 1, size)
        if pieces.max(initial=1) == 1:
            return unit, counts
        # In the order of their tokens, so that what shares most stays together.
        order = np.lexsort((lengths.place[items].min(1), unit))
        inside = np.empty_like(order)
        inside[order] = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
        unit = (np.cumsum(pieces) - pieces)[unit] + inside * pieces[unit] // size[unit]
        counts = count(lengths, items, unit, int(pieces.sum()), layout)


def _fill(counts: Counts, max_tokens: int) -> np.ndarray:
    """How many times as large as a microbatch may be each is, float64 [P]; above 1 it is exactly too large."""
    return np.maximum(counts.tokens / max_tokens, counts.ends / SEGMENTS)


def _plan(counts: Counts, layout: Layout, pair_cost: float, ranks: int, max_tokens: int) -> _Plan:
    load = counts.load(pair_cost)
    microbatches = max(1, -(-int(counts.tokens.sum()) // (ranks * max_tokens)))
    while True:
        batch = _lightest_first(load, ranks * microbatches)
        batches = joined(counts, batch, ranks * microbatches, layout)
        if _fill(batches, max_tokens).max() <= 1:
            break
        microbatches += 1 + microbatches // 64
    slot, duration = _dealt(batches.load(pair_cost), ranks)
    return _Plan(slot=slot[batch], microbatches=microbatches, duration=duration)


def _lightest_first(load: np.ndarray, batches: int) -> np.ndarray:
    """int64 [U]: the microbatch of each unit; the heaviest unit first, each onto the lightest microbatch."""
    order = np.argsort(-load, kind="stable")
    heap = [(0.0, batch) for batch in range(batches)]
    batch_by_load = []
    for cost in load[order].tolist():
        light, batch = heap[0]
        heapq.heapreplace(heap, (light + cost, batch))
        batch_by_load.append(batch)
    of_unit = np.empty(len(load), np.int64)
    of_unit[order] = batch_by_load
    return of_unit


def _dealt(load: np.ndarray, ranks: int) -> tuple[np.ndarray, float]:
    """Assign ranks * M microbatches to ranks: those of similar load run in the same turn, the heaviest on the rank with
    the least load so far. Returns rank * M + turn of each, int64 [ranks * M], and the sum over the turns of the
    heaviest load."""
    turns = np.argsort(-load, kind="stable").reshape(-1, ranks)
    had, slot = np.zeros(ranks), np.empty(len(load), np.int64)
    for turn, batches in enumerate(turns):
        takers = np.argsort(had, kind="stable")
        slot[batches] = takers * len(turns) + turn
        had[takers] += load[batches]
    return slot, float(load[turns[:, 0]].sum())
