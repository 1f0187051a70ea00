"""From a margin and its standard error to a probability, with a temperature that held-out pairs give.

The reward difference of a pair is Normal(d, s^2) under the posterior of the head (`rmkit.model.posterior`). The mean of
sigmoid over it is MacKay's approximation (1992, "The evidence framework applied to classification networks"), and a
temperature T (Guo et al. 2017, "On calibration of modern neural networks") divides d and s before it:

    p = sigmoid((d / T) / sqrt(1 + pi (s / T)^2 / 8)) = sigmoid(d / sqrt(T^2 + pi s^2 / 8))

Without a posterior s is 0, and p = sigmoid(d / T). That T is what vLLM's `logit_sigma` does to a score (it returns
(score - logit_mean) / logit_sigma, before any activation): differences of such scores are calibrated log odds.
"""

from collections.abc import Callable

import numpy as np

FEWEST = 30
"""Held-out pairs below which no temperature is fitted."""
LOW, HIGH = 1e-3, 1e3
"""Between these temperatures the best one is looked for."""


def probability(margin: np.ndarray, se: np.ndarray | float = 0.0, temperature: float = 1.0) -> np.ndarray:
    """The probability that the first of two responses is preferred, of margins d [N] with standard errors s [N]."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(margin, np.float64) / scale(se, temperature)))


def scale(se: np.ndarray | float, temperature: float) -> np.ndarray:
    """What a margin is divided by: sqrt(T^2 + pi s^2 / 8)."""
    return np.sqrt(temperature**2 + np.pi / 8 * np.square(np.asarray(se, np.float64)))


def loss(
    margin: np.ndarray, se: np.ndarray | float = 0.0, temperature: float = 1.0, target: np.ndarray | float = 1.0
) -> float:
    """Mean of -log p over pairs; where the chosen side is preferred with probability `target`, the mean over both."""
    z = np.asarray(margin, np.float64) / scale(se, temperature)
    return float(np.mean(target * np.logaddexp(0.0, -z) + (1.0 - target) * np.logaddexp(0.0, z)))


def temperature(margin: np.ndarray, target: np.ndarray | float = 1.0, se: np.ndarray | float = 0.0) -> float:
    """The temperature of the smallest `loss` on held-out margins [N].

    Raises ValueError, with what was found, where these pairs cannot tell one: there are fewer than `FEWEST`, the model
    has all of them right (any sharper one is better) or is no better than a coin (any flatter one is).
    """
    count = len(margin)
    if count < FEWEST:
        raise ValueError(f"{count} held-out pairs are too few, need {FEWEST}")
    preferred = np.where(np.broadcast_to(target, margin.shape) >= 0.5, margin, -margin)
    if np.all(preferred > 0.0):
        raise ValueError(f"all {count} held-out pairs are right, which any lower one would fit better")
    found = _best(lambda t: loss(margin, 0.0, t, target))
    if found > HIGH / 1.01 or not margin.any():
        raise ValueError(f"the scores tell no more of the {count} held-out pairs than a coin does")
    if found < LOW * 1.01:
        raise ValueError(f"the margins of the {count} held-out pairs are too small (mean {np.abs(margin).mean():.1e})")
    # With standard errors the best one may be as low as there is: they are then wide enough alone.
    return found if np.ndim(se) == 0 else _best(lambda t: loss(margin, se, t, target))


def _best(of: Callable[[float], float]) -> float:
    """The temperature of the smallest value of `of`."""
    from scipy.optimize import minimize_scalar  # takes most of a second to import, and labelling needs none of it

    bounds, within = np.log([LOW, HIGH]), {"xatol": 1e-6}
    logs = minimize_scalar(lambda log: of(np.exp(log)), bounds=bounds, method="bounded", options=within)
    return float(np.exp(logs.x))
