"""Read the rows of a local file: JSON lines or one JSON array, gzipped or not, or Parquet."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from rmkit.data.json_rows import BLOCK, rows, unit

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
GZIP = b"\x1f\x8b"
"""How a gzip file starts"""
_POINTER = b"version https://git-lfs"
BATCH = 64
"""Rows of a Parquet file that are held at a time: a page of a few kilobytes can unpack to long texts."""

Located = Iterator[tuple[str, Any]]  # the place of a row ("line 3", "index 2", "row 2"), and the row


def read_rows(path: str, shown: str, skip: bool = False) -> Located:
    """The rows of a file one at a time. With `skip`, a line that is no JSON is yielded as the ValueError that it is.

    Lines count from 1, as editors do; elements of an array and rows of a table from 0, as Python does.

    Raises:
        ValueError: the file is empty, cut off, not UTF-8, not of the kind that its name says, or no file at all;
            `shown` is its name in the message.
    """
    if not Path(path).is_file():  # opening a pipe would wait for a writer
        raise ValueError(f"{shown}: it is gone, or no ordinary file (a pipe, a device); save its rows to a file")
    check_whole(Path(path), shown)
    return _parquet(path, shown) if path.endswith(".parquet") else _json(path, shown, skip)


def _parquet(path: str, shown: str) -> Located:
    count = 0
    try:
        with open(path, "rb") as file:
            for batch in pyarrow.parquet.ParquetFile(file, buffer_size=BLOCK).iter_batches(BATCH):
                for row in batch.to_pylist():
                    yield f"row {count}", row
                    count += 1
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: a date beyond Python's
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{shown}: not a readable Parquet file ({words})") from None
    if not count:
        raise ValueError(f"{shown}: the file is empty; it should hold one object per row")


def _json(path: str, shown: str, skip: bool) -> Located:
    try:
        with _opened(path) as file:
            called = unit(file)
            for row in rows(file, shown, skip):
                yield f"{called} {row.number}", row.value
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{shown}: broken or cut gzip file ({error})") from None
    except OSError as error:
        raise ValueError(f"{shown}: cannot be read ({error.strerror or error})") from None


def _opened(path: str) -> IO[bytes]:
    """The file, unzipped where it starts as gzip does, whatever its name says."""
    with open(path, "rb") as file:
        zipped = file.read(2) == GZIP
    return gzip.open(path, "rb") if zipped or path.endswith(".gz") else open(path, "rb")


def check_whole(path: Path, shown: str) -> None:
    """ValueError where a file is a pointer to what was not fetched."""
    if is_pointer(path):
        raise ValueError(f"{shown}: it is a Git LFS pointer, not the file itself; fetch that with: git lfs pull")


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in the place of one that it has not fetched."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False  # whoever reads it says why


def is_data(path: Path) -> bool:
    """Whether a path is a file that `read_rows` can read, judged by its name."""
    return path.is_file() and path.name.endswith(SUFFIXES) and not path.name.startswith(".")
