import math

import pytest

from rmkit.data.fields import MOST, entries, name, names, number, show, text
from rmkit.errors import plain


@pytest.mark.parametrize("wrong", [True, False, "0.5", None, [1], math.nan, math.inf, -math.inf, 10**400])
def test_a_number_is_finite_and_no_boolean_or_text(wrong):
    with pytest.raises(ValueError, match=r"field 'margin': found .*need a finite number"):
        number(wrong, "margin")


def test_number_holds_its_bounds_and_says_them():
    assert number(0, "target", 0.0, 1.0) == 0.0
    assert number(1, "target", 0.0, 1.0) == 1.0
    with pytest.raises(ValueError, match=r"field 'target': found 1.5, need a finite number in \[0, 1\]"):
        number(1.5, "target", 0.0, 1.0)
    with pytest.raises(ValueError, match="field 'weight': found -1, need a finite number of at least 0"):
        number(-1, "weight", 0.0)


def test_text_entries_and_names():
    assert text("", "x") == ""
    assert name(7, "id") == "7"
    assert name(None, "id") == ""
    with pytest.raises(ValueError, match="field 'id': found True"):
        name(True, "id")
    with pytest.raises(ValueError, match="field 'ranks': found an empty list"):
        entries([], "ranks")


def test_what_was_found_stays_on_one_short_line():
    for value in ("x\n" * 500, ["x"] * 500, {"a": 1}, 10**300):
        assert len(show(value)) < 130
        assert "\n" not in show(value)


def test_a_list_without_measure_is_refused():
    """Kilobytes of gzip can hold millions of empty responses."""
    assert len(entries([""] * MOST, "responses")) == MOST
    with pytest.raises(ValueError, match="field 'responses': found a list with 65537 entries, need at most 65536"):
        entries([""] * (MOST + 1), "responses")


def test_names_of_fields_are_shown_without_what_moves_the_cursor():
    assert names({"a\x1b[31m": 1, "b": None, "\ud800": 2}) == "a\\x1b[31m, \\ud800"
    assert names({str(i): i for i in range(99)}).endswith("29 and 69 more")
    assert len(names({"x" * 5000: 1})) == 50
    assert plain("\u00fc\n\t\x07") == "\u00fc\n\\t\\x07"
