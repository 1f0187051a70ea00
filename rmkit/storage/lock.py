"""A lock that one process holds on a path, and that ends with it, however it ends."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 10.0
"""Seconds for which what a killed launcher left behind may still end"""


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Within the block no other process holds the lock of `path`, a file .NAME.lock beside it; ValueError with
    `refusal` where one does. A disk that cannot be written, or knows no locks, has none."""
    file = path.with_name(f".{path.name}.lock")
    held = None
    with contextlib.suppress(OSError):
        held = _open(file, refusal)
    try:
        yield
    finally:
        if held is not None:
            with contextlib.suppress(OSError):
                file.unlink()
            os.close(held)


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of `path`. The process that holds it must not ask: closing the file gives
    its own lock away."""
    try:
        asked = os.open(path.with_name(f".{path.name}.lock"), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.lockf(asked, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(asked)
    return False


def _open(file: Path, refusal: str) -> int:
    """The opened file, locked. Of a file that was deleted meanwhile the lock is worth nothing: it is made again."""
    end = time.monotonic() + PATIENCE
    while True:
        held = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # A record lock: child processes do not inherit it, so none that outlives this one holds it.
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(file) and os.path.samestat(os.fstat(held), os.stat(file)):
                return held
        except (BlockingIOError, PermissionError):
            if time.monotonic() > end:
                os.close(held)
                raise ValueError(refusal) from None
            time.sleep(0.2)
        except BaseException:
            os.close(held)
            raise
        os.close(held)
