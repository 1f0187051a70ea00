"""What needs no scipy, against scipy; calibration is tested where evaluations take it from (test_statistics.py)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rmkit.pages import verdicts

relaxed = settings(deadline=None, max_examples=40)


@pytest.mark.parametrize("count", [1, 2, 7, 500, 100_000])
def test_wilson_is_scipys(count):
    for correct in {0, 1, count // 3, count - 1, count}:
        known = stats.binomtest(correct, count).proportion_ci(verdicts.LEVEL, method="wilson")
        assert verdicts.wilson(correct, count) == pytest.approx((known.low, known.high), abs=1e-12)
    assert verdicts.wilson(0, count)[0] == 0.0
    assert verdicts.wilson(count, count)[1] == 1.0


@pytest.mark.parametrize(("only", "other"), [(0, 0), (0, 1), (1, 1), (3, 10), (10, 3), (7, 8), (5000, 5200)])
def test_mcnemar_is_scipys_exact_test(only, other):
    right = np.array([True] * only + [False] * other + [True, True, False])
    against = np.array([False] * only + [True] * other + [True, True, False])
    found = verdicts.mcnemar(right, against)
    known = stats.binomtest(only, only + other).pvalue if only + other else 1.0
    assert found["p_value"] == pytest.approx(known, rel=1e-9)
    assert (found["only_first_right"], found["only_second_right"]) == (only, other)
    assert (found["both_right"], found["both_wrong"]) == (2, 1)
    assert found["accuracy_difference"] == (only - other) / len(right)


lengths = st.lists(st.integers(-6, 6), min_size=1, max_size=120)


@relaxed
@given(lengths, st.booleans())
def test_length_alone_has_one_half_at_like_length(longer, prefers):
    """Whatever the lengths, and whichever of them the rule prefers."""
    longer = np.array([n for n in longer if n] or [1])
    found = verdicts.length_controlled((longer > 0) == prefers, longer)
    assert found["pairs"] + found["left_out"] == len(longer)
    if found["pairs"]:
        assert found["accuracy"] == pytest.approx(0.5)
        assert found["accuracy_low"] < 0.5 < found["accuracy_high"]
    else:
        assert found["accuracy"] is None


@relaxed
@given(lengths, st.integers(0, 2**30))
def test_accuracy_at_like_length_is_that_of_random_matches(longer, seed):
    """In each group every pair of the rarer kind has one partner, any of the other kind with the same probability."""
    longer = np.array(longer)
    right = np.random.default_rng(seed).random(len(longer)) < 0.6
    unlike = np.abs(longer[longer != 0])
    groups = max(1, min(verdicts.STRATA, len(unlike) // verdicts.STRATUM))
    edges = [np.quantile(unlike, k / groups) for k in range(1, groups)] if len(unlike) else []
    total = count = 0.0
    for inside in {sum(edge < abs(n) for edge in edges) for n in longer}:
        kinds = [
            [r for r, n in zip(right, longer, strict=True) if n * sign > 0 and sum(e < abs(n) for e in edges) == inside]
            for sign in (1, -1)
        ]
        matches = min(map(len, kinds))
        count += 2 * matches
        total += sum(matches * np.mean(kind) for kind in kinds) if matches else 0
    total, count = total + right[longer == 0].sum(), count + (longer == 0).sum()
    found = verdicts.length_controlled(right, longer)
    assert found["accuracy"] == (pytest.approx(total / count) if count else None)


def test_a_model_that_reads_keeps_its_accuracy_and_its_interval_widens():
    rng = np.random.default_rng(0)
    longer = rng.integers(1, 400, 4000) * np.where(rng.random(4000) < 0.8, 1, -1)  # the longer one is chosen in 80 %
    blind = rng.random(4000) < 0.7
    found = verdicts.length_controlled(blind, longer)
    assert found["accuracy_low"] < 0.7 < found["accuracy_high"]
    assert found["effective"] < 4000
    biased = (rng.random(4000) < 0.7) | ((longer > 0) & (rng.random(4000) < 0.5))  # right more often if longer
    shares = [biased[longer > 0].mean(), biased[longer < 0].mean()]
    found = verdicts.length_controlled(biased, longer)
    assert found["accuracy_low"] < np.mean(shares) < found["accuracy_high"] < biased.mean()
    same = verdicts.length_controlled(blind, np.zeros(4000))
    assert (same["accuracy"], same["effective"]) == (blind.mean(), 4000)
