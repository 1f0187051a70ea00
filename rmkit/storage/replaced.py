"""What --overwrite replaces is kept in FOLDER/old-run until the new thing is whole, and only then goes.

Nothing is copied, only renamed, so a kill leaves one of these, which the next start knows by its name:

    .old-run.moving/   some entries have moved, the others are in their place: all are the old ones
    old-run/           all have moved: what is in their place is new
    .old-run.gone/     the new thing is whole, and this is being deleted
"""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

NAME = "old-run"
MOVING, GONE = f".{NAME}.moving", f".{NAME}.gone"
MARK = "ABOUT.txt"
"""A folder of that name without this file is somebody else's, and is not touched"""
ABOUT = """\
rmkit moved these files here because --overwrite was given. They are deleted when what replaces them is whole.
To have them back before: delete what lies beside this folder, and move these files there.
"""


def holds(folder: Path) -> bool:
    """Whether something is kept in `folder`."""
    return (folder / NAME / MARK).is_file()


def keep(folder: Path, names: Iterable[str]) -> None:
    """Move the entries `names` of a folder away; what was kept before, which is theirs, goes with them.

    Raises ValueError where the folder holds an entry called old-run that is not ours.
    """
    moving, old = folder / MOVING, folder / NAME
    if os.path.lexists(old) and not holds(folder):
        raise ValueError(f"{old} is not of rmkit's making, and --overwrite needs that name; rename or delete it")
    moving.mkdir(exist_ok=True)
    (moving / MARK).write_text(ABOUT)
    for name in (*names, NAME):
        if os.path.lexists(folder / name):
            (folder / name).rename(moving / name)
    moving.rename(old)


def put_back(folder: Path, names: Iterable[str]) -> bool:
    """Move what is kept back to its place, and delete the new entries `names` there; False where nothing does."""
    if not holds(folder):
        return False
    for name in names:
        _delete(folder / name)
    (folder / NAME).rename(folder / MOVING)
    return mend(folder)


def mend(folder: Path) -> bool:
    """Move back what a kill left half moved; False where there is none. To be called before anything else."""
    moving = folder / MOVING
    if not moving.is_dir():
        return False
    for path in sorted(moving.iterdir()):
        if path.name != MARK:
            path.rename(folder / path.name)
    _delete(moving)
    return True


def let_go(folder: Path) -> None:
    """Delete what is kept, and what a kill left of an earlier deletion. An error leaves it for the next time."""
    with suppress(OSError):
        _delete(folder / GONE)
        if holds(folder):
            (folder / NAME).rename(folder / GONE)
            _delete(folder / GONE)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
