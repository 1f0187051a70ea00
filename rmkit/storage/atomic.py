"""Write a file or a folder so that it is whole or absent: it is filled under a name that starts with a dot, brought to
the disk, and then renamed into its place."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:  # files are written without torch
    from torch.distributed import ProcessGroup


@contextmanager
def written_file(file: Path, folder: Path | None = None) -> Iterator[TextIO]:
    """A new text file to fill, which takes the place of `file` when the block ends without an error.

    Until then it stands beside `file`, or in `folder`, which has to be on the same disk.
    """
    partial = _partial(file, folder)
    try:
        # Half a surrogate pair can come in by an escape; the same escape is how it goes out.
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _flush_names(file.parent)


@contextmanager
def written_folder(folder: Path, *, all_ranks: bool = False, group: "ProcessGroup | None" = None) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends without an error.

    One process fills it, whatever the others do. With `all_ranks`, every rank of `group` (None: all) enters the block,
    on a disk that they share; where it fails on any rank, all raise and nothing is left. A rank other than the first
    flushes what it wrote before its block ends: its machine may keep that where the first cannot flush it.
    """
    from rmkit.distributed.collectives import on_every_rank, on_first_rank, rank

    partial = _partial(folder)

    def once(action: Callable[[], Any]) -> None:
        on_first_rank(action, group) if all_ranks else action()

    try:
        once(lambda: _make_empty(partial, folder))
        failed = None
        try:
            yield partial
        except Exception as error:
            failed = error
        on_every_rank(lambda: _raise(failed), group) if all_ranks else _raise(failed)
        once(lambda: _rename(partial, folder))
    except BaseException:
        if not all_ranks or rank(group) == 0:
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


def _partial(path: Path, folder: Path | None = None) -> Path:
    return (folder or path.parent) / f".{path.name}.partial"


def _make_empty(partial: Path, folder: Path) -> None:
    if _old(folder).exists() and not folder.exists():  # killed between the two names of `_rename`
        _old(folder).rename(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _rename(partial: Path, folder: Path) -> None:
    """Flush everything in `partial` and give it the name `folder`, in place of what has that name."""
    files = files_below(partial)
    flush(files)
    for inside in {partial, *(path.parent for path in files)}:
        _flush_names(inside)
    if folder.exists():
        old = _old(folder)
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)
    _flush_names(folder.parent)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _flush_names(folder: Path) -> None:
    """Have the list of names in a folder on the disk, which is a file too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
