"""From a row of any accepted form to its samples. Pure functions of one row.

A sample is one response to one prompt. A field that would change its text and is not read is refused; other fields
that are not read are in `Sample.unread`. Rows are HALOs' samples (`prompt` or `instruction`, `output`), one row per
prompt with `responses` or `completions`, HALOs' own feedback (to be labelled anew), or any form of preferences, each
side of which is a sample. A field that is null counts as absent. Every ValueError names the field and what was found;
the caller adds file and line.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rmkit.data import context, conversation, forms
from rmkit.data.columns import Renames, renamed
from rmkit.data.fields import entries, name, names, show
from rmkit.data.messages import Message, is_plain, messages
from rmkit.data.named import NAMED
from rmkit.data.shapes.instruction import instruction
from rmkit.data.shapes.plain import PROMPTS, turned
from rmkit.data.shapes.shape import Shape

LISTS = ("responses", "completions")
ONE = ("output", "response", "completion")
OUTDATED = ("reward", "reward_se", "label", "ranks", "scores", *LISTS)
"""Fields of a row that its samples do not keep: earlier labels, and the lists of responses."""
IN_THE_PROMPT = ("system", "system_prompt", "history", "input")
"""Fields that have become part of the prompt, which is kept whole: kept beside it, they would be read twice."""
SAMPLED = frozenset(("prompt_id", "sample_id", "generator", "dataset", *OUTDATED)) - frozenset(LISTS)
"""Fields that nothing is said of though they are not scored: those of HALOs' sampler, and earlier labels."""
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
    options: dict[str, Any] | None = None
    """Tools and arguments for the chat template"""
    unread: frozenset[str] = frozenset()
    """Names of the row's fields that are not scored; `record` may hold them"""
    of_pair: bool = False
    """Whether it is a side of a preference: a response that occurs in many rows is one sample then"""

    @property
    def conversation(self) -> list[Message]:
        return [*self.prompt, *self.response]

    @property
    def text(self) -> int:
        """A hash, equal where prompt and response are the same."""
        return digest([self.group, conversation.key(self.response, None)])


def digest(value: Any) -> int:
    """64 bits of a JSON value, as int64."""
    raw = hashlib.blake2b(json.dumps(value).encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big", signed=True)


def samples(row: Any, renames: Renames = ()) -> list[Sample]:
    """The samples of a row, whose fields have other names where --columns gives them.

    Raises ValueError, with the field and what was found, where one is missing or of a wrong type.
    """
    if not isinstance(row, dict):
        raise ValueError(f"found {show(row)}, need an object with fields; {NEEDS}")
    row = renamed(row, renames)
    kind = row.get("type")
    if row.get("output") is not None or kind in ("sample", "scalar_feedback", "binary_feedback"):
        return _samples(row, [("output", row.get("output"), {})])
    shape = _shape(row)
    field = next((field for field in LISTS if row.get(field) is not None), None)
    if field is not None and (shape is None or field not in shape.keys):
        listed = entries(row[field], field)
        return _samples(row, ((f"{field}[{i}]", response, {"sample_id": i}) for i, response in enumerate(listed)))
    one = next((field for field in ONE if row.get(field) is not None), None)
    if one is not None and (shape is None or shape.joins or not shape.pairs):
        return _samples(row, [(one, row[one], {})], shape)
    if shape is None:
        forms.shape_of(row)
    return _sides(row, shape)


def _shape(row: dict[str, Any]) -> Shape | None:
    """The row's form as a preference, None where it is none. A row that should be one is told what is missing."""
    try:
        return forms.shape_of(row)
    except ValueError:
        held = [field for field in (*LISTS, *ONE) if row.get(field) is not None]
        if not held and row.get("type") != "pairwise_feedback" and not {"chosen", "rejected"} <= row.keys():
            raise ValueError(f"found the fields {names(row)}; {NEEDS}") from None
        return None


def _samples(
    row: dict[str, Any], responses: Iterable[tuple[str, Any, dict[str, Any]]], shape: Shape | None = None
) -> list[Sample]:
    """A sample for each of `responses`: (name of its field, the response, what its record has besides the row's)."""
    prompt_field = "instruction" if row.get("prompt") is None and row.get("instruction") is not None else "prompt"
    names_of, answers, more_of = zip(*responses, strict=True)
    prompt, answers = _asked(row, prompt_field, shape, list(answers))
    if not prompt:
        raise ValueError(f"field '{prompt_field}': found an empty list, need text or at least one message")
    prompt, options = context.surrounded(row, prompt, ()), context.options(row)
    _refuse_what_is_left_out(row, prompt_field, shape, prompt, answers)
    prompt_id = _prompt_id(row)
    group = _group(prompt_id, prompt, options)
    unread = _unread(row, names_of[0].partition("[")[0], shape)
    kept = {key: value for key, value in row.items() if key not in OUTDATED and key not in IN_THE_PROMPT}
    if options is not None:
        kept |= options
    made = []
    for field, given, more in zip(names_of, answers, more_of, strict=True):
        response = messages(given, field)
        if not response:
            raise ValueError(f"field '{field}': found an empty list, need text or at least one message")
        record = {**kept, **more}
        made.append(
            Sample(
                prompt=prompt,
                response=response,
                prompt_id=prompt_id,
                group=group,
                record=record,
                options=options,
                unread=unread,
            )
        )
    forms.check_asked(prompt, *(sample.response for sample in made))
    return made


def _refuse_what_is_left_out(
    row: dict[str, Any], prompt_field: str, shape: Shape | None, prompt: list[Message], answers: list[Any]
) -> None:
    """ValueError where a field is part of the conversation, as what it stands beside is not: a passage that the prompt
    is about, or a second prompt with other words."""
    read = {prompt_field} | (set() if shape is None else shape.keys | shape.uses)
    read |= {"input"} if prompt_field == "instruction" else set()
    for field in (*forms.CHANGES_THE_TEXT, *sorted(PROMPTS)):
        if field in read or not context.given(row, field):
            continue
        if field not in PROMPTS or not _stands_in(row[field], field, prompt, answers):
            raise ValueError(
                f"field '{field}': found {show(row[field])} beside a prompt (field '{prompt_field}'); put it into the "
                f"prompt, or leave it out: --columns {field}="
            )


def _stands_in(value: Any, field: str, prompt: list[Message], answers: list[Any]) -> bool:
    """Whether a second prompt says nothing that prompt and answers do not: the question that a prompt is made of, or
    the whole conversation (what this program writes of a row with an instruction is read again)."""
    try:
        second = messages(value, field, "user")
        turns = [turn for answer in answers for turn in messages(answer, field)]
    except ValueError:
        return False
    if not all(map(is_plain, second)):
        return False
    said = [turn["content"] or "" for turn in prompt]
    words = {text.strip() for text in said} | {(turn["content"] or "").strip() for turn in turns}
    told = [turn["content"].strip() for turn in second]
    return words.issuperset(told) or (len(told) == 1 and any(told[0] in text for text in said))


def _unread(row: dict[str, Any], answer: str, shape: Shape | None) -> frozenset[str]:
    read = SAMPLED | PROMPTS | {answer, "input"} | (set() if shape is None else shape.keys | shape.uses)
    return frozenset(field for field in forms.unread(row, read) if context.given(row, field))


def _asked(row: dict[str, Any], field: str, shape: Shape | None, answers: list[Any]) -> tuple[list[Message], list[Any]]:
    """The prompt and the answers, turned into turns where training would."""
    if shape is not None and shape.asked is not None:
        return shape.asked(row), answers
    if field == "instruction":
        return instruction(row), answers
    prompt, answers = turned(row.get(field), answers)
    return messages(prompt, field, "user"), answers


def _sides(row: dict[str, Any], shape: Shape) -> list[Sample]:
    """Both sides of every preference of a row; a side that occurs in several of them once."""
    distinct: dict[int, Sample] = {}
    kept = {key: row[key] for key in OF_A_PAIR if row.get(key) is not None}
    prompt_id, prompt, group = _prompt_id(row), None, 0
    pairs = _pairs(row, shape)  # which refuses a row that is none of its form
    unread = frozenset(forms.unused(row, shape) - {"prompt_id", *OF_A_PAIR})
    for pair in pairs:
        options = pair.get("options")
        if pair["prompt"] is not prompt:  # all pairs of a row have one
            prompt = pair["prompt"]
            group = _group(prompt_id, prompt, options)
        for side in ("chosen", "rejected"):
            if not pair[side]:  # a rated response stands alone
                continue
            sample = Sample(
                prompt=prompt,
                response=pair[side],
                prompt_id=prompt_id,
                group=group,
                record=kept if options is None else kept | options,
                options=options,
                unread=unread,
                of_pair=True,
            )
            distinct.setdefault(sample.text, sample)
    return list(distinct.values())


def _pairs(row: dict[str, Any], shape: Shape) -> list[dict[str, Any]]:
    """The preferences of a row; of responses that all have one rank too, each beside the first."""
    if shape.named:
        made = [pair for _, pair in NAMED[shape.named].function([row], "test") if not isinstance(pair, str)]
        if not made:
            raise ValueError(f"found a row of {shape.name}, which makes no pair alone; label the set by its name")
        return made
    made = forms.preferences(row, shape.name)
    if made or shape.responses is None:
        return made
    prompt, sides, _ = shape.responses(row)
    prompt, options = context.surrounded(row, prompt, ()), context.options(row)
    forms.check_asked(prompt, *sides)
    more = {} if options is None else {"options": options}
    return [{"prompt": prompt, "chosen": sides[0], "rejected": side, **more} for side in sides]


def _group(prompt_id: int | str | None, prompt: list[Message], options: dict[str, Any] | None) -> int:
    return digest([prompt_id, conversation.key(prompt, options)])


def _prompt_id(row: dict[str, Any]) -> int | str | None:
    given = row.get("prompt_id")
    name(given, "prompt_id")  # refuses what is neither text nor a whole number
    return given
