"""Lengths, sources, subsets, scripts and oddities of all pairs, from their facts."""

from typing import Any

import numpy as np

from rmkit.inspection.facts import Facts
from rmkit.inspection.linear import right
from rmkit.inspection.oddities import BIT, ODDITIES
from rmkit.inspection.tokens import quantiles

MOST_SUBSETS = 50
"""Subsets that are listed, the largest; the others are one line"""


def measure(facts: Facts) -> dict[str, Any]:
    """Everything here, as inspect.json holds it."""
    return {
        "lengths": lengths(facts),
        "sources": table(facts, facts["source"], facts.sources.list),
        "subsets": table(facts, facts["subset"], facts.subsets.list),
        "scripts": table(facts, facts["script"], facts.scripts.list),
        "oddities": oddities(facts),
    }


def lengths(facts: Facts) -> dict[str, dict[str, float]]:
    """Quantiles of characters and of turns (messages of prompt and answer)."""
    names = ("characters_prompt", "characters_chosen", "characters_rejected", "turns")
    return {name: quantiles(facts[name]) for name in names}


def table(facts: Facts, code: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """A row for each name: pairs, their share, ties, median characters of both answers, accuracy of 'longer wins'."""
    counts = np.bincount(code, minlength=len(names))
    largest = np.argsort(-counts, kind="stable")
    parts = [(names[k] or "(none)", code == k) for k in largest[:MOST_SUBSETS].tolist()]
    if len(largest) > MOST_SUBSETS:
        others = largest[MOST_SUBSETS:]
        parts.append((f"{len(others):,} others", np.isin(code, others)))
    longer = facts["preferred"] * (facts["characters_chosen"] - facts["characters_rejected"])
    decided = facts["preferred"] != 0
    rows = []
    for name, inside in parts:
        rows.append(
            {
                "name": name,
                "pairs": int(inside.sum()),
                "share": float(inside.mean()),
                "ties": int((inside & ~decided).sum()),
                "characters_chosen": float(np.median(facts["characters_chosen"][inside])),
                "characters_rejected": float(np.median(facts["characters_rejected"][inside])),
                "longer_wins": float(right(longer[inside & decided]).mean()) if (inside & decided).any() else None,
            }
        )
    return rows


def oddities(facts: Facts) -> dict[str, dict[str, Any]]:
    """What was found of each oddity: how many pairs, what it means, and where the first ones are."""
    found = {}
    for name, bit in BIT.items():
        rows = np.flatnonzero(facts["flags"] & bit)
        if len(rows):
            found[name] = {"pairs": len(rows), "what": ODDITIES[name], "examples": facts.places(rows[:3])}
    return found
