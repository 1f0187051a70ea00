"""Rows of several responses (RM-Bench, RewardBench 2, RMB), put together again from the pairs that were scored."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ListRow:
    """A row with lists of responses."""

    file: str
    id: str
    """The row's own id, "" where it has none"""
    pairs: np.ndarray
    """int64 [chosen, rejected]: position among the scored pairs, -1 where one was dropped"""

    @property
    def whole(self) -> bool:
        """Whether all of its pairs were scored: a row that lacks one is measured nowhere."""
        return bool((self.pairs >= 0).all())


_PLACE = re.compile(r"(.*)/(\d+)>(\d+)", re.DOTALL)


def list_rows(source: Sequence[str], ids: Sequence[str], position: np.ndarray) -> list[ListRow]:
    """Rebuild the rows of response lists from their pairs, also those that lack one.

    All arguments have an entry for each of P preferences: `source` ("file:line") and `ids` ("ID/i>j", as data/forms.py
    writes them) name the row and the place in it; `position` int64 [P] is the index among the scored pairs, -1 where
    the pair was dropped. Rows of ranked responses have no pair i>i, and are left out by that.
    """
    cells: dict[tuple[str, str], dict[tuple[int, int], int]] = {}
    for p, (where, name) in enumerate(zip(source, ids, strict=True)):
        if match := _PLACE.fullmatch(name):
            cells.setdefault((where, match[1]), {})[int(match[2]), int(match[3])] = p
    rows = []
    for (where, row_id), by_place in cells.items():
        if all(i != j for i, j in by_place):
            continue
        shape = tuple(max(place) + 1 for place in zip(*by_place, strict=True))
        pairs = np.full(shape, -1)
        for place, p in by_place.items():
            pairs[place] = position[p]
        if pairs.size > 1:
            rows.append(ListRow(file=where.rpartition(":")[0], id=row_id, pairs=pairs))
    return rows


def part_rows(rows: Sequence[ListRow]) -> tuple[list[list[ListRow]], list[ListRow]]:
    """Split rows into those of style matrices, one list for each number of styles, and those of best of n.

    A file whose rows all have as many rejected as chosen responses, the same number, at least 2, holds styles.
    """
    files: dict[str, list[ListRow]] = {}
    for row in rows:
        files.setdefault(row.file, []).append(row)
    styles: dict[int, list[ListRow]] = {}
    best: list[ListRow] = []
    for of_file in files.values():
        shapes = {row.pairs.shape for row in of_file}
        chosen, rejected = shapes.pop()
        if not shapes and chosen == rejected:
            styles.setdefault(chosen, []).extend(of_file)
        else:
            best += of_file
    return [styles[k] for k in sorted(styles)], best
