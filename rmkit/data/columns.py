"""Fields of rows under other names, as --data.columns gives them: `prompt=question chosen=best`, or `input=` to leave a
field out."""

from typing import Any

from rmkit.data.fields import names

Renames = tuple[tuple[str, str], ...]  # (the name that is read, the field that holds it or "")


def of_file(given: tuple[str, ...], first: Any) -> Renames:
    """The renames that hold for a file, judged by its first row: all of them, or none where it has no such field.

    Raises ValueError where only some of the fields are there.
    """
    asked = tuple((name, field) for name, _, field in (each.partition("=") for each in given))
    if not isinstance(first, dict):
        return ()
    there = [(field or name) in first for name, field in asked]
    if not any(there):
        return ()
    absent = [field for (_, field), held in zip(asked, there, strict=True) if field and not held]
    if absent:
        raise ValueError(f"columns {' '.join(given)}: found no field {absent[0]}, only {names(first)}")
    return asked


def renamed(row: Any, renames: Renames) -> Any:
    """A row under these names. A field that is given another name is not there under its own."""
    if not renames or not isinstance(row, dict):
        return row
    moved = {field for _, field in renames} | {name for name, _ in renames}
    kept = {name: value for name, value in row.items() if name not in moved}
    return kept | {name: row.get(field) for name, field in renames if field}
