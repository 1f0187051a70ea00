"""Errors that a user can mend, told with the flags of the program that they called."""

import errno
import re
from collections.abc import Mapping
from pathlib import Path

Flags = Mapping[str, str | None]
"""Field of the configuration -> flag of a program ("model.name" -> "--model"), None where it has none. A field that
is absent has the flag of training."""

_MARK = re.compile("\0([a-z_.]+)\0")


def flag(field: str) -> str:
    """A mark for the flag of `field` in a hint, replaced by the flag's name when the error is told. It starts and ends
    with NUL, which no argument and no path holds."""
    return f"\0{field}\0"


class UserError(ValueError):
    """A user's mistake: the field of the configuration that it is about, the value, and what is wrong with it.

    `field` is a dotted name such as "data.max_length", or "" where a file is at fault; a `value` of None is left out.
    `hint` says what was found and what should be. `ways` to mend it are joined by "or"; those that need a flag which
    the program does not have are left out. str() has the flags of training, `told` those of any program.
    """

    def __init__(self, field: str, value: object, hint: str, *ways: str) -> None:
        self.field, self.value, self.hint, self.ways = field, value, hint, ways
        self.rank: int | None = None
        """The rank that raised it, where that is another one"""
        super().__init__(str(self))  # what tyro shows of an error in a configuration

    def __reduce__(self) -> tuple:
        return type(self), (self.field, self.value, self.hint, *self.ways), {"rank": self.rank}

    def about(self, field: str) -> "UserError":
        """The same mistake in another field: that of a second model, say."""
        return UserError(field, self.value, self.hint, *self.ways)

    def told(self, flags: Flags) -> str:
        """The sentence for the user of a program with these flags."""
        where = f"rank {self.rank}: " if self.rank is not None else ""
        subject = " ".join(str(part) for part in (_name(self.field, flags), self.value) if part not in ("", None))
        ways = [way for way in self.ways if all(flags.get(name, "") is not None for name in _MARK.findall(way))]
        text = "; ".join([self.hint, " or ".join(ways)] if ways else [self.hint])
        return where + (f"{subject}: " if subject else "") + _MARK.sub(lambda mark: _name(mark[1], flags), text)

    def __str__(self) -> str:
        return self.told({})


class AgreedError(UserError):
    """A user's error that every rank raises at the same point: the first one tells it, and all exit."""

    def __init__(self, error: Exception | str) -> None:
        if isinstance(error, UserError):
            super().__init__(error.field, error.value, error.hint, *error.ways)
            self.rank = error.rank
        else:
            super().__init__("", None, str(error))

    def __reduce__(self) -> tuple:
        return type(self), (UserError(self.field, self.value, self.hint, *self.ways),), {"rank": self.rank}


def told(error: Exception | str, flags: Flags) -> str:
    """The sentence for an error of any kind."""
    return error.told(flags) if isinstance(error, UserError) else str(error)


def _name(field: str, flags: Flags) -> str:
    return flags.get(field) or (f"--{field.replace('_', '-')}" if field else "")


def brief(error: Exception) -> str:
    """The first line of what a library says, short enough for a message."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def plain(text: str) -> str:
    """Text that can be printed: what would move the cursor, or cannot be encoded, stands as its escape."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; OSError where that cannot be, for a thousand of them too (pathlib recurses)."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except RecursionError:
        raise OSError(errno.ENAMETOOLONG, "too many folders deep", str(path)) from None
