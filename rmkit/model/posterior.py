"""The posterior of the score head: how far the rewards could be otherwise, for all that the training pairs tell.

The last layer alone is treated as uncertain (a last-layer Laplace approximation: MacKay 1992, "A practical Bayesian
framework for backpropagation networks"; Daxberger et al. 2021, "Laplace Redux"; for reward models Yang et al. 2024,
"Bayesian reward models for LLM alignment"). The reward of an end state e [H] is w . e. A pair has the features
x = e_chosen - e_rejected and the likelihood sigmoid(w . x), so the head, at the weights w that training left, has

    w ~ Normal(w, P^-1),    P = alpha I + A,    A = sum over pairs of v p (1 - p) x x^T,    p = sigmoid(w . x - margin)

A does not depend on the target; v is the pair's weight. It is summed over a sample of the pairs and scaled to all that
were trained on. The prior Normal(0, I / alpha) has the alpha of the largest marginal likelihood, MacKay's evidence

    log p(pairs | alpha) = constant - alpha |w|^2 / 2 + (H log alpha - log det P) / 2

whose only maximum is where gamma(alpha) = sum over eigenvalues a of A of a / (a + alpha) is alpha |w|^2.

Two responses share the head's error, so the variance of their difference is x^T P^-1 x, not the sum of two. A reward
alone is only known up to a constant that is common to all, of which pairs tell nothing: its variance here is that of
its distance from the mean of the training responses, (e - mean)^T P^-1 (e - mean).

Letters: H hidden units, K kept directions, N rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FULL = 1024
"""Most directions that are kept: all of a head of so many hidden units, which is 8 MB."""
NEAR = 1.1
"""Beyond that so few directions are kept that no variance is off by more than this factor, if `FULL` are enough."""


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """A Gaussian over the head's weights. Its precision is U diag(precision) U^T + rest (I - U U^T)."""

    directions: Tensor
    """U, float64 [H, K]: orthonormal, the ones that pairs tell most of first"""
    precision: Tensor
    """float64 [K]"""
    rest: float
    """Precision of every direction that is not kept"""
    mean: Tensor
    """float64 [H]: mean end state of the training responses"""
    prior: float
    """alpha"""
    factor: float = 1.0
    """A variance is off by at most this factor for what is not kept; 1 where all is"""

    def covariance(self, features: np.ndarray) -> np.ndarray:
        """Covariance [N, N], float64, of the rewards of the features [N, H]."""
        inside, beyond = self._split(features)
        return (inside @ inside.T + beyond @ beyond.T).numpy()

    def variance(self, features: np.ndarray) -> np.ndarray:
        """Variance [N], float64, of the rewards of the features [N, H]: end states, or differences of two."""
        inside, beyond = self._split(features)
        return (inside.square().sum(1) + beyond.square().sum(1)).numpy()

    def reward_se(self, ends: np.ndarray) -> np.ndarray:
        """Standard error [N] of the rewards of end states [N, H], as distances from the mean training response."""
        return np.sqrt(self.variance(np.asarray(ends, np.float64) - self.mean.numpy()))

    def difference_se(self, differences: np.ndarray) -> np.ndarray:
        """Standard error [N] of the margins of pairs whose end states differ by [N, H]."""
        return np.sqrt(self.variance(differences))

    def _split(self, features: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features in units of standard deviation: along the kept directions [N, K], and what is left of them [N, H]
        (nothing, [N, 0], where all directions are kept)."""
        x = torch.from_numpy(np.asarray(features, np.float64))
        along = x @ self.directions
        inside = along / self.precision.sqrt()
        if self.directions.shape[0] == self.directions.shape[1]:
            return inside, x[:, :0]
        return inside, (x - along @ self.directions.T) / self.rest**0.5


def posterior(hessian: Tensor, weight: Tensor, mean: Tensor) -> Posterior:
    """The posterior of a head `weight` [H] from A [H, H] (`hessian`) and the mean end state [H]; all are float64.

    Raises ValueError where A or the head is zero or not finite: there is nothing to tell, and no evidence to weigh.
    """
    if not (torch.isfinite(hessian).all() and torch.isfinite(weight).all()):
        raise ValueError("the end states of some pairs are not finite")
    values, directions = torch.linalg.eigh(hessian)
    values, directions = values.flip(0), directions.flip(1)
    # What is below round-off of the largest one is not known to be there at all.
    values = torch.where(values > values[0] * len(values) * torch.finfo(values.dtype).eps, values, 0.0)
    if values[0] <= 0.0:
        raise ValueError("both sides of every pair have the same end state, or no pair is in doubt")
    if not weight.any():
        raise ValueError("all weights of the head are zero")
    alpha = evidence(values.numpy(), float(weight.square().sum()))
    precision = values + alpha
    kept = _kept(precision)
    last, least = float(precision[min(kept, len(values) - 1)]), float(precision[-1])
    return Posterior(
        directions=directions[:, :kept].contiguous(),
        precision=precision[:kept].contiguous(),
        # Between the largest and the smallest that is left out: off by the same factor for either at most.
        rest=(last * least) ** 0.5,
        mean=mean,
        prior=alpha,
        factor=(last / least) ** 0.5 if kept < len(values) else 1.0,
    )


def evidence(values: np.ndarray, norm: float) -> float:
    """The alpha of the largest evidence, from the eigenvalues [H] of A, one of them positive, and |w|^2 > 0.

    gamma(alpha) - alpha |w|^2 falls from the rank of A to below zero, so its root is the only one.
    """
    from scipy.optimize import brentq  # takes most of a second to import, and labelling needs none of it

    positive = values[values > 0]

    def surplus(log_alpha: float) -> float:
        alpha = np.exp(log_alpha)
        return float((positive / (positive + alpha)).sum() - alpha * norm)

    high = np.log(len(positive) / norm)  # gamma is below the rank
    low = high - 1.0
    while surplus(low) < 0.0:
        low -= 10.0
    return float(np.exp(brentq(surplus, low, high, xtol=1e-10)))


def _kept(precision: Tensor) -> int:
    """How many directions are kept of these, largest precision first."""
    if len(precision) <= FULL:
        return len(precision)
    off = (precision / precision[-1]).sqrt()  # by which the variance would be off if it were the first left out
    enough = torch.nonzero(off <= NEAR)
    return min(FULL, int(enough[0]))
