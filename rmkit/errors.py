"""What goes wrong for a user, said so that they can mend it."""


class AgreedError(ValueError):
    """A user's error that every process raises at the same point: the first one tells it, and all leave together."""


def brief(error: Exception) -> str:
    """The first line of what a library says, short enough for a message."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def plain(text: str) -> str:
    """Text that can be printed: what would move the cursor, or cannot be encoded, stands as its escape."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
