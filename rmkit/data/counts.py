"""What became of the rows of the files, so that every row is accounted for.

rows = rows read + rows dropped          a row makes one pair, or several (lists), or none
pairs = pairs kept + pairs dropped
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

BAD = "bad rows"
"""The reason why a row that cannot be read is dropped"""


@dataclass(kw_only=True)
class Counts:
    """Rows and pairs of all sources; the report of each is added."""

    rows: int = 0
    rows_dropped: Counter[str] = field(default_factory=Counter)
    """By reason: they made no pair"""
    pairs: int = 0
    """Made by the other rows"""
    pairs_dropped: Counter[str] = field(default_factory=Counter)
    """By reason"""
    bad_rows: Counter[str] = field(default_factory=Counter)
    """Of the rows dropped those that cannot be read, by benchmark; "" for the others"""

    def add(self, report: dict[str, Any], kept: int) -> None:
        """Add the report of `cache.build` on a source of which `kept` pairs are left."""
        flaws = report["flaws"]
        self.rows += report["rows"]
        self.rows_dropped.update({why: n - flaws.get(why, 0) for why, n in report["dropped"].items()})
        self.pairs += kept + sum(flaws.values())
        self.pairs_dropped.update(flaws)
        if bad := report["dropped"].get(BAD):
            self.bad_rows[report["benchmark"]] += bad

    def as_dict(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        rows_dropped = {why: n for why, n in sorted(self.rows_dropped.items()) if n}
        pairs_dropped = {why: n for why, n in sorted(self.pairs_dropped.items()) if n}
        return {
            "rows": self.rows,
            "rows_read": self.rows - sum(rows_dropped.values()),
            "rows_dropped": rows_dropped,
            "pairs": self.pairs,
            "pairs_kept": self.pairs - sum(pairs_dropped.values()),
            "pairs_dropped": pairs_dropped,
        }


def in_words(counts: dict[str, Any], kind: Literal["rows", "pairs"]) -> str:
    """'120, of which 3 dropped (2 other split, 1 bad row)'."""
    dropped = counts[f"{kind}_dropped"]
    total = f"{counts[kind]:,}"
    if not dropped:
        return total
    reasons = "; ".join(f"{count:,} {why}" for why, count in dropped.items())
    return f"{total}, of which {sum(dropped.values()):,} dropped ({reasons})"
