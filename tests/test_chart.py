"""Shapes stay inside the chart, ticks are round numbers in order."""

import re

import pytest

from rmkit.pages.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, chart, short


def of(ys, **how):
    line = Line(name="a", points=[(float(i), y) for i, y in enumerate(ys)], dots=["word"] * len(ys))
    return chart("t", [line], "x", "y", **how)


@pytest.mark.parametrize(
    "ys", [[1.0], [0.0, 0.0], [5.0, 5.0, 5.0], [-3.0, 7.0], [1e-9, 2e-9], [1e12, 3e12], [0.1, 0.2, 0.15], [-1e-300, 0]]
)
@pytest.mark.parametrize("log", [False, True])
def test_everything_lies_inside_the_axes(ys, log):
    drawn = of(ys, may_be_log=log)
    (shape,) = drawn.shapes
    assert len(shape["dots"]) == len(ys)
    for x, y, _ in shape["dots"]:
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM
    for ticks in (drawn.x_ticks, drawn.y_ticks):
        assert 2 <= len(ticks) <= 12
        assert len({words for _, words in ticks}) == len(ticks)
        places = [at for at, _ in ticks]
        assert places in (sorted(places), sorted(places, reverse=True))
    assert all(TOP - 1 <= at <= HEIGHT - BOTTOM + 1 for at, _ in drawn.y_ticks)


def test_a_higher_value_stands_higher_and_a_later_one_further_right():
    (shape,) = of([1.0, 3.0]).shapes
    (x0, y0, _), (x1, y1, _) = shape["dots"]
    assert x0 < x1
    assert y0 > y1
    assert shape["path"] == f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"


def test_only_a_wide_and_positive_range_is_logarithmic():
    assert "log" in of([0.1, 100.0], may_be_log=True).y_label
    assert [words for _, words in of([0.1, 100.0], may_be_log=True).y_ticks] == ["0.1", "1", "10", "100"]
    for ys in ([0.1, 1.0], [-1.0, 1000.0], [0.0, 1000.0]):
        assert "log" not in of(ys, may_be_log=True).y_label
    assert "log" not in of([0.1, 100.0]).y_label


def test_an_axis_reaches_what_it_is_asked_to():
    drawn = of([0.7, 0.8], y_range=(0.5, 1.0))
    assert [drawn.y_ticks[0][1], drawn.y_ticks[-1][1]] == ["0.5", "1"]


def test_bands_bars_and_columns():
    line = Line(name="a", points=[(0, 1), (1, 2)], band=[(0, 0, 2), (1, 1, 3)], bars=[(1, 1, 3)])
    drawn = chart("t", [line], "x", "y", columns=[(0.0, 1.0, 2.0, "two", 1)])
    (shape,) = drawn.shapes
    assert len(re.findall("[ML]", shape["band"])) == 4
    assert shape["band"].endswith("Z")
    assert len(shape["bars"]) == 1
    ((x, y, width, height, words, colour),) = drawn.columns
    assert (words, colour) == ("two", 1)
    assert y + height == pytest.approx(HEIGHT - BOTTOM, abs=0.2), "a column stands on the axis"
    assert x >= LEFT
    assert width > 0


def test_nothing_to_draw_is_no_chart():
    assert chart("t", [], "x", "y") is None
    assert of([]) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.25, "0.25"), (1500, "1,500"), (20000, "20k"), (2.5e6, "2.5M"), (5e-6, "5e-6"), (-0.5, "-0.5")],
)
def test_numbers_are_short(value, words):
    assert short(value) == words
