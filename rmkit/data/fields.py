"""Read one field of a row as text, a list, a number or a name; errors name the field and what it holds."""

import math
from typing import Any

from rmkit.errors import plain

MOST = 1 << 16
"""Most entries in a list of responses, and most preferences from one row: a few kilobytes could make billions of pairs.
"""


def text(value: Any, field: str) -> str:
    """Text that UTF-8 can encode."""
    if not isinstance(value, str):
        raise ValueError(f"field '{field}': found {show(value)}, need text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"field '{field}': found half of a surrogate pair at character {error.start}, which is no text"
        ) from None
    return value


def entries(value: Any, field: str) -> list[Any]:
    """A list with at least one entry."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"field '{field}': found {show(value)}, need a list with at least one entry")
    if len(value) > MOST:
        raise ValueError(f"field '{field}': found {show(value)}, need at most {MOST}; part the row")
    return value


def number(value: Any, field: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]; a boolean is not a number."""
    try:
        converted = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:  # a whole number beyond float64
        converted = math.inf
    if math.isfinite(converted) and low <= converted <= high:
        return converted
    bounds = f" in [{low:g}, {high:g}]" if high < math.inf else f" of at least {low:g}" if low > -math.inf else ""
    raise ValueError(f"field '{field}': found {show(value)}, need a finite number{bounds}")


def name(value: Any, field: str) -> str:
    """Text, or a whole number as text; "" where the field is absent."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value, field)


def show(value: Any) -> str:
    """A value as an error message shows it: short enough for one line."""
    if value is None:
        return "nothing"
    if isinstance(value, (list, dict)):
        kind = "list" if isinstance(value, list) else "object"
        return f"{'an' if kind == 'object' else 'a'} {kind} with {len(value)} entries" if value else f"an empty {kind}"
    if isinstance(value, str):
        return f"the text {value!a}" if len(value) <= 50 else f"the text {value[:47] + '...'!a}"
    return ascii(value)[:60]


def names(row: dict[str, Any]) -> str:
    """The names of a row's fields that are not null, for an error message."""
    held = [plain(str(field)) for field, value in row.items() if value is not None]
    shown = ", ".join(field if len(field) <= 50 else field[:47] + "..." for field in held[:30])
    return f"{shown} and {len(held) - 30} more" if len(held) > 30 else shown or "(none)"
