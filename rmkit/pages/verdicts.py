"""Statistics of right and wrong on pairs: intervals, calibration, McNemar's test. Needs numpy alone."""

from statistics import NormalDist

import numpy as np

LEVEL = 0.95
"""Coverage of every interval."""

BINS = 10
"""Bins of the reliability table, over probabilities from 0.5 to 1."""

STRATA = 10
"""Groups of like difference in length, at most; each of at least STRATUM pairs."""

STRATUM = 20

_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def wilson(correct: float, count: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson, 1927): right near 0 and 1 and for few pairs, unlike share +- 2 s.

    It assumes independent pairs; several pairs on one prompt are not, and the interval is too narrow for them.
    """
    share, whole = correct / count, count + _Z * _Z
    middle = (correct + _Z * _Z / 2) / whole
    half = _Z / whole * (count * share * (1 - share) + _Z * _Z / 4) ** 0.5
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == count else middle + half)


def sigmoid(d: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-d)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -d))


def calibration(difference: np.ndarray) -> dict:
    """Brier score, expected calibration error and reliability table of N >= 1 score differences.

    Every pair's label says "chosen", so sigmoid(difference) alone has nothing to be calibrated against. Each pair is
    taken as a forecast without orientation: the side with the higher score wins with probability c = sigmoid(|d|),
    in [0.5, 1], and it did (d > 0) or did not. A tie is c = 0.5 and right by half. Both orientations of every pair
    over [0, 1] would give the same numbers twice. Brier (1950): mean of (1 - p)^2, 0.25 for a coin. ECE (Guo et al.,
    2017): mean of |accuracy - c| over equal bins, weighted by their pairs.
    """
    confidence = sigmoid(np.abs(difference))
    right = np.where(difference == 0, 0.5, difference > 0)
    edges = np.linspace(0.5, 1.0, BINS + 1)
    which = np.clip(np.searchsorted(edges, confidence, "right") - 1, 0, BINS - 1)
    table, error = [], 0.0
    for b in range(BINS):
        inside = which == b
        count = int(inside.sum())
        row = {"low": float(edges[b]), "high": float(edges[b + 1]), "pairs": count}
        if count:
            stated, accuracy = float(confidence[inside].mean()), float(right[inside].mean())
            error += count * abs(accuracy - stated)
            # An interval needs whole successes; only a tie in the first bin is half a one.
            low, high = wilson(int(right[inside].sum()), count)
            row |= {"confidence": stated, "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
        table.append(row)
    return {
        "brier": float(np.mean(sigmoid(-difference) ** 2)),
        "ece": error / len(difference),
        "reliability": table,
    }


def length_controlled(right: np.ndarray, longer: np.ndarray) -> dict:
    """Accuracy on pairs whose length tells nothing of their label; None where there are no such pairs.

    `right`: bool [N]; `longer`: [N], length of chosen minus length of rejected. Pairs of unlike length are put in
    groups of like |longer| (quantiles). Within a group, those whose chosen side is the longer and those whose chosen
    side is the shorter are matched: all of the rarer kind count fully, the others less, so that both kinds weigh the
    same. A rule that goes by length alone then has 0.5, whichever lengths it prefers. Pairs of equal length count
    fully. Groups of one kind have no match: `left_out`. The interval is Wilson's for `effective` pairs, (sum of
    weights)^2 / sum of squared weights (Kish, 1965).

    Matching in coarse groups: Iacus, King and Porro, Political Analysis 20 (2012). AlpacaEval asks the same of answers
    by a regression (Dubois et al., arXiv:2404.04475); with weights no form of the dependence is assumed.
    """
    weight = np.ones(len(right))
    unlike, apart = longer != 0, np.abs(longer)
    if unlike.any():
        groups = int(np.clip(unlike.sum() // STRATUM, 1, STRATA))
        edges = np.quantile(apart[unlike], np.arange(1, groups) / groups)
        group = np.searchsorted(edges, apart, "left")
        for g in range(groups):
            kinds = [unlike & (group == g) & (longer * sign > 0) for sign in (1, -1)]
            fewest = min(int(kind.sum()) for kind in kinds)
            for kind in kinds:
                weight[kind] = fewest / max(1, int(kind.sum()))
    found = {"pairs": int((weight > 0).sum()), "left_out": int((weight == 0).sum())}
    if not found["pairs"]:
        return found | {"effective": 0.0, "accuracy": None, "accuracy_low": None, "accuracy_high": None}
    share, effective = float(np.average(right, weights=weight)), float(weight.sum() ** 2 / (weight**2).sum())
    low, high = wilson(share * effective, effective)
    return found | {"effective": effective, "accuracy": share, "accuracy_low": low, "accuracy_high": high}


def mcnemar(right: np.ndarray, other: np.ndarray) -> dict:
    """McNemar's exact test (1947) of two models' verdicts, bool [N] each, on the same pairs.

    Only the pairs that one model has right and the other wrong tell the models apart; if the models were equally good,
    each of these pairs would be a fair coin. `p_value` is two-sided and 1 where there is no such pair.
    """
    only, only_other = int((right & ~other).sum()), int((other & ~right).sum())
    return {
        "both_right": int((right & other).sum()),
        "only_first_right": only,
        "only_second_right": only_other,
        "both_wrong": int((~right & ~other).sum()),
        "accuracy_difference": (only - only_other) / len(right),
        "p_value": _two_sided(min(only, only_other), only + only_other),
    }


def _two_sided(few: int, throws: int) -> float:
    """Probability that one side of a fair coin comes up at most `few` times, for either side; in whole numbers."""
    ways, total = 1, 0
    for i in range(few + 1):
        total += ways
        ways = ways * (throws - i) // (i + 1)
    return min(1.0, 2 * total / 2**throws)
