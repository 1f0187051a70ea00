"""The configurations of runs as flags: what a run changed, and in what several runs differ."""

import dataclasses
import json
from typing import Any

from rmkit.config import DEMO, ModelConfig, TrainConfig, to_dict

PLACE = ("--exp-name", "--cache-dir", "--resume", "--overwrite")
"""Flags that say where a run is and how it began, not what it does"""


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """The flags of a config.json with their values; {} where it is no object."""
    found = {}
    for part, held in config.items() if isinstance(config, dict) else ():
        for key, value in held.items() if isinstance(held, dict) else [("", held)]:
            found["--" + f"{part}.{key}".rstrip(".").replace("_", "-")] = value
    return found


def usual(config: dict[str, Any]) -> dict[str, Any]:
    """The values that a run of the same model has with no other flag."""
    model = config.get("model") if isinstance(config, dict) else None
    name = model.get("name") if isinstance(model, dict) else None
    try:
        resolved = dataclasses.replace(TrainConfig(), model=ModelConfig(name=name)).resolved()
    except (ValueError, TypeError):  # no name of a model
        resolved = TrainConfig().resolved()
    return flat(json.loads(json.dumps(to_dict(resolved))))


def changed(config: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The flags that a run changed: name, value, what it is by default."""
    before = usual(config)
    before["--model.name"] = DEMO
    given = flat(config)
    return [
        (flag, shown(value), shown(before[flag]) if flag in before else "(unknown)")
        for flag, value in given.items()
        if flag not in PLACE and not (flag in before and before[flag] == value)
    ]


def unchanged(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The other flags."""
    others = {flag for flag, *_ in changed(config)}
    return [(flag, shown(value)) for flag, value in flat(config).items() if flag not in others]


def differing(configs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The flags whose values are not the same in all runs, a value a run. What an older run did not know yet, it had
    at its default; a run without a readable configuration has "?" everywhere."""
    given = [{**usual(config), **flat(config)} if config else {} for config in configs]
    names = dict.fromkeys(flag for flags in given for flag in flags if flag not in PLACE)
    rows = {}
    for flag in names:
        values = [shown(flags[flag]) if flag in flags else "?" for flags in given]
        if len({value for value, flags in zip(values, given, strict=True) if flags}) > 1:
            rows[flag] = values
    return rows


def shown(value: Any) -> str:
    """A value as one reads it: "-" for nothing, lists with spaces."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value)) or "-"
    return "-" if value in (None, "") else str(value)
