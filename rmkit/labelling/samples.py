"""From a row of any accepted form to its samples. Pure functions of one row.

A sample is one response to one prompt. Rows are HALOs' samples (`prompt` or `instruction`, `output`), one row per
prompt with `responses` or `completions`, HALOs' own feedback (to be labelled anew), or any form of preferences, each
side of which is a sample. A field that is null counts as absent. Every ValueError names the field and what was found;
the caller adds file and line.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rmkit.data import forms
from rmkit.data.fields import Message, entries, messages, name, names, show

LISTS = ("responses", "completions")
OUTDATED = ("reward", "label", "ranks", "scores", *LISTS)
"""Fields of a row that its samples do not keep: earlier labels, and the lists of responses."""
OF_A_PAIR = ("dataset", "split", "subset")
"""Fields of a preference that both of its samples keep."""
NEEDS = (
    "samples need prompt (or instruction) and output, or prompt and a list of responses (or completions); preferences "
    "need prompt, chosen and rejected"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One response to one prompt."""

    prompt: list[Message]
    response: list[Message]
    prompt_id: int | str | None
    group: int
    """Equal where the prompt is the same: HALOs' running prompt_id starts at 0 in each run, so it is not enough"""
    record: dict[str, Any]
    """The row's other fields, kept as they are"""
    of_pair: bool = False
    """Whether it is a side of a preference: a response that occurs in many rows is one sample then"""

    @property
    def conversation(self) -> list[Message]:
        return [*self.prompt, *self.response]

    @property
    def text(self) -> int:
        """A hash, equal where prompt and response are the same."""
        return digest([self.group, self.response])


def digest(value: Any) -> int:
    """64 bits of a JSON value, as int64."""
    raw = hashlib.blake2b(json.dumps(value).encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big", signed=True)


def samples(row: Any) -> list[Sample]:
    """The samples of a row.

    Raises ValueError, with the field and what was found, where one is missing or of a wrong type.
    """
    if not isinstance(row, dict):
        raise ValueError(f"found {show(row)}, need an object with fields; {NEEDS}")
    kind = row.get("type")
    if row.get("output") is not None or kind in ("sample", "scalar_feedback", "binary_feedback"):
        return _samples(row, [("output", row.get("output"), {})])
    field = next((field for field in LISTS if row.get(field) is not None), None)
    if field is not None:
        listed = entries(row[field], field)
        return _samples(row, ((f"{field}[{i}]", response, {"sample_id": i}) for i, response in enumerate(listed)))
    if kind != "pairwise_feedback" and not {"chosen", "rejected"} <= row.keys():
        raise ValueError(f"found the fields {names(row)}; {NEEDS}")
    return _sides(row)


def _samples(row: dict[str, Any], responses: Iterable[tuple[str, Any, dict[str, Any]]]) -> list[Sample]:
    """A sample for each of `responses`: (name of its field, the response, what its record has besides the row's)."""
    prompt_field = "instruction" if row.get("prompt") is None and row.get("instruction") is not None else "prompt"
    prompt = messages(row.get(prompt_field), prompt_field, "user")
    if not prompt:
        raise ValueError(f"field '{prompt_field}': found an empty list, need text or at least one message")
    prompt_id = _prompt_id(row)
    group = digest([prompt_id, prompt])
    kept = {key: value for key, value in row.items() if key not in OUTDATED}
    made = []
    for field, given, more in responses:
        response = messages(given, field)
        if not response:
            raise ValueError(f"field '{field}': found an empty list, need text or at least one message")
        record = {**kept, **more}
        made.append(Sample(prompt=prompt, response=response, prompt_id=prompt_id, group=group, record=record))
    return made


def _sides(row: dict[str, Any]) -> list[Sample]:
    """Both sides of every preference of a row; a side that occurs in several of them once."""
    distinct: dict[int, Sample] = {}
    kept = {key: row[key] for key in OF_A_PAIR if row.get(key) is not None}
    prompt_id, prompt, group = _prompt_id(row), None, 0
    for pair in forms.preferences(row, forms.detect(row)):
        if pair["prompt"] is not prompt:  # all pairs of a row have one
            prompt = pair["prompt"]
            group = digest([prompt_id, prompt])
        for side in ("chosen", "rejected"):
            sample = Sample(
                prompt=prompt, response=pair[side], prompt_id=prompt_id, group=group, record=kept, of_pair=True
            )
            distinct.setdefault(sample.text, sample)
    return list(distinct.values())


def _prompt_id(row: dict[str, Any]) -> int | str | None:
    given = row.get("prompt_id")
    name(given, "prompt_id")  # refuses what is neither text nor a whole number
    return given
