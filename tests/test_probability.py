import numpy as np
import pytest

from rmkit.model import probability as p


def held_out(count=4000, scale=1.0, seed=0):
    """Margins that are `scale` times the log odds by which the labels are drawn."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2, count)
    return scale * np.where(rng.random(count) < 1 / (1 + np.exp(-true)), true, -true)


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
def test_the_temperature_undoes_a_scale(scale):
    assert p.temperature(held_out(scale=scale)) == pytest.approx(scale, rel=0.1)


def test_it_has_the_smallest_loss():
    margin = held_out(scale=3.0)
    best = p.temperature(margin)
    assert all(p.loss(margin, 0.0, best) <= p.loss(margin, 0.0, best * by) for by in (0.9, 0.99, 1.01, 1.1))


def test_the_probability_is_the_mean_of_the_sigmoid_over_the_posterior():
    """MacKay's approximation is within 0.02 of it."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    for d, s in ((0.5, 0.3), (1.0, 1.0), (3.0, 2.0), (-2.0, 4.0)):
        mean = (weights / weights.sum()) @ (1 / (1 + np.exp(-(d + s * nodes))))
        assert p.probability(d, s) == pytest.approx(mean, abs=0.02)


def test_by_hand():
    assert p.probability(np.array([0.0, 2.0]), 0.0, 2.0) == pytest.approx([0.5, 1 / (1 + np.exp(-1))])
    s = np.sqrt(8 / np.pi)  # pi s^2 / 8 is 1
    assert p.probability(1.0, s) == pytest.approx(1 / (1 + np.exp(-1 / np.sqrt(2))))
    assert p.probability(np.array([1e4, -1e4])).tolist() == [1.0, 0.0]


def test_standard_errors_take_some_of_the_temperature():
    margin = held_out(scale=2.0)
    assert p.temperature(margin, 1.0, np.full(len(margin), 1.0)) < p.temperature(margin) - 0.05
    wide = p.temperature(margin, 1.0, np.full(len(margin), 50.0))
    assert wide < 1.1 * p.LOW, "wide enough alone: as low as there is, and still a number"


def test_ties_and_targets_count():
    """A tie pulls towards a half, whichever side is called chosen."""
    margin = np.abs(held_out(400)) * np.where(np.arange(400) % 8, 1, -1)
    ties = np.where(np.arange(400) % 2, 1.0, 0.5)
    assert p.temperature(margin, ties) > 1.2 * p.temperature(margin)
    np.testing.assert_allclose(p.temperature(margin, ties), p.temperature(np.where(ties == 0.5, -margin, margin), ties))


@pytest.mark.parametrize(
    ("margin", "why"),
    [
        (np.ones(29), "29 held-out pairs are too few, need 30"),
        (np.linspace(0.1, 2, 40), "all 40 held-out pairs are right, which any lower one would fit better"),
        (np.linspace(-2, -0.1, 40), "the scores tell no more of the 40 held-out pairs than a coin does"),
        (np.tile([1.0, -1.0], 20), "no more of the 40 held-out pairs than a coin"),
        (np.tile([1e-6, 1e-6, -1e-6], 20), "the margins of the 60 held-out pairs are too small"),
    ],
)
def test_held_out_pairs_that_cannot_tell_a_temperature(margin, why):
    with pytest.raises(ValueError, match=why):
        p.temperature(margin)
