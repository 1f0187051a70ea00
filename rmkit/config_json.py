"""The configuration of a run, read back from its config.json."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

from rmkit.config import TrainConfig


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The configuration that `rmkit.config.to_dict` wrote; an unknown or wrong key is a ValueError naming it."""
    return _built(TrainConfig, values, "")


def _built(kind: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"config.json: {prefix.rstrip('.') or 'the file'} is {values!r}, not an object")
    known = {field.name: field.type for field in dataclasses.fields(kind)}
    given = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"config.json: unknown key {prefix + key!r}; it was written by another version")
        if prefix + key == "model.gradient_checkpointing" and isinstance(value, bool):
            value = "on" if value else "off"  # it was a switch once
        _check_choices(known[key], value, prefix + key)
        if dataclasses.is_dataclass(known[key]):
            value = _built(known[key], value, f"{prefix}{key}.")
        given[key] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"config.json: a value under {prefix or 'the top'} has the wrong type ({error})") from error


def _check_choices(kind: Any, value: Any, name: str) -> None:
    """ValueError where `kind` is a Literal, or a tuple of one, and `value` is none of its choices."""
    many = get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal
    one = get_args(kind)[0] if many else kind
    if get_origin(one) is not Literal:
        return
    if many and not isinstance(value, list | tuple):
        raise ValueError(f"config.json: {name} is {value!r}; it is a list of {', '.join(get_args(one))}")
    for each in value if many else [value]:
        if each not in get_args(one):
            where = f"{name} holds" if many else f"{name} is"
            raise ValueError(f"config.json: {where} {each!r}; it can be {', '.join(get_args(one))}")
