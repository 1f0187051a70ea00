"""What named objectives were rated on a response: {"helpful": 3, "harmless": 1}, any of which may be missing.

A row of rated responses has `prompt`, `response` (or `completion`) and `ratings`, or lists of both under `responses`
(or `completions`) and `ratings`; each response stands alone, and nothing is compared. A row of a pair may rate its
sides beside it: `"ratings": {"chosen": {..}, "rejected": {..}}`. HelpSteer and ArmoRM train on such numbers.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rmkit.data.fields import entries, number, show, text
from rmkit.data.messages import Message, messages
from rmkit.data.shapes.plain import turned

ONE = ("response", "completion")
LIST = ("responses", "completions")
SIDES = ("chosen", "rejected")

Ratings = dict[str, float]


def is_rated(row: dict[str, Any]) -> bool:
    """Whether a row holds rated responses, which are compared with nothing."""
    if row.get("prompt") is None or row.get("ratings") is None:
        return False
    ranked = any(row.get(name) is not None for name in ("ranks", "scores"))
    return any(row.get(name) is not None for name in ONE) or (
        not ranked and any(row.get(name) is not None for name in LIST)
    )


def rated_responses(row: dict[str, Any]) -> Iterator[tuple[str, list[Message], list[Message], str]]:
    """Suffix of the id, prompt, response and ratings (as the cache holds them) of each rated response of a row."""
    one = next((name for name in ONE if row.get(name) is not None), None)
    if one is not None:
        prompt, (response,) = turned(row.get("prompt"), [row[one]])
        held = json.dumps({"chosen": _read(row["ratings"], "ratings")})
        yield "", messages(prompt, "prompt", "user"), messages(response, one), held
        return
    field = next(name for name in LIST if row.get(name) is not None)
    prompt, responses = turned(row.get("prompt"), entries(row[field], field))
    prompt, ratings = messages(prompt, "prompt", "user"), entries(row["ratings"], "ratings")
    if len(responses) != len(ratings):
        raise ValueError(f"field 'ratings': found {len(ratings)} entries for {len(responses)} {field}")
    for i, (response, rated) in enumerate(zip(responses, ratings, strict=True)):
        held = json.dumps({"chosen": _read(rated, f"ratings[{i}]")})
        yield f"/{i}", prompt, messages(response, f"{field}[{i}]"), held


def of_sides(row: dict[str, Any]) -> str | None:
    """The ratings of a pair's sides, as the cache holds them; None where the row rates neither."""
    given = row.get("ratings")
    if given is None:
        return None
    if not isinstance(given, dict) or not set(given) <= set(SIDES):
        raise ValueError(
            f"field 'ratings': found {show(given)}, need an object with chosen and rejected, each with its ratings"
        )
    held = {side: _read(given[side], f"ratings.{side}") for side in SIDES if given.get(side) is not None}
    return json.dumps(held) if held else None


def _read(value: Any, field: str) -> Ratings:
    if not isinstance(value, dict):
        raise ValueError(f"field '{field}': found {show(value)}, need an object such as {{\"helpful\": 3}}")
    return {
        text(name, field): number(rating, f"{field}.{name}") for name, rating in value.items() if rating is not None
    }


def table(held: Sequence[str | None], objectives: Sequence[str]) -> tuple[np.ndarray, set[str]]:
    """What the cache holds for N rows as float64 [N, 2, K], NaN where a side was not rated by one of the K objectives;
    and the names of other objectives that stand in it."""
    rated, others = np.full((len(held), 2, len(objectives)), np.nan), set()
    place = {name: k for k, name in enumerate(objectives)}
    for i, raw in enumerate(held):
        for side, ratings in json.loads(raw).items() if raw else ():
            for name, rating in ratings.items():
                if name in place:
                    rated[i, SIDES.index(side), place[name]] = rating
                else:
                    others.add(name)
    return rated, others
