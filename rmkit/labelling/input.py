"""Whatever SAMPLES names as one plain file that can be read twice: itself, or a copy beside the output."""

import gzip
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rmkit.data import source
from rmkit.data.files import read_rows
from rmkit.errors import plain

STDIN = "-"
_GZIP = b"\x1f\x8b"


def identity(given: str) -> list[Any]:
    """What tells a changed input: path, size and time of a file; the name of anything else."""
    path = Path(given)
    if not path.is_file():
        return [given]
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def shown(given: str) -> str:
    return "standard input" if given == STDIN else plain(given)


def plain_file(given: str, folder: Path, say: Callable[[str], None]) -> Path:
    """A plain JSON or JSONL file with the rows of `given`; gzip, standard input, Parquet, folders, named sets and hub
    sets are copied to `folder`/input.

    Raises ValueError where there is no such input, or where it cannot be read.
    """
    path = Path(given)
    copy = folder / "input"
    if given == STDIN:
        _copied(sys.stdin.buffer, copy, given)
    elif path.is_file() and not given.endswith(".parquet"):
        try:
            with path.open("rb") as file:
                if file.read(2) != _GZIP:
                    return path
                file.seek(0)
                _copied(file, copy, given)
        except PermissionError as error:
            raise ValueError(f"{shown(given)}: cannot be read ({error.strerror})") from None
    elif path.is_file():
        _written((row for _, row in read_rows(given, shown(given))), copy)
    else:
        preferences = source.load((given,), "train", say)
        sides = ("prompt", "chosen", "rejected", "subset")
        _written(({side: row[side] for side in sides} for row in preferences), copy)
    return copy


def _copied(file: Any, copy: Path, given: str) -> None:
    """Bytes as they are, or unzipped where they start as gzip does; the copy appears whole."""
    partial = copy.with_suffix(".partial")
    start = file.peek(2)[:2]
    try:
        with partial.open("wb") as out:
            shutil.copyfileobj(gzip.GzipFile(fileobj=file) if start == _GZIP else file, out, 1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{shown(given)}: broken or cut gzip file ({error})") from None
    os.replace(partial, copy)


def _written(found: Iterable[Any], copy: Path) -> None:
    partial = copy.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, default=str) + "\n" for row in found)
    os.replace(partial, copy)
