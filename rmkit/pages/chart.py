"""Charts as the shapes of an SVG: curves with bands, points with intervals, columns. The template draws them.

They are drawn here, not by matplotlib as evaluate's plots, because a page is written while training goes on: a chart
takes a millisecond and no optional package, its colours are those of the page (dark and light), and a pointer on a
point shows its numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

WIDTH, HEIGHT = 460.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 14.0, 10.0, 44.0

TICKS = 5
"""About so many ticks an axis."""

LOG_FROM = 100.0
"""An axis that may be logarithmic is, from this ratio of largest and smallest value on"""

Interval = tuple[float, float, float]
"""(x, low, high)"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[Interval] = ()
    """Shaded behind the curve"""
    bars: Sequence[Interval] = ()
    """Intervals of single points"""
    dots: Sequence[str] = ()
    """The words that a pointer on each point shows; without any, points have no dots"""
    colour: int = 0
    """0 to 7"""
    curve: bool = True
    """Whether the points are joined"""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What the template draws: everything in units of the SVG."""

    title: str
    note: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    shapes: list[dict]
    """name, colour, path, band, bars, dots of each line"""
    guides: list[str] = field(default_factory=list)
    """Paths of dashed lines"""
    columns: list[tuple[float, float, float, float, str, int]] = field(default_factory=list)
    """x, y, width, height, words, colour"""
    size: ClassVar[tuple[float, float]] = WIDTH, HEIGHT
    left: ClassVar[float] = LEFT
    right: ClassVar[float] = WIDTH - RIGHT
    floor: ClassVar[float] = HEIGHT - BOTTOM


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    note: str = "",
    may_be_log: bool = False,
    y_range: tuple[float | None, float | None] = (None, None),
    x_range: tuple[float | None, float | None] = (None, None),
    guides: Sequence[Sequence[tuple[float, float]]] = (),
    columns: Sequence[tuple[float, float, float, str, int]] = (),
) -> Chart | None:
    """A chart of curves and columns (from x, to x, height from 0, words, colour); None where nothing is to be drawn.

    `y_range` and `x_range` are values that the axes have to reach.
    """
    xs = [x for line in lines for x, _ in line.points] + [x for column in columns for x in column[:2]]
    ys = [y for line in lines for _, y in line.points] + [y for guide in guides for _, y in guide]
    ys += [y for line in lines for _, *ends in (*line.band, *line.bars) for y in ends]
    ys += [height for _, _, height, *_ in columns] + ([0.0] if columns else [])
    if not xs:
        return None
    log = may_be_log and min(ys) > 0 and max(ys) / min(ys) >= LOG_FROM
    x_axis = _axis([*xs, *_given(x_range)], LEFT, WIDTH - RIGHT, False)
    y_axis = _axis([*ys, *_given(y_range)], HEIGHT - BOTTOM, TOP, log)
    place = _Place(x_axis.to, y_axis.to)
    return Chart(
        title=title,
        note=note,
        x_label=x_label,
        y_label=f"{y_label} (log scale)" if log else y_label,
        x_ticks=x_axis.ticks,
        y_ticks=y_axis.ticks,
        shapes=[place.shape(line) for line in lines if line.points],
        guides=[place.path(guide) for guide in guides],
        columns=[place.column(*column) for column in columns],
    )


@dataclass(frozen=True)
class _Axis:
    to: Callable[[float], float]
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class _Place:
    """From values to positions."""

    x: Callable[[float], float]
    y: Callable[[float], float]

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)

    def shape(self, line: Line) -> dict:
        around = [(x, high) for x, _, high in line.band] + [(x, low) for x, low, _ in reversed(line.band)]
        dots = zip(line.points, line.dots, strict=True) if line.dots else ()
        return {
            "name": line.name,
            "colour": line.colour,
            "path": self.path(line.points) if line.curve and len(line.points) > 1 else "",
            "band": self.path(around) + "Z" if len(line.band) > 1 else "",
            "bars": [self.path([(x, low), (x, high)]) for x, low, high in line.bars],
            "dots": [(round(self.x(x), 1), round(self.y(y), 1), words) for (x, y), words in dots],
        }

    def column(self, begin: float, end: float, height: float, words: str, colour: int) -> tuple:
        left, right, top, bottom = self.x(begin), self.x(end), self.y(height), self.y(0.0)
        return round(left, 1), round(top, 1), round(max(right - left - 1, 1), 1), round(bottom - top, 1), words, colour


def _given(ends: tuple[float | None, float | None]) -> list[float]:
    return [end for end in ends if end is not None]


def _axis(values: Sequence[float], begin: float, end: float, log: bool) -> _Axis:
    """An axis over the values, from position `begin` to `end`."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
        exponents = range(math.ceil(low), math.floor(high) + 1)
        every = max(1, math.ceil(len(exponents) / TICKS))
        ticks = [(float(e), short(10.0**e)) for e in exponents[::every]]
        if len(ticks) < 2:  # no two powers of ten: the ends themselves
            ticks = [(at, f"{10**at:.2g}") for at in (low, high)]
    else:
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
            middle = abs(low) * 0.1 or 1.0
            low, high = low - middle, high + middle
        step = _step((high - low) / TICKS)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        # The x axis ends at its last value, the y axis at a tick: so curves fill the width and touch no edge above.
        if begin > end:
            low, high = first * step, last * step
        ticks = [(i * step, short(i * step)) for i in range(first, last + 1) if low - 1e-9 * step <= i * step <= high]
    width = high - low or 1.0

    def to(value: float) -> float:
        at = math.log10(value) if log else value
        return begin + (at - low) / width * (end - begin)

    placed = [(round(begin + (at - low) / width * (end - begin), 1), words) for at, words in ticks]
    return _Axis(to, placed)


def _step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * n for n in (1.0, 2.0, 5.0, 10.0) if power * n >= rough * (1 - 1e-9))


def short(value: float) -> str:
    """A number as an axis has it."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:,.6g}" if abs(value) >= 1e-3 else f"{value:.3g}".replace("e-0", "e-")
