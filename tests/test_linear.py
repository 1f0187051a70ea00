"""The linear head: its optimum, its folds, and that a margin has not seen its own prompt."""

import numpy as np
import pytest
from scipy import sparse

from rmkit.inspection import linear
from rmkit.pages.verdicts import sigmoid
from support.planted import features


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_the_gradient_is_zero_at_the_fit(form):
    x = np.random.default_rng(0).normal(size=(60, 4)) + 0.3
    w = linear.fit(form(x), 0.1)
    slope = -(x * sigmoid(-x @ w)[:, None]).mean(0) + 0.1 * w
    assert np.abs(slope).max() < 1e-4
    assert np.abs(w).max() > 0.1


def test_folds_hold_whole_groups_of_about_equal_size():
    group = np.random.default_rng(0).integers(0, 40, 300)
    fold = linear.deal(group, 5, 3)
    assert all(len(set(fold[group == g])) == 1 for g in np.unique(group))
    assert np.bincount(fold, minlength=5).min() > 30
    assert (fold == linear.deal(group, 5, 3)).all()
    assert (fold != linear.deal(group, 5, 4)).any()


def test_features_that_tell_nothing_give_an_accuracy_of_a_coin():
    """More features than pairs: fitted in sample they would give 1.0."""
    x = np.random.default_rng(1).normal(size=(200, 300))
    fitted = linear.cross_fitted(x, np.arange(200), 0)
    assert 0.38 < fitted.accuracy < 0.62


def test_a_label_that_only_its_own_prompt_tells_is_not_learned():
    """Each prompt has four pairs with one feature of its own: folds by pair would give 1.0, folds by prompt 0.5."""
    group = np.repeat(np.arange(50), 4)
    fitted = linear.cross_fitted(np.eye(50)[group], group, 0)
    assert (fitted.margin == 0).all()
    assert fitted.accuracy == 0.5


def test_planted_features_are_learned():
    x, flipped = features(400, 20, 0.0, 0)
    assert not flipped.any()
    assert linear.cross_fitted(x, np.arange(400), 0).accuracy > 0.97


def test_constant_features_are_no_division_by_zero():
    assert linear.cross_fitted(np.zeros((30, 3)), np.arange(30), 0).accuracy == 0.5
