"""Read one source of preferences row by row into a cached Arrow file, with a report on what was read and dropped."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Value

from rmkit.data import reading
from rmkit.data.conversation import packed
from rmkit.data.forms import LABELS
from rmkit.data.messages import same_turn
from rmkit.data.reading import Row, Source

_MESSAGES = [{"role": Value("string"), "content": Value("string")}]


def features() -> datasets.Features:
    """Columns of the cached preferences. A function, because a program may add to LABELS."""
    return datasets.Features(
        {
            "prompt": _MESSAGES,
            "chosen": _MESSAGES,
            "rejected": _MESSAGES,
            "more": Value("string"),
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
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _examples(source: Row, rows: Dataset | None, code: str) -> Iterator[Row]:
    """The rows of the cached file. The last one holds the report, because the cache keeps nothing but rows."""
    origin, report = Source(**source), empty_report()
    for preference in read(origin, rows, report):
        yield packed(preference)
    nothing = dict.fromkeys(features(), "") | {side: [] for side in ("prompt", "chosen", "rejected")}
    yield {**nothing, "compared": 0.0, **dict.fromkeys(LABELS), "id": json.dumps(report)}


def empty_report() -> Row:
    """What `read` fills while it reads a source."""
    report: Row = {"form": "", "rows": 0, "dropped": Counter(), "flaws": Counter(), "bad": []}
    return report | {"benchmark": "", "columns": [], "unused": [], "speakers": 0}


def read(origin: Source, rows: Dataset | None, report: Row) -> Iterator[Row]:
    """The preferences of one source, whole, each with its `source`; what becomes of its rows is added to `report`."""
    outcomes = reading.from_set(origin, rows, report) if origin.named else reading.from_rows(origin, rows, report)
    for number, preference in outcomes:
        if isinstance(preference, str):
            report["dropped"][preference] += 1
        elif reason := preference.get("undecided") or ("" if origin.judged else _flaw(preference)):
            report["dropped"][reason] += 1
            report["flaws"][reason] += 1
        else:
            yield {**_sides_given(preference), "source": f"{origin.shown}:{number}"}


def _sides_given(preference: Row) -> Row:
    """The preference with an empty answer where a compared side is no message at all."""
    sides = ("chosen", "rejected") if preference["compared"] else ()
    return preference | {s: [{"role": "assistant", "content": ""}] for s in sides if not preference[s]}


def _flaw(preference: Row) -> str:
    """Why nothing can be learned from a preference; "" where something can."""
    chosen, rejected = preference["chosen"], preference["rejected"]
    for side in [chosen, rejected] if preference["compared"] else [chosen]:
        if not side or (not (side[-1]["content"] or "").strip() and len(side[-1]) == 2):
            return "empty response"
    same = len(chosen) == len(rejected) and all(map(same_turn, chosen, rejected))
    return "identical chosen and rejected" if same else ""
