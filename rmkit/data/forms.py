"""The forms that a row of preference data can have, and how each becomes preferences. Pure functions of one row.

A normalised preference is `{"prompt", "chosen", "rejected"}` (lists of `{"role", "content"}`), a number for each of
`LABELS`, `ratings` (JSON, or None), `compared` (1.0; 0.0 for a rated response alone, whose `rejected` is empty),
`subset` and `id` ("").
Of a message only role and content are used. A field that is null counts as absent. Every ValueError names the field
and what it holds; the caller adds file and line.
"""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rmkit.data.fields import MOST, Message, entries, messages, name, names, number, show, text
from rmkit.data.misspelt import missing
from rmkit.data.ratings import is_rated, of_sides, rated_responses

Form = Literal[
    "explicit prompt",
    "implicit prompt",
    "HH text",
    "HALOs pairwise_feedback",
    "ranked responses",
    "response lists",
    "rated responses",
]

NEEDS: dict[str, str] = {
    "explicit prompt": "prompt, chosen and rejected (text or messages)",
    "implicit prompt": "chosen and rejected as whole conversations (messages)",
    "HH text": 'chosen and rejected as text that starts with "\\n\\nHuman: "',
    "HALOs pairwise_feedback": 'type "pairwise_feedback", prompt, output_A, output_B and label',
    "ranked responses": "prompt, responses, and ranks (1 is best) or scores (higher is better)",
    "response lists": "prompt, chosen and rejected as lists of texts",
    "rated responses": 'prompt, response and ratings ({"helpful": 3, ..}), or lists of both (responses, ratings)',
}

_NOT_PAIRS = {
    "scalar_feedback": "rows of scalar_feedback hold one scored output each, no pairs",
    "binary_feedback": "rows of binary_feedback hold one output and its label each, no pairs",
    "sample": "sample rows hold one unlabelled output each, no pairs",
}

# The blank after the colon is not part of the marker: a turn may be empty (HH has some).
_MARKER = re.compile(r"\n\n(Human|Assistant):(?=\s|\Z)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """A number that a row may give for its pair, in a field of that name."""

    default: float | None = None
    """The value where the row gives none; None leaves it to the loss, which gets NaN"""
    low: float = -math.inf
    high: float = math.inf


LABELS: dict[str, Label] = {
    "margin": Label(default=0.0),
    "weight": Label(default=1.0, low=0.0),
    "target": Label(low=0.0, high=1.0),
}
"""Every numeric column of a pair. A new one is a line here; a loss finds it in `labels[NAME]` (rmkit.model.loss)."""

Pair = tuple[str, list[Message], list[Message], list[Message]]  # suffix of the id, prompt, chosen, rejected


def detect(row: Any) -> Form:
    """The form of a row, judged by its fields.

    Raises:
        ValueError: no form fits, or the row is of a HALOs type that holds no pairs.
    """
    if not isinstance(row, dict):
        raise ValueError(f"found {show(row)}, need an object with fields")
    given = {name for name, value in row.items() if value is not None}
    kind = row.get("type")
    if kind == "pairwise_feedback":
        return "HALOs pairwise_feedback"
    if is_rated(row):
        return "rated responses"
    if {"chosen", "rejected"} <= given:
        sides = (row["chosen"], row["rejected"])
        if "prompt" in given:
            return "response lists" if any(_is_texts(side) for side in sides) else "explicit prompt"
        if not any(isinstance(side, str) for side in sides):
            return "implicit prompt"
        if all(isinstance(side, str) and _MARKER.match(_opened(side)) for side in sides):
            return "HH text"
        raise ValueError(
            "fields 'chosen' and 'rejected': found text without a prompt; add a prompt field (text or messages), or "
            'give whole conversations as messages or as "\\n\\nHuman: ... \\n\\nAssistant: ..." text'
        )
    if "prompt" in given and given & {"responses", "completions"} and given & {"ranks", "scores"}:
        return "ranked responses"
    if isinstance(kind, str) and kind in _NOT_PAIRS:
        raise ValueError(
            f"field 'type': found {show(kind)}: {_NOT_PAIRS[kind]}; label the samples as pairwise_feedback "
            "(python -m rmkit.label) and use that file"
        )
    known = "; ".join(f"{form}: {needs}" for form, needs in NEEDS.items())
    raise ValueError(f"found the fields {names(row)}, which fit no form of preferences ({missing(given) or known})")


def preferences(row: dict[str, Any], form: Form) -> list[dict[str, Any]]:
    """The preferences of a row that has the given form: one, or all pairs of different rank, possibly none.

    Raises:
        ValueError: a field is missing or holds something else; the message names it and what it holds.
    """
    if form not in get_args(Form):
        raise ValueError(f"form {form!r}: need one of {', '.join(get_args(Form))}")
    listed = form == "response lists"
    part = "domain" if listed and row.get("subset") is None else "subset"  # RM-Bench says domain
    common = {
        **{name: _label(row, name, label) for name, label in LABELS.items()},
        "subset": name(row.get(part), part),
    }
    field = "prompt_id" if form == "HALOs pairwise_feedback" and row.get("id") is None else "id"
    row_id = name(row.get(field), field)
    # Lists keep their places without an id too: rmkit.evaluate puts such rows together again.
    numbered = bool(row_id) or listed
    if form == "rated responses":
        return [
            {**common, "compared": 0.0, "ratings": ratings, "prompt": prompt, "chosen": response, "rejected": []}
            | {"id": row_id + suffix * numbered}
            for suffix, prompt, response, ratings in rated_responses(row)
        ]
    common |= {"compared": 1.0, "ratings": None if form in _SEVERAL else of_sides(row)}
    return [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected, **common, "id": row_id + suffix * numbered}
        for suffix, prompt, chosen, rejected in _PAIRS[form](row)
    ]


def _label(row: dict[str, Any], name: str, label: Label) -> float | None:
    value = row.get(name)
    return label.default if value is None else number(value, name, label.low, label.high)


def _explicit(row: dict[str, Any]) -> Iterator[Pair]:
    """A row with a prompt; sides that repeat it at their start (ultrafeedback_binarized) are cut to the rest."""
    prompt = messages(row.get("prompt"), "prompt", "user")
    chosen, rejected = (messages(row.get(field), field) for field in ("chosen", "rejected"))
    heads = [_repeats(prompt, side) for side in (chosen, rejected)]
    if max(heads) > len(prompt):  # a system message that only the conversations hold
        head = max(heads)
        if chosen[:head] != rejected[:head]:
            raise ValueError("fields 'chosen' and 'rejected': they repeat the prompt behind different system messages")
        prompt = chosen[:head]
    chosen, rejected = chosen[heads[0] :], rejected[heads[1] :]
    for field, side in (("chosen", chosen), ("rejected", rejected)):
        if side and prompt and side[0]["role"] == prompt[-1]["role"] == "user":
            raise ValueError(
                f"field '{field}': found a user message at its start ({show(side[0]['content'])}) that is not the "
                "prompt's; give the response alone, or the whole conversation with the same prompt"
            )
    yield "", prompt, chosen, rejected


def _repeats(prompt: list[Message], side: list[Message]) -> int:
    """How many messages at the start of `side` repeat the prompt: 0, all, or one more (a system message first)."""
    behind_system = [1] if side and prompt and side[0]["role"] == "system" != prompt[0]["role"] else []
    for start in [0, *behind_system]:
        part = side[start : start + len(prompt)]
        same = [(m["role"], m["content"].strip()) for m in part] == [(m["role"], m["content"].strip()) for m in prompt]
        if prompt and same:
            return start + len(prompt)
    return 0


def _implicit(row: dict[str, Any]) -> Iterator[Pair]:
    chosen, rejected = (messages(row.get(field), field) for field in ("chosen", "rejected"))
    for field, side in (("chosen", chosen), ("rejected", rejected)):
        if not side:
            raise ValueError(f"field '{field}': found an empty list, need a conversation")
    yield _parted(chosen, rejected)


def _hh(row: dict[str, Any]) -> Iterator[Pair]:
    sides = []
    for field in ("chosen", "rejected"):
        turns, response = hh_turns(text(row.get(field), field))
        if response is None:
            raise ValueError(f"field '{field}': found {show(row[field])} without a \"\\n\\nAssistant: \" turn")
        sides.append([*turns, {"role": "assistant", "content": response}])
    yield _parted(*sides)


def hh_turns(text: str) -> tuple[list[Message], str | None]:
    """Split HH text into the turns before the last assistant turn, and that turn's text (None where there is none).

    Texts are stripped, as HALOs does. Consecutive turns of one role are joined, so that roles alternate.
    """
    text = _opened(text)
    marks = list(_MARKER.finditer(text))
    last = next((i for i in reversed(range(len(marks))) if marks[i][1] == "Assistant"), None)
    turns: list[Message] = []
    for mark, following in itertools.pairwise(marks[: len(marks) if last is None else last + 1]):
        role = "user" if mark[1] == "Human" else "assistant"
        content = text[mark.end() : following.start()].strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content}".strip()
        else:
            turns.append({"role": role, "content": content})
    return turns, None if last is None else text[marks[last].end() :].strip()


def _opened(text: str) -> str:
    return "\n\n" + text.lstrip()


def _parted(chosen: list[Message], rejected: list[Message]) -> Pair:
    """Split two conversations into their common start, which is the prompt, and the rest: at least the last message."""
    longest = min(len(chosen), len(rejected)) - 1
    n = next((i for i in range(longest) if chosen[i] != rejected[i]), longest)
    return "", chosen[:n], chosen[n:], rejected[n:]


def _halos(row: dict[str, Any]) -> Iterator[Pair]:
    """A row of HALOs: label 1 prefers output_A, any other number output_B, as HALOs reads it; rewards are ignored."""
    field = "instruction" if row.get("prompt") is None and "instruction" in row else "prompt"
    prompt = messages(row.get(field), field, "user")
    outputs = [messages(row.get(field), field) for field in ("output_A", "output_B")]
    if not isinstance(row.get("label"), (int, float)):
        raise ValueError(f"field 'label': found {show(row.get('label'))}, need 1 (A is preferred) or 0 (B is)")
    better = 0 if row["label"] == 1 else 1
    yield "", prompt, outputs[better], outputs[1 - better]


def _ranked(row: dict[str, Any]) -> Iterator[Pair]:
    """All pairs of responses of different rank, the better one first; with both ranks and scores, the ranks decide."""
    field = "completions" if row.get("responses") is None else "responses"
    prompt = messages(row.get("prompt"), "prompt", "user")
    responses = entries(row.get(field), field)
    by = "scores" if row.get("ranks") is None else "ranks"
    values = entries(row.get(by), by)
    if len(values) != len(responses):
        raise ValueError(f"field '{by}': found {len(values)} numbers for {len(responses)} {field}")
    _check_number(len(responses) * (len(responses) - 1) // 2, f"field '{field}'")
    sign = -1.0 if by == "ranks" else 1.0
    goods = [sign * number(value, f"{by}[{i}]") for i, value in enumerate(values)]
    sides = [messages(side, f"{field}[{i}]") for i, side in enumerate(responses)]
    for i, j in itertools.permutations(range(len(sides)), 2):
        if goods[i] > goods[j]:
            yield f"/{i}>{j}", prompt, sides[i], sides[j]


def _lists(row: dict[str, Any]) -> Iterator[Pair]:
    """All pairs of a chosen and a rejected text (RM-Bench, RewardBench 2)."""
    prompt = messages(row.get("prompt"), "prompt", "user")
    sides = []
    for field in ("chosen", "rejected"):
        texts = [row[field]] if isinstance(row.get(field), str) else entries(row.get(field), field)
        sides.append([messages(part, f"{field}[{i}]") for i, part in enumerate(texts)])
    _check_number(len(sides[0]) * len(sides[1]), "fields 'chosen' and 'rejected'")
    for (i, chosen), (j, rejected) in itertools.product(*map(enumerate, sides)):
        yield f"/{i}>{j}", prompt, chosen, rejected


def _check_number(pairs: int, field: str) -> None:
    if pairs > MOST:
        raise ValueError(f"{field}: found responses for {pairs} preferences, need at most {MOST} a row; give fewer")


_PAIRS = {
    "explicit prompt": _explicit,
    "implicit prompt": _implicit,
    "HH text": _hh,
    "HALOs pairwise_feedback": _halos,
    "ranked responses": _ranked,
    "response lists": _lists,
}


_SEVERAL = ("ranked responses", "response lists")
"""Forms of which a row makes many pairs: ratings would count once for each pair of a response"""


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)
