"""The form of a file of preferences, and how its rows become preferences. Pure functions of one row.

A normalised preference is `{"prompt", "chosen", "rejected"}` (lists of whole messages), a number for each of `LABELS`,
`ratings` (JSON, or None), `compared` (1.0; 0.0 for a rated response alone, whose `rejected` is empty), `subset` and
`id` (""). Only where there are such, it has `options` (tools and arguments for the chat template) and `undecided` (why
neither side is preferred).
A field that is null counts as absent. Every ValueError names the field and what it holds; the caller adds the place.

The forms are in rmkit.data.shapes, a file a family. This lists them with the fields that a file is recognised by:

    python -c "from rmkit.data import forms; print(forms.table())"
"""

import itertools
import math
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from rmkit.data import context
from rmkit.data.fields import name, names, number, show
from rmkit.data.messages import Message
from rmkit.data.misspelt import missing
from rmkit.data.ratings import of_sides, rated_responses
from rmkit.data.shapes import chat, instruction, judged, plain, ranked, sets
from rmkit.data.shapes.plain import hh_turns
from rmkit.data.shapes.shape import Shape, pairs_of

__all__ = ["LABELS", "NEEDS", "SHAPES", "Label", "detect", "hh_turns", "preferences", "shape_of", "table"]

Form = str

SHAPES: dict[Form, Shape] = {
    shape.name: shape for family in (plain, judged, ranked, chat, instruction, sets) for shape in family.SHAPES
}
"""Every shape by its name. A new one is a `Shape` in a file of rmkit.data.shapes, or in your own program, here."""

_COMMON = ("explicit prompt", "implicit prompt", "HH text", "HALOs pairwise_feedback")
_COMMON += ("ranked responses", "response lists", "rated responses")
NEEDS: dict[str, str] = {form: SHAPES[form].needs for form in _COMMON}
"""What rows of the most common forms hold."""

_NOT_PAIRS = {
    "scalar_feedback": "rows of scalar_feedback hold one scored output each, no pairs",
    "binary_feedback": "rows of binary_feedback hold one output and its label each, no pairs",
    "sample": "sample rows hold one unlabelled output each, no pairs",
}

CHANGES_THE_TEXT = ("context", "input")
"""Fields that are part of a conversation wherever they stand: a form that does not read them refuses them."""


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

_READ_ALWAYS = frozenset(("subset", "id", "split", "type", "ratings", *context.FIELDS))
_AROUND = frozenset((*context.FIELDS, *CHANGES_THE_TEXT))


def detect(row: Any) -> Form:
    """The name of the form of a row, judged by its fields.

    Raises:
        ValueError: no form fits, or two do, or the row is of a HALOs type that holds no pairs.
    """
    return shape_of(row).name


def shape_of(row: Any) -> Shape:
    """The shape of a row, as `detect` finds it."""
    if not isinstance(row, dict):
        raise ValueError(f"found {show(row)}, need an object with fields")
    kind = row.get("type")
    if kind == "pairwise_feedback":
        return SHAPES["HALOs pairwise_feedback"]
    found = [shape for shape in SHAPES.values() if shape.has(row)]
    if len(found) == 1:
        return found[0]
    if found:
        fits = " and ".join(f"{shape.name} ({shape.needs})" for shape in found[:2])
        raise ValueError(
            f"found the fields {names(row)}, which fit both {fits}; leave out what is not meant: columns FIELD= "
            "(see --help)"
        )
    if isinstance(kind, str) and kind in _NOT_PAIRS:
        raise ValueError(
            f"field 'type': found {show(kind)}: {_NOT_PAIRS[kind]}; label the samples as pairwise_feedback "
            "(python -m rmkit.label) and use that file"
        )
    raise ValueError(unknown(row))


def unknown(row: dict[str, Any]) -> str:
    """What is wrong with a row that fits no form."""
    sides = [row.get("chosen"), row.get("rejected")]
    if all(isinstance(side, str) for side in sides) and not any(row.get(field) is not None for field in plain.PROMPTS):
        return (
            "fields 'chosen' and 'rejected': found text without a prompt; add a prompt field (text or messages), or "
            'give whole conversations as messages or as "\\n\\nHuman: ... \\n\\nAssistant: ..." text'
        )
    prompts = [field for field in (*plain.PROMPTS, "input") if row.get(field) is not None]
    if {"chosen", "rejected"} <= row.keys() and len(prompts) > 1:
        two = " and ".join(sorted(prompts)[:2])
        return (
            f"found a prompt in each of the fields {two}; leave one of them out: columns {max(prompts)}= (see --help)"
        )
    known = "; ".join(f"{form}: {needs}" for form, needs in NEEDS.items())
    given = {field for field, value in row.items() if value is not None}
    if likely := missing(given, itertools.chain.from_iterable(shape.keys | shape.uses for shape in SHAPES.values())):
        return f"found the fields {names(row)}, which fit no form of preferences ({likely})"
    return (
        f"found the fields {names(row)}, which fit no form of preferences ({known}; and those of other trainers and "
        "sets); name other fields by columns, such as prompt=question (see --help)"
    )


def preferences(row: dict[str, Any], form: Form) -> list[dict[str, Any]]:
    """The preferences of a row that has the given form: one, or all pairs of different rank, possibly none.

    Raises:
        ValueError: a field is missing or holds something else; the message names it and what it holds.
    """
    shape = SHAPES.get(form)
    if shape is None or shape.named:
        raise ValueError(f"form {form!r}: need one of {', '.join(name for name in SHAPES if not SHAPES[name].named)}")
    around = not _AROUND.isdisjoint(row)  # most rows have nothing of the kind
    common = _common(row, shape)
    if around:
        _refuse_what_is_left_out(row, shape)
        if (options := context.options(row)) is not None:
            common["options"] = options
    row_id = common["id"]
    # Lists keep their places without an id too: rmkit.evaluate puts such rows together again.
    numbered = bool(row_id) or form == "response lists"
    made = []
    for suffix, prompt, chosen, rejected, more in _rated(row) if form == "rated responses" else _compared(row, shape):
        if around:
            prompt = context.surrounded(row, prompt, (chosen, rejected))
        check_asked(prompt, chosen, rejected)
        made.append(
            {"prompt": prompt, "chosen": chosen, "rejected": rejected, **common, **more}
            | {"id": row_id + suffix * numbered}
        )
    return made


def _common(row: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """What all preferences of a row share."""
    part = "domain" if shape.name == "response lists" and row.get("subset") is None else "subset"  # RM-Bench: domain
    field = "prompt_id" if shape.name == "HALOs pairwise_feedback" and row.get("id") is None else "id"
    common = {label: _label(row, label, kind) for label, kind in LABELS.items()}
    return common | {"subset": name(row.get(part), part), "id": name(row.get(field), field)}


def _label(row: dict[str, Any], name: str, label: Label) -> float | None:
    value = row.get(name)
    return label.default if value is None else number(value, name, label.low, label.high)


Made = Iterator[tuple[str, list[Message], list[Message], list[Message], dict[str, Any]]]


def _rated(row: dict[str, Any]) -> Made:
    for suffix, prompt, response, ratings in rated_responses(row):
        yield suffix, prompt, response, [], {"compared": 0.0, "ratings": ratings}


def _compared(row: dict[str, Any], shape: Shape) -> Made:
    # Of a row that makes many pairs, ratings would count once for each pair of a response.
    several = shape.responses is not None or shape.name == "response lists"
    ratings = None if several else of_sides(row)
    for pair in pairs_of(shape, row):
        more = {"compared": 1.0, "ratings": pair.ratings or ratings}
        if pair.undecided:
            more["undecided"] = pair.undecided
        if pair.tools and (options := context.options(row | {"tools": pair.tools})) is not None:
            more["options"] = options
        if pair.target is not None and row.get("target") is None:
            more["target"] = pair.target
        yield pair.suffix, pair.prompt, pair.chosen, pair.rejected, more


def check_asked(prompt: list[Message], *sides: list[Message]) -> None:
    """ValueError where nobody asked anything: the prompt was lost, or stands where it is not looked for."""
    if any(message["role"] == "user" for message in prompt):
        return
    for side in sides:
        if not any(message["role"] == "user" for message in side) and (side or prompt):
            roles = ", ".join(dict.fromkeys(show(message["role"]) for message in [*prompt, *side][:30]))
            raise ValueError(
                f"the conversation has no user turn (it has only the roles {roles}); give the prompt, or turns of role "
                "user"
            )


def _refuse_what_is_left_out(row: dict[str, Any], shape: Shape) -> None:
    for field in CHANGES_THE_TEXT:
        if context.given(row, field) and field not in shape.keys and field not in shape.uses:
            raise ValueError(
                f"field '{field}': found {show(row[field])}, which is part of a conversation but not of the form "
                f"{shape.name} ({shape.needs}); put it into the prompt, or leave it out: columns {field}= (see --help)"
            )


def unused(row: dict[str, Any], shape: Shape) -> set[str]:
    """Names of the fields of a row that its form does not read; those within its answers as completions[].model."""
    others = unread(row, shape.keys | shape.uses)
    if shape.parts is not None:
        field, read = shape.parts
        answers = row[field] if isinstance(row[field], list) else [row[field]]
        given = {name for answer in answers for name, value in answer.items() if value is not None}
        others |= {f"{field}[].{name}" for name in given - read}
    return others


def unread(row: dict[str, Any], read: Set[str]) -> set[str]:
    """Names of the fields of a row beside those that are `read`, and those that mean the same in every form."""
    return row.keys() - read - _READ_ALWAYS - LABELS.keys()


def table() -> str:
    """All forms with the fields that a file of each is recognised by, a line each."""
    width = max(map(len, SHAPES))
    return "\n".join(f"{shape.name:{width}}  {shape.needs}" for shape in SHAPES.values())
