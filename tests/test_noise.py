"""Label noise that was planted is estimated, and the pairs that carry it are found."""

import numpy as np
import pytest

from rmkit.inspection import noise, report
from rmkit.inspection.linear import cross_fitted


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_mixture_finds_the_share_that_made_the_margins(share):
    rng = np.random.default_rng(0)
    wrong = rng.random(20000) < share
    margin = rng.normal(np.where(wrong, -2.0, 2.0), 1.0)
    e, m, s = noise.mixture(margin)
    assert (e, m, s) == (pytest.approx(share, abs=0.01), pytest.approx(2, abs=0.05), pytest.approx(1, abs=0.05))
    stated = 1 - noise.right_given(margin, e, m, s)
    for low, high in ((0, 0.2), (0.2, 0.8), (0.8, 1.01)):
        inside = (stated >= low) & (stated < high)
        assert wrong[inside].mean() == pytest.approx(stated[inside].mean(), abs=0.06)


def test_flipped_labels_are_estimated_from_cross_fitted_margins():
    from support.planted import features

    x, flipped = features(800, 12, 0.15, 1)
    margin = cross_fitted(x, np.arange(800), 0).margin
    found = noise.estimate(margin, np.arange(800), 0)
    assert found["mixture"]["low"] < flipped.mean() < found["mixture"]["high"] + 0.02
    assert found["confident"]["share"] == pytest.approx(flipped.mean(), abs=0.06)
    worst = np.argsort(margin)[: flipped.sum()]
    assert flipped[worst].mean() > 0.95


def test_the_range_is_of_both_estimates():
    margin = np.random.default_rng(0).normal(1, 1, 200)
    found = noise.estimate(margin, np.arange(200), 0)
    both = [found["mixture"], found["confident"]]
    assert found["low"] == min(each["low"] for each in both) < max(each["high"] for each in both) == found["high"]


@pytest.mark.parametrize(
    ("mixture", "confident", "apart"),
    [
        ((0.018, 0.014, 0.022), (0.267, 0.259, 0.274), True),  # trained on these very pairs, 20 % planted
        ((0.3, 0.28, 0.32), (0.1, 0.08, 0.12), True),
        ((0.101, 0.072, 0.13), (0.114, 0.09, 0.145), False),  # the intervals meet
        ((0.085, 0.083, 0.088), (0.099, 0.097, 0.102), False),  # they do not, and it makes no difference
        ((0.001, 0.001, 0.001), (0.0, 0.0, 0.0), False),
    ],
)
def test_estimates_that_exclude_each_other_are_told(mixture, confident, apart):
    names = ("share", "low", "high")
    found = {"mixture": dict(zip(names, mixture, strict=True)), "confident": dict(zip(names, confident, strict=True))}
    assert report.apart(found) == apart


def test_an_interval_is_by_prompts():
    margin = np.repeat(np.random.default_rng(0).normal(1, 1, 50), 8)
    alone = noise.estimate(margin, np.arange(400), 0)["confident"]
    together = noise.estimate(margin, np.repeat(np.arange(50), 8), 0)["confident"]
    assert together["high"] - together["low"] > 1.5 * (alone["high"] - alone["low"])


@pytest.mark.parametrize("centre", [4.0, 1.0])
def test_no_wrong_labels_are_no_share_of_them(centre):
    margin = np.random.default_rng(0).normal(centre, 1.0, 5000)
    assert noise.none_found(noise.mixture(margin)[0])


def test_margins_that_say_nothing_give_no_nan():
    for margin in (np.zeros(30), np.ones(30), -np.ones(30)):
        e, m, s = noise.mixture(margin)
        assert np.isfinite([e, m, s]).all()
        assert np.isfinite(noise.right_given(margin, e, m, s)).all()
