"""What needs no scipy, against scipy; calibration is tested where evaluations take it from (test_statistics.py)."""

import numpy as np
import pytest
from scipy import stats

from rmkit.pages import verdicts


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
