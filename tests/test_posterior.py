"""The posterior of the head, against brute force, refits and cases with a known answer."""

import numpy as np
import pytest
import torch
from scipy import optimize

from rmkit.model import posterior as module
from rmkit.model.posterior import evidence, posterior


def logistic(pairs: int, hidden: int, seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, H] whose side that is chosen is drawn with probability sigmoid(w . x), and that w [H]."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, spread, hidden)
    x = rng.normal(size=(pairs, hidden)) / np.sqrt(hidden)
    flip = rng.random(pairs) > 1 / (1 + np.exp(-x @ w))
    return np.where(flip[:, None], -x, x), w


def fitted(x: np.ndarray, alpha: float) -> np.ndarray:
    """The head of the largest posterior density under the prior Normal(0, I / alpha)."""

    def loss(w):
        z = x @ w
        value = np.logaddexp(0, -z).sum() + alpha / 2 * w @ w
        return value, -(x / (1 + np.exp(z))[:, None]).sum(0) + alpha * w

    return optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"gtol": 1e-9}).x


def hessian(x: np.ndarray, w: np.ndarray) -> torch.Tensor:
    p = 1 / (1 + np.exp(-x @ w))
    return torch.from_numpy((x * (p * (1 - p))[:, None]).T @ x)


def of(x: np.ndarray, w: np.ndarray, mean: np.ndarray | None = None) -> module.Posterior:
    mean = np.zeros(x.shape[1]) if mean is None else mean
    return posterior(hessian(x, w), torch.from_numpy(w), torch.from_numpy(mean))


def test_the_precision_is_the_second_derivative_of_the_losses_and_the_prior():
    x, w = logistic(60, 7)
    found = of(x, w)

    def loss(weights):
        losses = torch.nn.functional.softplus(-torch.from_numpy(x) @ weights).sum()
        return losses + found.prior / 2 * weights.square().sum()

    brute = torch.autograd.functional.hessian(loss, torch.from_numpy(w)).numpy()
    rebuilt = (found.directions * found.precision) @ found.directions.T
    np.testing.assert_allclose(rebuilt.numpy(), brute, rtol=1e-10, atol=1e-12 * np.abs(brute).max())
    others = np.random.default_rng(1).normal(size=(5, 7))
    np.testing.assert_allclose(found.covariance(others), others @ np.linalg.inv(brute) @ others.T, rtol=1e-9)
    np.testing.assert_allclose(found.variance(others), np.diag(found.covariance(others)), rtol=1e-12)


def test_one_hidden_unit_by_hand():
    """A = sum of x^2 / 4 at w near 0 is 1: gamma = 1 / (1 + alpha) = alpha w^2 has one positive root."""
    w = 2.0
    alpha = (np.sqrt(1 + 4 / w**2) - 1) / 2
    assert evidence(np.array([1.0]), w**2) == pytest.approx(alpha, rel=1e-8)
    found = posterior(torch.ones(1, 1).double(), torch.tensor([w]).double(), torch.tensor([3.0]).double())
    assert found.variance(np.array([[2.0]]))[0] == pytest.approx(4 / (1 + alpha), rel=1e-8)
    assert found.reward_se(np.array([[3.0], [5.0]])) == pytest.approx([0.0, 2 / np.sqrt(1 + alpha)], rel=1e-8)


def test_the_prior_has_the_largest_evidence_of_all():
    values, norm = np.array([50.0, 3.0, 0.2, 0.0, 0.0]), 2.5

    def log_evidence(alpha):
        return -alpha * norm / 2 + (np.log(alpha) - np.log(values + alpha)).sum() / 2

    best = evidence(values, norm)
    grid = np.exp(np.linspace(-12, 8, 4001))
    assert log_evidence(best) >= max(map(log_evidence, grid))


def test_a_pair_shares_the_error_of_the_head():
    """The error of a difference of two near responses is far below that of either."""
    x, w = logistic(200, 6)
    found = of(x, w)
    near = np.array([[3.0, 1, 0, 0, 0, 0], [3.0, 1.01, 0, 0, 0, 0]])
    assert found.difference_se(near[:1] - near[1:])[0] < 0.01 * found.reward_se(near).min()


def test_what_is_simulated_lies_within_the_stated_errors():
    """Over drawn heads from the prior, 95 % of margins of new pairs lie within 1.96 standard errors of the truth."""
    inside = []
    for seed in range(40):
        x, w = logistic(300, 12, seed, spread=2.0)
        at = fitted(x, 0.25)
        found = of(x, at)
        new = np.random.default_rng(seed + 1000).normal(size=(25, 12)) / np.sqrt(12)
        inside.append(np.abs(new @ (at - w)) < 1.96 * found.difference_se(new))
    assert 0.92 <= np.mean(inside) <= 0.98


def test_refits_of_the_head_on_bootstrap_samples_spread_as_it_says():
    x, _ = logistic(1500, 8, 3, spread=2.0)
    at = fitted(x, 0.25)
    found, rng = of(x, at), np.random.default_rng(5)
    refits = np.stack([fitted(x[rng.integers(0, len(x), len(x))], found.prior) for _ in range(60)])
    new = rng.normal(size=(50, 8))
    ratio = (new @ refits.T).std(1) / found.difference_se(new)
    assert ratio.min() > 1 / 1.5, ratio.min()
    assert ratio.max() < 1.5, ratio.max()


def test_more_hidden_units_than_pairs():
    """What no pair touches is as uncertain as the prior."""
    x, w = logistic(5, 40)
    found = of(x, w)
    beyond = np.linalg.svd(x)[2][10:11]
    np.testing.assert_allclose(found.variance(beyond), 1 / found.prior, rtol=1e-9)
    assert (found.variance(x) < (x * x).sum(1) / found.prior).all()


@pytest.mark.parametrize("full", [4, 24])
def test_few_directions_are_off_by_no_more_than_is_stated(full, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 60)) * np.exp(-np.arange(60) / 6)
    w = rng.normal(size=60)
    whole = of(x, w)
    monkeypatch.setattr(module, "FULL", full)
    few = of(x, w)
    assert few.directions.shape == (60, full) or (few.directions.shape[1] < full and few.factor <= module.NEAR)
    new = rng.normal(size=(300, 60))
    ratio = few.variance(new) / whole.variance(new)
    assert 1 / few.factor - 1e-9 <= ratio.min()
    assert ratio.max() <= few.factor + 1e-9
    assert (few.factor <= module.NEAR) == (full == 24), few.factor


def test_a_hidden_size_beyond_full_is_kept_in_part_and_near():
    """With the true limit: 1,100 hidden units and 80 pairs."""
    x, w = logistic(80, 1100)
    found = of(x, w)
    assert found.directions.shape[1] <= 81
    assert found.factor <= module.NEAR
    exact = np.linalg.inv(hessian(x, w).numpy() + found.prior * np.eye(1100))
    new = np.vstack([np.random.default_rng(2).normal(size=(4, 1100)), x[:4]])
    ratio = found.variance(new) / np.einsum("ni,ij,nj->n", new, exact, new)
    assert 1 / found.factor - 1e-9 <= ratio.min()
    assert ratio.max() <= found.factor + 1e-9


@pytest.mark.parametrize(
    ("a", "w", "why"),
    [
        (torch.zeros(3, 3), torch.ones(3), "both sides of every pair have the same end state"),
        (torch.eye(3), torch.zeros(3), "all weights of the head are zero"),
        (torch.eye(3) * torch.nan, torch.ones(3), "not finite"),
    ],
)
def test_where_there_is_nothing_to_tell(a, w, why):
    with pytest.raises(ValueError, match=why):
        posterior(a.double(), w.double(), torch.zeros(3).double())
