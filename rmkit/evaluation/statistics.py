"""Statistics of a reward model's scores: pure functions of numpy arrays that return plain values, ready for JSON.

Letters: N pairs, R rows, K styles. `chosen` and `rejected` are float [N], the scores of the two sides;
p = sigmoid(chosen - rejected) is the probability that the model gives to the label (Bradley and Terry, 1952).
A tie (equal scores) counts as wrong, as in HALOs and RewardBench; the number of ties is given beside it.
"""

import numpy as np
import torch
from scipy import stats

# Under their own names: whoever asks for a statistic of an evaluation finds it here.
from rmkit.pages.verdicts import calibration as calibration
from rmkit.pages.verdicts import length_controlled
from rmkit.pages.verdicts import mcnemar as mcnemar
from rmkit.pages.verdicts import sigmoid as sigmoid
from rmkit.pages.verdicts import wilson as wilson
from rmkit_kernels import bt_losses


def share(right: np.ndarray) -> dict:
    """How many of bool [N] are true, their share and its interval; both are None where N is 0."""
    correct, count = int(right.sum()), len(right)
    low, high = wilson(correct, count) if count else (None, None)
    return {
        "pairs": count,
        "correct": correct,
        "accuracy": correct / count if count else None,
        "accuracy_low": low,
        "accuracy_high": high,
    }


def losses(
    chosen: np.ndarray, rejected: np.ndarray, margin: np.ndarray, target: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Loss of each pair, float64 [N], as training has it: -log sigmoid(chosen - rejected) where the rows give no
    margin, target (NaN) or weight."""
    asked = (chosen, rejected, margin, np.where(np.isnan(target), 1.0, target), weight)
    return bt_losses(*(torch.from_numpy(np.asarray(x, np.float64)) for x in asked), center=0.0).numpy()


def summary(chosen: np.ndarray, rejected: np.ndarray, loss: np.ndarray) -> dict:
    """Key figures of N >= 1 pairs. Spreads are standard deviations over the pairs (divisor N)."""
    chosen, rejected = chosen.astype(np.float64), rejected.astype(np.float64)
    d = chosen - rejected
    calibrated = calibration(d)
    return {
        **share(d > 0),
        "ties": int((d == 0).sum()),
        "loss": float(loss.mean()),
        "margin_mean": float(d.mean()),
        "margin_std": float(d.std()),
        "chosen_mean": float(chosen.mean()),
        "chosen_std": float(chosen.std()),
        "rejected_mean": float(rejected.mean()),
        "rejected_std": float(rejected.std()),
        "brier": calibrated["brier"],
        "ece": calibrated["ece"],
    }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rho, in [-1, 1]; None where one side is constant, which has no ranks."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(a, b).statistic)


def length_bias(
    chosen: np.ndarray, rejected: np.ndarray, chosen_length: np.ndarray, rejected_length: np.ndarray
) -> dict:
    """How much the scores depend on the length of the responses, int [N] each, in any unit.

    `controlled`: accuracy where length tells nothing of the label (`length_controlled`).
    `longer_chosen` and `shorter_chosen`: accuracy where the preferred response is the longer or the shorter one; a
    model that looks at length alone has 1 and 0. `always_longer`: accuracy of picking the longer response, and
    `prefers_longer`: how often the model does so, both among pairs of unlike length. `rank_correlation`: of score and
    length over both sides of all pairs; `rank_correlation_in_pairs`: of score difference and length difference, each
    pair in both orientations, so that neither the prompt nor the label plays a part.
    """
    d = chosen.astype(np.float64) - rejected
    longer = chosen_length.astype(np.int64) - rejected_length
    unlike = longer != 0
    n = int(unlike.sum())
    return {
        "controlled": length_controlled(d > 0, longer),
        "longer_chosen": share(d[longer > 0] > 0),
        "shorter_chosen": share(d[longer < 0] > 0),
        "equal_length": len(d) - n,
        "always_longer": float((longer > 0).sum() / n) if n else None,
        "prefers_longer": float((d * longer > 0).sum() / n) if n else None,
        "rank_correlation": rank_correlation(
            np.concatenate([chosen, rejected]), np.concatenate([chosen_length, rejected_length])
        ),
        "rank_correlation_in_pairs": rank_correlation(np.concatenate([d, -d]), np.concatenate([longer, -longer])),
    }


def style_matrix(chosen: np.ndarray, rejected: np.ndarray) -> dict:
    """Accuracy [K, K] of R rows whose sides come in the same K styles, plainest first: scores float [R, K] each.

    Cell (i, j): chosen in style i against rejected in style j. easy: below the diagonal (the chosen one is the
    fancier), normal: on it, hard: above it; each the mean of its cells, as RM-Bench has it (arXiv:2410.16184).
    """
    matrix = (chosen[:, :, None] > rejected[:, None, :]).mean(0)
    k = len(matrix)
    return {
        "rows": len(chosen),
        "matrix": matrix.tolist(),
        "easy": float(matrix[np.tril_indices(k, -1)].mean()),
        "normal": float(np.diag(matrix).mean()),
        "hard": float(matrix[np.triu_indices(k, 1)].mean()),
        "average": float(matrix.mean()),
    }


def best_of_n(worst_chosen: np.ndarray, best_rejected: np.ndarray) -> dict:
    """Best-of-n accuracy of R rows: right where the lowest score of the chosen responses (usually one) is above the
    highest of the rejected ones, float [R] each. RewardBench 2 gives part of the point for a tie; here a tie is wrong,
    as everywhere."""
    counts = share(worst_chosen > best_rejected)
    return {"rows": counts.pop("pairs"), **counts, "ties": int((worst_chosen == best_rejected).sum())}
