"""Lengths and shared prefixes of all sequences, from which the planner counts the tokens of any batch.

The sequences of a prompt group are sorted once, by their tokens. Then the prefix that any two of them share is the
shortest of the neighbours' prefixes between them in that order, so the trie of any part of a group is counted exactly
from lengths alone: no token is read again.

Letters: N items, W sequences of each (a pair has 2, a lone sequence 1), P parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rmkit.batch.trie import common_prefix, sort_key
from rmkit.config import Layout


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of the N * W sequences of N items, and the prefix that each shares with its predecessor, in sorted order.

    The order is by group, and within a group by tokens, so that sequences that share most are neighbours. 32 bytes a
    pair, `group` included.
    """

    group: np.ndarray
    """int64 [N]: equal where the prompt is equal"""
    place: np.ndarray
    """int32 [N, W]: place of each sequence of an item in that order"""
    length: np.ndarray
    """int32 [N * W], by place: tokens"""
    prefix: np.ndarray
    """int32 [N * W], by place: tokens shared with the predecessor; 0 for the first of a group"""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sequences, tokens and attention of P parts of the data under a layout; int64 [P] each."""

    sequences: np.ndarray
    ends: np.ndarray
    """Distinct end tokens of the row, which are at least its segments"""
    longest: np.ndarray
    """Tokens of the longest sequence"""
    tokens: np.ndarray
    """Positions of the row, padding included"""
    keys: np.ndarray
    """(query, key) pairs of one head: a token at position p attends to p + 1 keys"""

    def load(self, pair_cost: float) -> np.ndarray:
        """Compute in units of tokens, float64 [P]; one (query, key) pair costs `pair_cost` tokens."""
        return self.tokens + pair_cost * self.keys


def measure(
    columns: Sequence[Sequence[np.ndarray]], length: np.ndarray, group: np.ndarray, shared: np.ndarray | None = None
) -> Lengths:
    """Sort each group's sequences and measure the prefixes that neighbours share.

    `columns` are W columns of N token sequences, `length` int [N, W] their lengths, `group` int64 [N]. `shared` int
    [N], for W = 2 only, holds how many tokens an item's two sequences share: groups of one item are then not read.
    """
    n, width = length.shape
    items = np.argsort(group, kind="stable")
    bounds = np.ones(n + 1, bool)
    bounds[1:-1] = np.diff(group[items]) != 0
    first, last = bounds[:-1], bounds[1:]
    place = np.empty((n, width), np.int32)
    place[items] = np.arange(n * width, dtype=np.int32).reshape(n, width)
    by_place = length[items].astype(np.int32, copy=False).ravel()
    prefix = np.zeros(n * width, np.int32)
    known = first & last & (width == 1 or shared is not None)
    if shared is not None:
        assert width == 2
        prefix[1::2][known] = shared[items[known]]
    starts, ends = np.flatnonzero(first & ~known), np.flatnonzero(last & ~known) + 1
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        members = items[start:end]
        sequences = [column[i] for i in members.tolist() for column in columns]
        keys = [sort_key(s) for s in sequences]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        here = slice(start * width, end * width)
        place[members] = start * width + np.argsort(order).reshape(-1, width)
        by_place[here] = [len(sequences[k]) for k in order]
        prefix[here] = [0, *(common_prefix(sequences[a], sequences[b]) for a, b in pairwise(order))]
    return Lengths(group=group, place=place, length=by_place, prefix=prefix)


def count(lengths: Lengths, items: np.ndarray, part: np.ndarray, parts: int, layout: Layout) -> Counts:
    """Count what each part computes; `part` int64 [n] is the part, of `parts`, that each of the n `items` belongs to.

    A part lies within one group, and no item occurs twice. Only sharing within a part counts. Exact under every layout;
    a batch of several parts takes at most their sum (`joined`).
    """
    place = lengths.place[items].ravel()
    of = np.repeat(part, lengths.place.shape[1])
    order = np.lexsort((place, of))
    place, of = place[order], of[order]
    length = lengths.length[place].astype(np.int64)
    shared = _shared(lengths.prefix, place, of) if layout == "trie" else np.zeros_like(length)
    again = np.zeros(len(length), bool)  # equal to the sequence before it
    again[1:] = (of[1:] == of[:-1]) & (length[1:] == length[:-1]) & (shared[1:] == length[1:])
    longest = np.zeros(parts, np.int64)
    np.maximum.at(longest, of, length)
    sums = Counts(
        sequences=np.bincount(of, minlength=parts),
        ends=np.bincount(of[~again], minlength=parts),
        longest=longest,
        tokens=_sums(length - shared, of, parts),
        keys=_sums((length * (length + 1) - shared * (shared + 1)) // 2, of, parts),
    )
    return _rectangles(sums) if layout == "padded" else sums


def joined(counts: Counts, batch: np.ndarray, batches: int, layout: Layout) -> Counts:
    """Count what each of `batches` batches of parts computes; `batch` int64 [P] is the batch of each part.

    An upper bound under trie, since parts may share tokens too: the preamble of a template, the prompt of a group that
    was cut. Exact under the other layouts.
    """
    longest = np.zeros(batches, np.int64)
    np.maximum.at(longest, batch, counts.longest)
    sums = Counts(
        sequences=_sums(counts.sequences, batch, batches),
        ends=_sums(counts.ends, batch, batches),
        longest=longest,
        tokens=_sums(counts.tokens, batch, batches),
        keys=_sums(counts.keys, batch, batches),
    )
    return _rectangles(sums) if layout == "padded" else sums


def _shared(prefix: np.ndarray, place: np.ndarray, of: np.ndarray) -> np.ndarray:
    """int64 [S]: tokens that each sequence shares with the one before it in its part; `place` rises within each."""
    shared = prefix[place].astype(np.int64)
    first = np.ones(len(place), bool)
    first[1:] = of[1:] != of[:-1]
    shared[first] = 0
    skipped = np.flatnonzero(~first[1:] & (np.diff(place) > 1)) + 1
    if len(skipped):  # sequences of the group that stand between the two are elsewhere: the least of their prefixes
        between = (place[skipped] - place[skipped - 1]).astype(np.int64)
        starts = np.cumsum(between) - between
        at = np.repeat(place[skipped - 1] + 1 - starts, between) + np.arange(between.sum())
        shared[skipped] = np.minimum.reduceat(prefix[at], starts)
    return shared


def _sums(values: np.ndarray, of: np.ndarray, parts: int) -> np.ndarray:
    # float64 sums of integers, exact up to 2**53
    return np.bincount(of, weights=values, minlength=parts).astype(np.int64)


def _rectangles(sums: Counts) -> Counts:
    n = sums.longest
    return Counts(
        sequences=sums.sequences,
        ends=np.zeros_like(n),  # no segments
        longest=n,
        tokens=sums.sequences * n,
        keys=sums.sequences * (n * (n + 1) // 2),
    )
