"""Which subsets hurt: what the pairs of one subset do to accuracy on the pairs of the others.

The head is cross-fitted twice on the same folds, with and without the subset's pairs among those it is fitted on, and
judged on the pairs of all other subsets. The interval of the difference is by prompt, over pairs judged by both fits.
Each is of 95 % alone, by which one of twelve harmless subsets would seem to hurt in a quarter of all files. `hurts`
asks more: an interval of 1 - 0.05 / tried (Bonferroni) above zero.
"""

from statistics import NormalDist
from typing import Any

import numpy as np

from rmkit.inspection.linear import FOLDS, Fitted, fit, right, scaled

MOST = 12
"""Subsets that are tried, the largest"""
FEWEST = 20
"""Pairs of a subset, and of the others, below which nothing is tried"""
_Z = NormalDist().inv_cdf(0.975)


def measure(
    x: np.ndarray, group: np.ndarray, subset: np.ndarray, names: list[str], fitted: Fitted, suspect: np.ndarray
) -> list[dict[str, Any]]:
    """A row for each subset, the most harmful first. `gain` is the accuracy on other subsets without it less that with
    it; None where a subset cannot be tried. `suspect` bool [N]."""
    rows, x = [], scaled(x)
    counts = np.bincount(subset, minlength=len(names))
    for code in np.argsort(-counts, kind="stable")[:MOST].tolist():
        inside = subset == code
        if not inside.any():
            continue
        row = {
            "name": names[code] or "(none)",
            "pairs": int(inside.sum()),
            "accuracy": float(right(fitted.margin[inside]).mean()),
            "suspects": int(suspect[inside].sum()),
        }
        rows.append(row | _without(x, group, inside, fitted))
    z = NormalDist().inv_cdf((1 + level(sum(row["gain"] is not None for row in rows))) / 2)
    for row in rows:
        row["hurts"] = row["gain"] is not None and row["gain"] - z / _Z * (row["gain"] - row["low"]) > 0
    return sorted(rows, key=lambda row: -(row["gain"] if row["gain"] is not None else -1.0))


def level(tried: int) -> float:
    """Coverage of each of so many intervals of which all hold with a probability of 95 %."""
    return 1 - 0.05 / max(1, tried)


def _without(x: np.ndarray, group: np.ndarray, inside: np.ndarray, fitted: Fitted) -> dict[str, Any]:
    others = ~inside
    if inside.sum() < FEWEST or others.sum() < FEWEST:
        return {"gain": None, "low": None, "high": None}
    margin = np.zeros(len(inside))
    for k in range(FOLDS):
        out = others & (fitted.fold == k)
        learned = others & (fitted.fold != k)
        if out.any() and learned.any():
            margin[out] = x[out] @ fit(x[learned], fitted.l2[k])
    gain = (right(margin) - right(fitted.margin))[others]
    _, of = np.unique(group[others], return_inverse=True)
    sums = np.bincount(of, weights=gain - gain.mean())
    spread = _Z * float(np.sqrt((sums**2).sum() * len(sums) / max(1, len(sums) - 1))) / len(gain)
    mean = float(gain.mean())
    return {"gain": mean, "low": mean - spread, "high": mean + spread}
