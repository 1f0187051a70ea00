"""SAMPLES as one plain file that can be read twice: the file itself, or a copy beside the output."""

import gzip
import json
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rmkit.data import conversation, source
from rmkit.data.files import GZIP, check_whole, read_rows
from rmkit.errors import plain
from rmkit.labelling.config import STDIN
from rmkit.storage.atomic import written_file


def shown(given: str) -> str:
    return "standard input" if given == STDIN else plain(given)


def plain_file(given: str, folder: Path, say: Callable[[str], None], columns: tuple[str, ...] = ()) -> Path:
    """A plain JSON or JSONL file with the rows of `given`; gzip, standard input, Parquet, folders, named sets and hub
    sets are copied to `folder`/input.

    Raises ValueError where there is no such input, or where it cannot be read.
    """
    path = Path(given)
    copy = folder / "input"
    if given == STDIN:
        _copy(sys.stdin.buffer, copy, given)
    elif path.is_file() and not given.endswith(".parquet"):
        check_whole(path, shown(given))
        try:
            with path.open("rb") as file:
                if file.read(2) != GZIP:
                    return path
                file.seek(0)
                _copy(file, copy, given)
        except PermissionError as error:
            raise ValueError(f"{shown(given)}: cannot be read ({error.strerror})") from None
    elif path.is_file():
        _write_rows((row for _, row in read_rows(given, shown(given))), copy)
    else:
        preferences = source.load((given,), "train", say, columns=columns)
        _write_rows(map(_whole, preferences), copy)
    return copy


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """A preference of the cache as a row with whole messages."""
    *sides, options = conversation.whole(row)
    return {**dict(zip(conversation.SIDES, sides, strict=True)), "subset": row["subset"], **(options or {})}


def _copy(file: Any, copy: Path, given: str) -> None:
    """Copy the bytes of an open file, unzipped where they start as gzip does."""
    start = file.peek(2)[:2]
    try:
        with written_file(copy) as out:
            shutil.copyfileobj(gzip.GzipFile(fileobj=file) if start == GZIP else file, out.buffer, 1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{shown(given)}: broken or cut gzip file ({error})") from None


def _write_rows(rows: Iterable[Any], copy: Path) -> None:
    with written_file(copy) as out:
        out.writelines(json.dumps(row, default=str) + "\n" for row in rows)
