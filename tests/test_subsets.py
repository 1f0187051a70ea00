"""A subset whose labels are turned is said to hurt, and none that is like the others."""

import numpy as np

from rmkit.inspection import subsets
from rmkit.inspection.linear import cross_fitted, scaled
from support.planted import features


def test_the_subset_with_turned_labels_hurts():
    x, _ = features(600, 30, 0.0, 0)
    subset = np.arange(600) % 3
    x[subset == 2] *= -1
    x[subset == 2] *= 1.5  # more than the two others together
    group = np.arange(600)
    fitted = cross_fitted(x, group, 0)
    rows = subsets.measure(x, group, subset, ["a", "b", "c"], fitted, fitted.margin < 0)
    assert [row["name"] for row in rows if row["hurts"]] == ["c"]
    assert rows[0]["name"] == "c"
    assert rows[0]["low"] > 0.0


def test_of_twelve_harmless_subsets_none_hurts_for_being_tried():
    alone, corrected = 0, 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(480, 10)) + 0.4 * np.eye(10)[0]
        subset, group = np.arange(480) % 12, np.arange(480)
        fitted = cross_fitted(x, group, seed)
        rows = subsets.measure(x, group, subset, list("abcdefghijkl"), fitted, fitted.margin < 0)
        alone += any(row["low"] > 0 for row in rows)
        corrected += any(row["hurts"] for row in rows)
    assert (alone > 0, corrected) == (True, 0)


def test_one_subset_alone_is_judged_at_95_per_cent():
    assert subsets.level(1) == subsets.level(0) == 0.95
    assert subsets.level(12) == 1 - 0.05 / 12


def test_small_subsets_are_not_judged():
    x, _ = features(60, 5, 0.0, 0)
    fitted = cross_fitted(scaled(x), np.arange(60), 0)
    rows = subsets.measure(x, np.arange(60), (np.arange(60) < 3).astype(int), ["", "b"], fitted, np.zeros(60, bool))
    assert {row["name"]: row["gain"] for row in rows} == {"(none)": None, "b": None}
