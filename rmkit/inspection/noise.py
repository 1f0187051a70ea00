"""The share of pairs whose label is wrong, and the probability of each that its label is right, from margins that are
out of sample (`linear.cross_fitted`): positive where the head agrees with the label.

Two estimates. Both take what the features cannot tell for noise or for truth by an assumption, so both are checked on
planted flips (tests/campaigns/noise.py, bench/results/noise.json).

mixture: margins of right labels are Normal(m, s), of wrong ones Normal(-m, s), since exchanging the sides changes the
sign of a margin; the share e of wrong ones, m and s are fitted by expectation maximisation (Dempster, Laird and Rubin,
1977). P(right | d) = sigmoid(2 m d / s^2 + log((1 - e) / e)).

Neither is better than the head: with one that is right on 65 % of unseen pairs, 10 % of planted flips came out as 2 to
6 % (mixture) and 28 to 31 % (confident); with one that is right on 97 %, as 9 to 10 % and 10 to 11 %. What holds
always, if labels are flipped at random: no judge agrees with more than 1 - e of them, so e is at most 1 - accuracy.

confident: confident learning (Northcutt, Jiang and Chuang, 2021, equations 1 and 2) on two classes that mirror each
other: the threshold t is the mean out-of-sample probability of the given label; a pair counts as right where that
probability is at least t, as wrong where that of the other label is; the estimate is wrong / (wrong + right).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from rmkit.pages.verdicts import sigmoid

LEAST, MOST = 1e-3, 0.5
"""Bounds of the share of wrong labels: at the lower one none was found, at more than half right and wrong would change
names"""
STEPS = 200
RESAMPLED = 100
"""Bootstrap samples of prompts for an interval"""


def mixture(margin: np.ndarray) -> tuple[float, float, float]:
    """e, m and s of the two mirrored normal distributions of float [N] margins."""
    e, m = 0.1, max(1e-6, float(np.abs(margin).mean()))
    s = max(1e-6, float(margin.std()))
    for _ in range(STEPS):
        is_right = right_given(margin, e, m, s)
        before = e
        e = float(np.clip(1 - is_right.mean(), LEAST, MOST))
        m = max(1e-9, float(((2 * is_right - 1) * margin).mean()))
        # E (d -+ m)^2 with the sign that each component gives it
        s = max(1e-6, float(np.sqrt(max(0.0, (margin**2).mean() - m * m))))
        if abs(e - before) < 1e-7:
            break
    return e, m, s


def none_found(share: float) -> bool:
    """Whether a share that `mixture` gave stands at its lower bound: it is then no estimate, and P(right | d) by it is
    near 1 for every pair, however wrong the head finds its label."""
    return share <= LEAST


def right_given(margin: np.ndarray, e: float, m: float, s: float) -> np.ndarray:
    """P(label is right | margin), float64 [N]."""
    return sigmoid(2 * m * margin / s**2 + np.log((1 - e) / e))


def confident(margin: np.ndarray) -> float:
    """The share of wrong labels by confident learning."""
    given = sigmoid(margin)
    threshold = given.mean()
    wrong, right = (1 - given >= threshold).sum(), (given >= threshold).sum()
    return float(wrong / max(1, wrong + right))


def estimate(margin: np.ndarray, group: np.ndarray, seed: int) -> dict[str, Any]:
    """Both estimates, each with the 95 % interval of a bootstrap over prompts (percentiles), and the range of both.

    An interval is given the margins: that another model's margins would differ is not in it. Where the model was
    trained on these very pairs the mixture's missed the planted share in six cases of six; the range of both held it
    there, and wherever noise was planted (bench/results/noise.json).
    """
    found = {
        "mixture": _with_interval(lambda d: mixture(d)[0], margin, group, seed),
        "confident": _with_interval(confident, margin, group, seed),
    }
    low, high = min(each["low"] for each in found.values()), max(each["high"] for each in found.values())
    return {**found, "low": low, "high": high}


def _with_interval(
    measure: Callable[[np.ndarray], float], margin: np.ndarray, group: np.ndarray, seed: int
) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    order = np.argsort(group, kind="stable")
    _, starts, sizes = np.unique(group[order], return_index=True, return_counts=True)
    found = []
    for _ in range(RESAMPLED):
        drawn = rng.integers(0, len(sizes), len(sizes))
        inside = np.repeat(starts[drawn] - np.cumsum(sizes[drawn]) + sizes[drawn], sizes[drawn])
        found.append(measure(margin[order[inside + np.arange(sizes[drawn].sum())]]))
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return {"share": measure(margin), "low": low, "high": high}
