"""SAMPLES as one plain file that can be read twice: the file itself, or a copy beside the output."""

import gzip
import json
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rmkit.data import conversation, reading, source
from rmkit.data.cache import build, empty_report
from rmkit.data.files import GZIP, check_whole
from rmkit.data.forms import shape_of
from rmkit.errors import UserError, plain
from rmkit.labelling.config import STDIN
from rmkit.labelling.samples import samples
from rmkit.storage.atomic import written_file

Row = dict[str, Any]


def shown(given: str) -> str:
    return "standard input" if given == STDIN else plain(given)


def is_text(given: str) -> bool:
    """Whether the rows are read from the bytes of `given` itself, not from what `_rows` makes of it."""
    return given == STDIN or (Path(given).is_file() and not given.endswith(".parquet"))


def plain_file(
    given: str,
    folder: Path,
    say: Callable[[str], None],
    columns: tuple[str, ...] = (),
    bad_rows: str = "stop",
    report: Row | None = None,
) -> Path:
    """A plain JSON or JSONL file with the rows of `given`; gzip, standard input, Parquet, folders, named sets and hub
    sets are copied to `folder`/input.

    What is no text (`is_text`) is copied row by row, each under the names of `columns` and checked; with `bad_rows`
    "drop", those that cannot be read are left out and counted in `report`. Raises ValueError where there is no such
    input, or where it cannot be read.
    """
    path = Path(given)
    copy = folder / "input"
    if given == STDIN:
        _copy(sys.stdin.buffer, copy, given)
    elif is_text(given):
        check_whole(path, shown(given))
        try:
            with path.open("rb") as file:
                if file.read(2) != GZIP:
                    return path
                file.seek(0)
                _copy(file, copy, given)
        except PermissionError as error:
            raise ValueError(f"{shown(given)}: cannot be read ({error.strerror})") from None
    else:
        with written_file(copy) as out:
            for row in _rows(given, say, columns, bad_rows, empty_report() if report is None else report):
                out.write(json.dumps(row, default=str) + "\n")
    return copy


def _rows(
    given: str, say: Callable[[str], None], columns: tuple[str, ...], bad_rows: str, report: Row
) -> Iterator[Row]:
    """The rows of all files or sets of a name, as they stand there, so that a folder gives what its files would; those
    whose pairs only a set's or a benchmark's own rule makes, as pairs."""
    renamed = False
    for origin, opened in source.sources_of(given, "train", say):
        origin = replace(origin, own_split="", columns=columns, bad_rows=bad_rows, judged=True)
        if origin.named or origin.benchmark or _is_tree(next(reading.wanted(origin, opened, empty_report()), None)):
            pairs, of_pairs = build(origin, opened)
            source.tell(origin.shown, len(pairs), of_pairs, say)
            renamed |= bool(of_pairs["columns"])
            yield from map(_whole, pairs)
            continue
        for where, row in reading.wanted(origin, opened, report):
            try:
                samples(row)
            except ValueError as error:
                reading.bad_row(bad_rows, report, f"{origin.shown}, {where}: {error}")
                continue
            yield row
        renamed |= bool(report["columns"])
    if columns and not renamed:
        raise UserError("data.columns", " ".join(columns), "no row has such a field")


def _is_tree(first: tuple[str, Row] | None) -> bool:
    """Whether rows are messages of trees, which make no pair alone."""
    try:
        return first is not None and shape_of(first[1]).named == "oasst"
    except ValueError:
        return False


def _whole(row: Row) -> Row:
    """A preference of the cache as a row with whole messages."""
    *sides, options = conversation.whole(row)
    subset = {"subset": row["subset"]} if row["subset"] else {}
    return {**dict(zip(conversation.SIDES, sides, strict=True)), **subset, **(options or {})}


def _copy(file: Any, copy: Path, given: str) -> None:
    """Copy the bytes of an open file, unzipped where they start as gzip does."""
    start = file.peek(2)[:2]
    try:
        with written_file(copy) as out:
            shutil.copyfileobj(gzip.GzipFile(fileobj=file) if start == GZIP else file, out.buffer, 1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{shown(given)}: broken or cut gzip file ({error})") from None
