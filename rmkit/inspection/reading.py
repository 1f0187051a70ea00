"""Read the pairs of all sources once, in a stream: facts of every pair, and a sample of whole prompts with texts."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rmkit.data import cache, source
from rmkit.data.counts import Counts
from rmkit.errors import UserError
from rmkit.inspection.facts import Facts
from rmkit.terminal import Terminal

Row = dict[str, Any]
Say = Callable[[str], None]
SECONDS = 10.0
"""Between two lines of progress"""
SLACK = 1.25
"""A sample grows to this many times its size before it is cut: each cut sorts it."""


@dataclass(kw_only=True)
class Sample:
    """Pairs with their texts: those whose prompt has one of the lowest digests, so that prompts are whole, whatever
    their order. `most` pairs at most (0: all), but never less than one prompt."""

    most: int
    digests: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """Index of each among all pairs"""
    pairs: list[Row] = field(default_factory=list)
    _limit: int | None = None

    def add(self, digest: int, row: int, pair: Row) -> None:
        if self._limit is not None and digest > self._limit:
            return
        self.digests.append(digest)
        self.rows.append(row)
        self.pairs.append(pair)
        if self.most and len(self.pairs) > self.most * SLACK:
            self.cut()

    def cut(self) -> None:
        """Leave out the prompts of the highest digests until `most` pairs are left."""
        if not self.most or len(self.pairs) <= self.most:
            return
        digests = np.array(self.digests)
        values, counts = np.unique(digests, return_counts=True)
        self._limit = int(values[max(0, np.searchsorted(np.cumsum(counts), self.most, "right") - 1)])
        kept = np.flatnonzero(digests <= self._limit).tolist()
        self.digests, self.rows, self.pairs = (
            [part[i] for i in kept] for part in (self.digests, self.rows, self.pairs)
        )

    def first(self, most: int) -> "Sample":
        """A smaller sample of this one."""
        smaller = Sample(most=most, digests=list(self.digests), rows=list(self.rows), pairs=list(self.pairs))
        smaller.cut()
        return smaller


@dataclass(frozen=True, kw_only=True)
class Read:
    """What was read of all sources."""

    facts: Facts
    sample: Sample
    counts: Counts
    lines: list[str]
    """What was said of each source"""


def read(
    names: Sequence[str],
    split: source.Split,
    terminal: Terminal,
    *,
    columns: tuple[str, ...] = (),
    bad_rows: str = "drop",
    most: int = 0,
    look: Callable[[Row, int], None] | None = None,
) -> Read:
    """Read the pairs of `names` once; `look` is called with every pair and the digest of its prompt.

    Raises ValueError as `source.load` does, and where no pair is left.
    """
    facts, sample, counts, lines, renamed = Facts(), Sample(most=most), Counts(), [], False
    shown = began = time.perf_counter()
    for origin, rows in (each for name in names for each in source.sources_of(name, split, terminal.say)):
        report, kept = cache.empty_report(), 0
        for pair in cache.read(replace(origin, columns=columns, bad_rows=bad_rows), rows, report):
            kept += 1
            if not pair["compared"]:
                facts.rated += 1
                continue
            digest = facts.add(pair)
            sample.add(digest, len(facts) - 1, pair)
            if look is not None:
                look(pair, digest)
            if len(facts) % 1000 == 0 and (now := time.perf_counter()) - shown > SECONDS:
                shown = now
                terminal.say(f"read {len(facts):,} pairs  {len(facts) / (now - began):,.0f} pairs/s")
        counts.add(report, kept)
        renamed |= bool(report["columns"])
        lines.append(source.tell(origin.shown, kept, report, terminal.say))
    if columns and not renamed:
        raise UserError("data.columns", " ".join(columns), "no row has such a field")
    if not len(facts):
        alone = f"; {facts.rated} rated responses are compared with nothing" if facts.rated else ""
        raise UserError(f"data.{split}", None, f"no pair is left to look at ({'. '.join(lines)}{alone})")
    sample.cut()
    return Read(facts=facts, sample=sample, counts=counts, lines=lines)


def again(names: Sequence[str], split: source.Split, columns: tuple[str, ...], bad_rows: str) -> Iterator[Row]:
    """The pairs that `read` read, in the same order, without a word."""
    for origin, rows in (each for name in names for each in source.sources_of(name, split, lambda text: None)):
        whole = replace(origin, columns=columns, bad_rows=bad_rows)
        yield from (pair for pair in cache.read(whole, rows, cache.empty_report()) if pair["compared"])
