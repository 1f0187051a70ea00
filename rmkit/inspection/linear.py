"""Bradley-Terry logistic regression on feature differences, and its out-of-sample margins by cross-fitting.

A pair is x = features(preferred) - features(other) [N, H], dense or sparse; P(preferred wins) = sigmoid(x . w). It has
no intercept: exchanging the sides changes the sign of x. Minimised over w is

    mean over pairs of log(1 + exp(-x . w)) + l2 / 2 |w|^2

by L-BFGS (scipy). x is divided by the root mean square of its rows' norms, so that one grid of l2 fits all features.
Cross-fitting: the pairs are dealt into folds by prompt, so that no prompt has pairs in two, and the margins of a fold
come from a fit on the others; its l2 is the one that does best on a held-out part of those others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, sparse

from rmkit.pages.verdicts import sigmoid

FOLDS = 5
GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Values of l2, the strongest first: each fit starts where the one before ended"""
STEPS = 100
INNER = 4
"""One of so many parts of the training prompts chooses l2"""

Features = Any  # numpy array or scipy CSR matrix [N, H]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Out-of-sample margins of N pairs."""

    margin: np.ndarray
    """float64 [N]: x . w by a fit that has not seen the pair's prompt"""
    fold: np.ndarray
    """int64 [N]"""
    l2: list[float]
    """Of each fold"""

    @property
    def accuracy(self) -> float:
        return float(right(self.margin).mean())


def right(margin: np.ndarray) -> np.ndarray:
    """1 where a margin is positive, 0.5 at zero (nothing is known), 0 below; float64 [N]."""
    return np.where(margin == 0, 0.5, margin > 0)


def deal(group: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each pair, int64 [N]: whole groups, of about as many pairs each."""
    _, of, sizes = np.unique(group, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    fold = np.empty(len(sizes), np.int64)
    fold[order] = np.minimum(middle * folds / len(group), folds - 1).astype(np.int64)
    return fold[of]


def scaled(x: Features) -> Features:
    """x with rows of norm 1 in the root mean square; zero features stay as they are."""
    squares = x.multiply(x).sum() if sparse.issparse(x) else np.einsum("ij,ij->", x, x, dtype=np.float64)
    size = np.sqrt(squares / max(1, x.shape[0]))
    return x / size if size > 0 else x


def fit(x: Features, l2: float, start: np.ndarray | None = None) -> np.ndarray:
    """The weights w, float64 [H]."""
    n = max(1, x.shape[0])
    across = x.T.tocsr() if sparse.issparse(x) else x.T

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = np.asarray(x @ w.astype(x.dtype), np.float64)
        slope = -sigmoid(-margin) / n
        gradient = np.asarray(across @ slope.astype(x.dtype), np.float64) + l2 * w
        return float(np.logaddexp(0.0, -margin).mean() + l2 / 2 * (w @ w)), gradient

    start = np.zeros(x.shape[1]) if start is None else start
    return optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x


def best_l2(x: Features, group: np.ndarray, seed: int, grid: Sequence[float] = GRID) -> float:
    """The value of the grid whose fit has the lowest log-loss on a held-out part of the prompts."""
    held = deal(group, INNER, seed) == 0
    if held.all() or not held.any():
        return grid[0]
    inside, outside, w, losses = x[~held], x[held], None, []
    for l2 in grid:
        w = fit(inside, l2, w)
        losses.append(float(np.logaddexp(0.0, -np.asarray(outside @ w)).mean()))
        if losses[-1] > min(losses) * 1.05:  # weaker still would only be worse, and slower
            break
    return grid[int(np.argmin(losses))]


def cross_fitted(x: Features, group: np.ndarray, seed: int, folds: int = FOLDS) -> Fitted:
    """Margins of every pair by fits on the other folds. `group` int64 [N] is equal where the prompt is."""
    x, fold = scaled(x), deal(group, folds, seed)
    margin, chosen = np.zeros(x.shape[0]), []
    for k in range(folds):
        inside, out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        chosen.append(best_l2(x[inside], group[inside], seed + 1 + k) if len(inside) else GRID[0])
        if not len(inside) or not len(out):
            continue
        margin[out] = np.asarray(x[out] @ fit(x[inside], chosen[-1]))
    return Fitted(margin=margin, fold=fold, l2=chosen)
