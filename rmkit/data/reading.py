"""The rows of one source as preferences: by the form of the file, a set's converter or a benchmark's own rule."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from rmkit.config import DEMO
from rmkit.data import benchmarks, columns, forms
from rmkit.data.counts import BAD
from rmkit.data.fields import names as fields_of
from rmkit.data.fields import show
from rmkit.data.files import Located, read_rows
from rmkit.data.forms import detect, preferences
from rmkit.data.named import NAMED
from rmkit.data.shapes.plain import holds_turns
from rmkit.data.shapes.shape import Shape

AS_JSON = "a row as JSON"
"""The one column of rows in memory that no table holds, because their fields have other types in each."""
MOST_NAMES = 100
"""Names of unused fields that are collected of a file."""
MOST_JOINED = 400
"""Rows that are joined to one: more would make more preferences than a row may."""

LISTED = 20
"""Bad rows of a file that are listed; the others are counted."""

Row = dict[str, Any]
Outcomes = Iterator[tuple[str, Row | str]]  # number of line, index or row; a preference, or why there is none


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the preferences of one cached file come from; every field is part of the cache's key."""

    shown: str
    """Its name in messages and in the column `source`."""
    path: str = ""
    """A local file; `size` and `mtime_ns` are there so that a changed file is read again."""
    size: int = 0
    mtime_ns: int = 0
    own_split: str = ""
    """Rows whose field `split` names another split are left out; "" ignores the field."""
    named: str = ""
    """A named set, and the split of it that is read."""
    split: str = ""
    benchmark: str = ""
    """The benchmark that the rows are of (`rmkit.data.benchmarks`)"""
    judged: bool = False
    """Nothing is learned from the pairs: identical sides and empty answers stay, and count as benchmarks count them."""
    bad_rows: str = "stop"
    """"drop": a row that cannot be read is counted and listed, and the others are read."""
    columns: tuple[str, ...] = ()
    """NAME=FIELD: the field that is read as NAME"""


def from_set(origin: Source, rows: Dataset | None, report: Row) -> Outcomes:
    report["form"] = "named set"
    if origin.named == DEMO:
        from rmkit.data import demo

        for i, preference in enumerate(demo.preferences(origin.split)):
            report["rows"] += 1
            yield str(i), preference
        return
    report["rows"] = len(rows)
    yield from _converted(origin.named, rows, origin.split, origin.shown, str)


def _converted(name: str, rows: Any, split: str, shown: str, number: Callable[[int], str]) -> Outcomes:
    """What the converter of a named set makes of rows; `number` names the place of the row with an index."""
    try:
        for i, preference in NAMED[name].function(rows, split):
            yield number(i), preference
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        problem = f"found no field {error}" if isinstance(error, KeyError) else f"found a wrong field ({error})"
        raise ValueError(f"{shown}: {problem}; the set's schema has changed") from None
    except ValueError as error:
        raise ValueError(f"{shown}, {error}") from None


def from_rows(origin: Source, rows: Dataset | None, report: Row) -> Outcomes:
    """The preferences of rows that all have one form: that of the first row of the wanted split."""
    located = wanted(origin, rows, report)
    if origin.benchmark:
        yield from _of_benchmark(located, origin, report)
        return
    first, shape = _first(located, origin, report)
    if not report["rows"]:
        raise ValueError(f"{origin.shown}: the set is empty")
    if first is None:
        return
    report["form"] = shape.name
    if shape.named:
        again = _Again(origin, rows)
        yield from _converted(shape.named, again, origin.own_split or "train", origin.shown, again.place)
        report["dropped"] |= again.report["dropped"]  # whole, where the look at the first row saw some of them
        report |= {name: again.report[name] for name in ("rows", "bad")}
        report["unused"] = some(forms.unused(first[1], shape))
        return
    located, unused = itertools.chain([first], located), set()
    for where, row in _joined(located, shape) if shape.joins else located:
        try:
            pairs = _fitting(row, shape)
        except ValueError as error:
            bad_row(origin.bad_rows, report, f"{origin.shown}, {where}: {error}")
            continue
        if len(unused) < MOST_NAMES:
            unused |= forms.unused(row, shape)
        report["speakers"] += any(holds_turns(pair["prompt"]) for pair in pairs[:1])  # all pairs of a row have one
        number = where.rpartition(" ")[2]
        if not pairs:
            yield number, "no responses of different rank"
        for preference in pairs:
            yield number, preference
    report["unused"] = some(unused)


def _of_benchmark(located: Located, origin: Source, report: Row) -> Outcomes:
    """What the rows of a benchmark compare, each read by that benchmark's own rule."""
    report |= {"form": f"benchmark {origin.benchmark}", "benchmark": origin.benchmark}
    for where, row in located:
        try:
            made = benchmarks.compared(origin.benchmark, row, origin.shown)
            pairs = [p for each in made for p in ([each] if isinstance(each, str) else preferences(each, detect(each)))]
        except ValueError as error:
            bad_row(origin.bad_rows, report, f"{origin.shown}, {where}: {error}")
            continue
        for pair in pairs:
            yield where.rpartition(" ")[2], pair
    if not report["rows"]:
        raise ValueError(f"{origin.shown}: the set is empty")


def _first(located: Located, origin: Source, report: Row) -> tuple[tuple[str, Any] | None, Shape | None]:
    """The first row whose form is known, with its place, and that form; None where there is no such row."""
    for where, row in located:
        try:
            return (where, row), forms.SHAPES[detect(row)]
        except ValueError as error:
            bad_row(origin.bad_rows, report, f"{origin.shown}, {where}: {error}")
    return None, None


def bad_row(bad_rows: str, report: Row, told: str) -> None:
    """Count and list a row that cannot be read; without --data.bad-rows drop it stops the run."""
    if bad_rows == "stop":
        raise ValueError(told) from None
    report["bad"] += [told] if len(report["bad"]) < LISTED else []
    report["dropped"][BAD] += 1


def wanted(origin: Source, rows: Dataset | None, report: Row) -> Located:
    """The rows of the wanted split, under the names that --data.columns gives; all are counted in the report."""
    renames, drop = None, origin.bad_rows == "drop"
    for where, row in read_rows(origin.path, origin.shown, skip=drop) if rows is None else _opened(rows, origin.shown):
        report["rows"] += 1
        if isinstance(row, ValueError):
            bad_row(origin.bad_rows, report, str(row))
            continue
        try:
            if renames is None:
                renames = columns.of_file(origin.columns, row)
                report["columns"] = [f"{name}={field}" for name, field in renames]
            row = columns.renamed(row, renames)
            other = origin.own_split and _other_split(row, origin.own_split)
        except ValueError as error:
            bad_row(origin.bad_rows, report, f"{origin.shown}, {where}: {error}")
            continue
        if other:
            report["dropped"]["other split"] += 1
        else:
            yield where, row


class _Again:
    """The rows of the wanted split without their places, as often as a converter reads them."""

    def __init__(self, origin: Source, rows: Dataset | None) -> None:
        self._origin, self._rows = origin, rows
        self._places: list[str] = []
        self.report: Row = {}

    def __iter__(self) -> Iterator[Any]:
        self._places, self.report = [], {"rows": 0, "dropped": Counter(), "bad": []}
        for where, row in wanted(self._origin, self._rows, self.report):
            self._places.append(where.rpartition(" ")[2])
            yield row

    def place(self, i: int) -> str:
        return self._places[i]


def _opened(rows: Dataset, shown: str) -> Located:
    try:
        as_json = rows.column_names == [AS_JSON]
        for i, row in enumerate(rows):
            yield f"row {i}", json.loads(row[AS_JSON]) if as_json else row
    except Exception as error:  # columns that cannot be read as what the set declares them to be
        raise ValueError(f"{shown}: the set cannot be read ({type(error).__name__}: {error})") from None


def _other_split(row: Any, split: str) -> bool:
    own = row.get("split") if isinstance(row, dict) else None
    if own is not None and not isinstance(own, str):
        raise ValueError(f"field 'split': found {show(own)}, need text such as train or test")
    return own is not None and own != split


def _fitting(row: Any, shape: Shape) -> list[Row]:
    """The preferences of a row; ValueError where its form is not that of the rest of the file."""
    if not (isinstance(row, dict) and shape.has(row)):
        try:
            other = detect(row)
        except ValueError:
            other = "no known form"
        there = f"the fields {fields_of(row)} ({other})" if isinstance(row, dict) else show(row)
        raise ValueError(f"found {there}, need {shape.name} as in the file's first row: {shape.needs}")
    return preferences(row, shape.name)


def _joined(located: Located, shape: Shape) -> Located:
    """Rows that follow one another with an equal field `shape.joins` as one row, whose other fields are lists."""

    def value(located: tuple[str, Any]) -> Any:
        row = located[1]
        return row[shape.joins] if isinstance(row, dict) and shape.has(row) else None

    for common, run in itertools.groupby(located, value):
        while part := list(itertools.islice(run, MOST_JOINED)):
            if common is None or len(part) == 1:
                yield from part
            else:
                lists = {name: [row[name] for _, row in part] for name in shape.keys - {shape.joins}}
                yield part[0][0], part[0][1] | lists


def some(names: set[str]) -> list[str]:
    """Names of fields in order, as many as are kept of a file."""
    return sorted(map(str, names))[:MOST_NAMES]
