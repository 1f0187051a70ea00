"""Whether a model knows when it is wrong: calibration before and after its temperature, accuracy by confidence.

d is a pair's margin, s its standard error under the posterior of the head, T the temperature of training
(`rmkit.model.probability`). Three numbers may say how sure the model is of a pair: |d|, which every model has; the
calibrated confidence, that is |d| / sqrt(T^2 + pi s^2 / 8); and s alone. A tie counts as wrong, as everywhere.
"""

import numpy as np
from scipy import stats

from rmkit.evaluation import statistics
from rmkit.model.probability import loss, scale
from rmkit.storage.trust import Trust

POINTS = 20
"""Points of the risk-coverage curve."""


def measure(margin: np.ndarray, se: np.ndarray | None, trust: Trust | None) -> dict:
    """The figures of N >= 1 margins, with their standard errors [N] and the model's temperatures where it has them."""
    d, wrong = margin.astype(np.float64), ~(margin > 0)
    calibrated: dict[str, dict | None] = {"before": calibration(d), "temperature": None, "posterior": None}
    sure: dict[str, np.ndarray | None] = {"margin": np.abs(d), "confidence": None, "difference_se": None}
    if trust is not None and trust.temperature is not None:
        calibrated["temperature"] = calibration(d / trust.temperature)
    if se is not None:
        z = d / scale(se, trust.temperature_with_se or 1.0)
        calibrated["posterior"] = calibration(z)
        sure |= {"confidence": np.abs(z), "difference_se": -se.astype(np.float64)}
    return {
        "temperature": trust and trust.temperature,
        "temperature_with_se": trust and trust.temperature_with_se,
        "temperature_pairs": trust.held_out_pairs if trust else 0,
        "calibration": calibrated,
        "risk_coverage": {by: None if x is None else risk_coverage(wrong, x) for by, x in sure.items()},
        "auroc_wrong": {by: None if x is None else auroc(wrong, -x) for by, x in sure.items()},
    }


def calibration(log_odds: np.ndarray) -> dict:
    """Mean -log p of the label, Brier score and expected calibration error of stated log odds [N]."""
    found = statistics.calibration(log_odds)
    return {"loss": loss(log_odds), "brier": found["brier"], "ece": found["ece"]}


def risk_coverage(wrong: np.ndarray, sure: np.ndarray) -> dict:
    """The share of wrong pairs among the surest ones, for every share of the pairs that is kept, and the area under it.

    AURC, the mean over k of the errors among the k surest pairs (Geifman, Uziel and El-Yaniv 2019): small where what is
    wrong is what is unsure. `chance` is the area of an order that knows nothing, `best` of one that has all wrong pairs
    last. Pairs that are equally sure count with their mean.
    """
    _, tied = np.unique(-sure, return_inverse=True)
    of_tied = np.bincount(tied, wrong) / np.bincount(tied)
    count = np.arange(1, len(wrong) + 1)
    risk = np.cumsum(of_tied[np.sort(tied)]) / count
    at = np.unique(np.ceil(np.linspace(0, 1, POINTS + 1)[1:] * len(wrong)).astype(int))
    return {
        "area": float(risk.mean()),
        "chance": float(wrong.mean()),
        "best": float((np.cumsum(np.sort(wrong)) / count).mean()),
        "curve": [{"coverage": float(k / len(wrong)), "accuracy": float(1.0 - risk[k - 1])} for k in at.tolist()],
    }


def auroc(wrong: np.ndarray, unsure: np.ndarray) -> float | None:
    """The probability that a wrong pair is less sure than a right one, ties by half; None where there are not both."""
    if wrong.all() or not wrong.any():
        return None
    statistic = stats.mannwhitneyu(unsure[wrong], unsure[~wrong]).statistic
    return float(statistic / (wrong.sum() * (~wrong).sum()))
