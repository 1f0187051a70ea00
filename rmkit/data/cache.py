"""Read one source of preferences row by row into a cached Arrow file, with a report on what was read and dropped."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Value

from rmkit.data.fields import names as fields_of
from rmkit.data.fields import show
from rmkit.data.files import read_rows
from rmkit.data.forms import LABELS, NEEDS, Form, detect, preferences
from rmkit.data.named import NAMED

DEMO = "demo"
_MESSAGES = [{"role": Value("string"), "content": Value("string")}]

BAD = "bad rows"
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
    judged: bool = False
    """Nothing is learned from the pairs: identical sides and empty answers stay, and count as benchmarks count them."""
    bad_rows: str = "stop"
    """"drop": a row that cannot be read is counted and listed, and the others are read."""


def features() -> datasets.Features:
    """Columns of the cached preferences. A function, because a program may add to LABELS."""
    return datasets.Features(
        {
            "prompt": _MESSAGES,
            "chosen": _MESSAGES,
            "rejected": _MESSAGES,
            **{label: Value("float64") for label in LABELS},
            "ratings": Value("string"),
            "compared": Value("float64"),
            "subset": Value("string"),
            "id": Value("string"),
            "source": Value("string"),
        }
    )


def build(source: Source, rows: Dataset | None) -> tuple[Dataset, dict[str, Any]]:
    """The cached preferences of one source, and a report on them: form, rows, dropped (reason -> count), flaws (those
    of them that are pairs, not rows), bad (place and fault of the first bad rows).

    `rows` is a data set that is open already; where it is None, a local file or the embedded set is read. A ValueError
    for the user is raised as it is; any other failure stays a DatasetGenerationError.
    """
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        kwargs = {"source": asdict(source), "rows": rows, "code": _code()}
        built = Dataset.from_generator(_examples, features=features(), gen_kwargs=kwargs)
    except datasets.exceptions.DatasetGenerationError as error:
        if type(error.__cause__) is ValueError:
            raise ValueError(str(error.__cause__)) from None
        if isinstance(error.__cause__, OSError):  # a full disk
            raise ValueError(f"{source.shown}: {error.__cause__}") from None
        raise
    finally:
        if not bars:
            datasets.enable_progress_bars()
    report = json.loads(built[-1]["id"])
    return built.select(range(len(built) - 1)), report


def _code() -> str:
    """Hash of this package and of the columns, so that a changed version does not use what an older one cached."""
    digest = hashlib.blake2b(repr(LABELS).encode(), digest_size=8)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _examples(source: Row, rows: Dataset | None, code: str) -> Iterator[Row]:
    """The rows of the cached file. The last one holds the report, because the cache keeps nothing but rows."""
    origin = Source(**source)
    report: Row = {"form": "", "rows": 0, "dropped": Counter(), "flaws": Counter(), "bad": []}
    read = _from_set(origin, rows, report) if origin.named else _from_rows(origin, rows, report)
    for number, preference in read:
        if isinstance(preference, str):
            report["dropped"][preference] += 1
        elif not origin.judged and (reason := _flaw(preference)):
            report["dropped"][reason] += 1
            report["flaws"][reason] += 1
        else:
            yield {**_sides_given(preference), "source": f"{origin.shown}:{number}"}
    nothing = dict.fromkeys(features(), "") | {side: [] for side in ("prompt", "chosen", "rejected")}
    yield {**nothing, "compared": 0.0, **dict.fromkeys(LABELS), "id": json.dumps(report)}


def _sides_given(preference: Row) -> Row:
    """The preference with an empty answer where a compared side is no message at all."""
    sides = ("chosen", "rejected") if preference["compared"] else ()
    return preference | {s: [{"role": "assistant", "content": ""}] for s in sides if not preference[s]}


def _flaw(preference: Row) -> str:
    """Why nothing can be learned from a preference; "" where something can."""
    sides = [preference["chosen"], preference["rejected"]] if preference["compared"] else [preference["chosen"]]
    for side in sides:
        if not side or not side[-1]["content"].strip():
            return "empty response"
    return "identical chosen and rejected" if preference["chosen"] == preference["rejected"] else ""


def _from_set(origin: Source, rows: Dataset | None, report: Row) -> Outcomes:
    report["form"] = "named set"
    if origin.named == DEMO:
        from rmkit.data import demo

        for i, preference in enumerate(demo.preferences(origin.split)):
            report["rows"] += 1
            yield str(i), preference
        return
    report["rows"] = len(rows)
    try:
        for i, preference in NAMED[origin.named].function(rows, origin.split):
            yield str(i), preference
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        problem = f"found no field {error}" if isinstance(error, KeyError) else f"found a wrong field ({error})"
        raise ValueError(f"{origin.shown}: {problem}; the set's schema has changed") from None
    except ValueError as error:
        raise ValueError(f"{origin.shown}, {error}") from None


def _from_rows(origin: Source, rows: Dataset | None, report: Row) -> Outcomes:
    """The preferences of rows that all have one form: that of the first row of the wanted split."""
    if rows is None:
        located = read_rows(origin.path, origin.shown, skip=origin.bad_rows == "drop")
    else:
        located = _opened(rows, origin.shown)
    for where, row in located:
        report["rows"] += 1
        number = where.rpartition(" ")[2]
        try:
            if isinstance(row, ValueError):
                raise row
            if origin.own_split and _other_split(row, origin.own_split):
                yield number, "other split"
                continue
            if not report["form"]:
                report["form"] = detect(row)
            pairs = _fitting(row, report["form"])
        except ValueError as error:
            told = str(error) if error is row else f"{origin.shown}, {where}: {error}"
            if origin.bad_rows == "stop":
                raise ValueError(told) from None
            report["bad"] += [told] if len(report["bad"]) < LISTED else []
            yield number, BAD
            continue
        if not pairs:
            yield number, "no responses of different rank"
        for preference in pairs:
            yield number, preference
    if not report["rows"]:
        raise ValueError(f"{origin.shown}: the set is empty")


def _opened(rows: Dataset, shown: str) -> Outcomes:
    try:
        for i, row in enumerate(rows):
            yield f"row {i}", row
    except Exception as error:  # columns that cannot be read as what the set declares them to be
        raise ValueError(f"{shown}: the set cannot be read ({type(error).__name__}: {error})") from None


def _other_split(row: Any, split: str) -> bool:
    own = row.get("split") if isinstance(row, dict) else None
    if own is not None and not isinstance(own, str):
        raise ValueError(f"field 'split': found {show(own)}, need text such as train or test")
    return own is not None and own != split


def _fitting(row: Any, form: Form) -> list[Row]:
    """The preferences of a row; ValueError where its form is not that of the rest of the file."""
    try:
        other = detect(row)
    except ValueError:
        other = "no known form"
    if other != form:
        there = f"the fields {fields_of(row)} ({other})" if isinstance(row, dict) else show(row)
        raise ValueError(f"found {there}, need {form} as in the file's first row: {NEEDS[form]}")
    return preferences(row, form)
