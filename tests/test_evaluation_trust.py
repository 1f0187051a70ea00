"""Whether a model knows when it is wrong: areas and shares with a known answer, and the page that shows them."""

import numpy as np
import pytest
import torch

from rmkit.evaluation import figures, scores, trust
from rmkit.model.posterior import Posterior, posterior
from rmkit.storage.trust import Trust


def of(hidden: int) -> Posterior:
    return posterior(torch.eye(hidden).double(), torch.ones(hidden).double(), torch.ones(hidden).double())


def test_the_area_is_the_mean_error_of_the_surest():
    wrong = np.array([False, True, False, True])
    found = trust.risk_coverage(wrong, np.array([4.0, 3.0, 2.0, 1.0]))
    assert found["area"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert found["best"] == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    assert found["chance"] == 0.5
    assert found["curve"][-1] == {"coverage": 1.0, "accuracy": 0.5}


def test_pairs_that_are_equally_sure_count_with_their_mean_in_any_order():
    wrong = np.array([True, False, False, True, False])
    for order in (np.arange(5), np.arange(5)[::-1]):
        found = trust.risk_coverage(wrong[order], np.array([1.0, 1.0, 1.0, 0.5, 0.5])[order])
        assert found["area"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 3 + 1.5 / 4 + 2 / 5) / 5)


def test_auroc_by_hand():
    wrong = np.array([True, False, True, False])
    assert trust.auroc(wrong, np.array([3.0, 1.0, 2.0, 2.0])) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert trust.auroc(np.zeros(3, bool), np.ones(3)) is None, "one class only"
    assert trust.auroc(np.ones(3, bool), np.ones(3)) is None


@pytest.mark.parametrize(("sign", "all_are"), [(1.0, "right"), (-1.0, "wrong")])
def test_why_there_is_no_auroc_is_said(sign, all_are):
    rows = dict(figures._trusted(trust.measure(sign * np.arange(1.0, 4.0), None, None)))
    assert rows["AUROC of wrong"] == f"not known: all pairs are {all_are}"


def test_the_margin_has_an_auroc_without_a_posterior():
    found = trust.measure(np.array([3.0, -1.0, 2.0]), None, None)
    assert dict(figures._trusted(found))["AUROC of wrong"] == "1.000 by |margin|"


def test_the_temperature_mends_what_is_too_sure():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 3000)
    d = 3 * np.where(rng.random(3000) < 1 / (1 + np.exp(-true)), true, -true)
    made = of(2)
    found = trust.measure(d, np.full(3000, 0.5), Trust(temperature=3.0, temperature_with_se=2.9, posterior=made))
    before, after = (found["calibration"][name] for name in ("before", "temperature"))
    assert after["ece"] < 0.3 * before["ece"]
    assert after["loss"] < before["loss"]
    assert found["calibration"]["posterior"]["ece"] < 0.3 * before["ece"]
    # One standard error for all orders nothing, and the calibrated confidence as |margin| does.
    assert found["auroc_wrong"]["difference_se"] == 0.5
    assert found["auroc_wrong"]["confidence"] == found["auroc_wrong"]["margin"] > 0.6
    assert found["risk_coverage"]["confidence"]["area"] == found["risk_coverage"]["margin"]["area"]


def test_the_closing_table_says_what_the_temperature_was_fitted_on():
    margin = np.random.default_rng(0).normal(1, 2, 50)
    rows = dict(figures._trusted(trust.measure(margin, None, Trust(temperature=2.0, held_out_pairs=1234))))
    told = "fitted on 1,234 held-out pairs of training; on these very pairs it is a fit, not a forecast"
    assert rows["its temperature"] == told
    assert "its temperature" not in dict(figures._trusted(trust.measure(margin, None, None)))


def test_a_model_that_says_nothing_of_itself_is_judged_by_its_margins():
    found = trust.measure(np.array([1.0, -0.5, 0.0]), None, None)
    assert found["calibration"]["temperature"] is None
    assert found["calibration"]["posterior"] is None
    assert found["risk_coverage"]["confidence"] is None
    assert found["auroc_wrong"]["margin"] == 1.0


def test_sides_in_two_chunks():
    """Whatever the chunks, and where sides are shared, each pair gets its own error."""
    rng = np.random.default_rng(1)
    features, made = rng.normal(size=(11, 3)).astype(np.float32), of(3)
    sides = np.array([[0, 1], [1, 2], [10, 0], [4, 5], [5, 4], [9, 9]])
    order = np.array([4, 0, 10, 5, 1, 9, 2])
    for size in (1, 2, 3, 7):
        found = scores.Errors(made, sides, order)
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            found.add(chunk, features[chunk])
        wanted = made.difference_se(features[sides[:, 0]].astype(np.float64) - features[sides[:, 1]])
        np.testing.assert_allclose(found.se, wanted, rtol=1e-6)
        assert found._held == {}
