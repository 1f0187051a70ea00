"""Folders on disk that are whole or absent: filled aside, flushed, then renamed into their place."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from rmkit.distributed.collectives import on_every_rank, on_first_rank, rank

T = TypeVar("T")


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` only when the block ends without an error."""
    partial = _empty(_partial(folder))
    try:
        yield partial
        flush(files_below(partial))
        _rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def written_together(
    folder: Path,
    fill: Callable[[Path], T],
    finish: Callable[[Path, list[T]], None] = lambda partial, outcomes: None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """As `written_aside`, by all ranks of `group` at once, on a disk that they share.

    `fill` writes and flushes the files of one rank; `finish` gets what it returned on each, by rank, and ends the work
    on rank 0. Where anything fails on any rank, all raise it and nothing is left.
    """
    partial = _partial(folder)
    try:
        on_first_rank(lambda: _empty(partial), group)
        outcomes = on_every_rank(lambda: fill(partial), group)

        def end() -> None:
            finish(partial, outcomes)
            _rename(partial, folder)

        on_first_rank(end, group)
    except BaseException:
        if rank(group) == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def flush(files: Iterable[Path]) -> None:
    """Have the contents of files on the disk, not in a cache that a power cut empties."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def files_below(folder: Path) -> list[Path]:
    """All files below a folder: a tokenizer with several chat templates brings a folder of its own."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def delete_partial(folder: Path) -> None:
    """Delete what killed processes left of folders that they were writing in `folder`."""
    for left in folder.glob(".*.partial"):
        shutil.rmtree(left)


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _empty(partial: Path) -> Path:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _rename(partial: Path, folder: Path) -> None:
    for inside in {partial, *(path.parent for path in files_below(partial))}:
        _flush_names(inside)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)
    _flush_names(folder.parent)


def _flush_names(folder: Path) -> None:
    """A folder's list of names is a file too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
