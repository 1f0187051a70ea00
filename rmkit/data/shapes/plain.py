"""`chosen` and `rejected`, with a prompt or as whole conversations: the shapes of TRL and OpenRLHF.

Sources: TRL `docs/source/dataset_formats.md` (preference, explicit and implicit prompt), OpenRLHF `--data.prompt_key`,
`chosen_key`, `rejected_key`, Anthropic/hh-rlhf (text), RM-Bench and RewardBench 2 (lists).
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

from rmkit.data.fields import entries, show, text
from rmkit.data.messages import Message, messages
from rmkit.data.shapes.shape import Pair, Row, Shape, behind, check_number, names, parted

# The blank after the colon is not part of the marker: a turn may be empty (HH has some).
_MARKER = re.compile(r"\n\n(Human|Assistant):(?=\s|\Z)")
_NEMO = re.compile(r"\n?<extra_id_1>(User|Assistant)(?:\n|\Z)")

PROMPTS = names("prompt", "messages", "conversations", "conversation", "instruction", "question", "query")
"""Fields that hold a prompt beside chosen and rejected. `prompt` wins over the others, which are then said to be
unused; without it, exactly one of them should be there."""


def _explicit(row: Row) -> Iterator[Pair]:
    prompt = messages(row.get("prompt"), "prompt", "user")
    yield behind(prompt, messages(row.get("chosen"), "chosen"), messages(row.get("rejected"), "rejected"))


def _implicit(row: Row) -> Iterator[Pair]:
    yield parted(*(messages(row.get(field), field) for field in ("chosen", "rejected")))


def _hh(row: Row) -> Iterator[Pair]:
    sides = []
    for field in ("chosen", "rejected"):
        turns, response = hh_turns(text(row.get(field), field))
        if response is None:
            raise ValueError(f"field '{field}': found {show(row[field])} without a \"\\n\\nAssistant: \" turn")
        sides.append([*turns, {"role": "assistant", "content": response}])
    yield parted(*sides)


def _hh_prompt(row: Row) -> Iterator[Pair]:
    """The prompt's last "Assistant:" opens the response (Dahoas/full-hh-rlhf)."""
    prompt = hh_turns(text(row["prompt"], "prompt"))[0]
    sides = (text(row[field], field).strip() for field in ("chosen", "rejected"))
    yield Pair("", prompt, *([{"role": "assistant", "content": side}] for side in sides))


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


def nemo_turns(value: Any, field: str) -> list[Message]:
    """A prompt as NeMo's data have it: text that starts with the user's turn, before each further turn
    "<extra_id_1>User" or "<extra_id_1>Assistant" on a line of its own. What is no such text is read as `messages`.

    Raises ValueError where the last turn is not the user's, or one speaker has two turns in a row.
    """
    first, *marked = _NEMO.split(value) if isinstance(value, str) else [value]
    if not marked:
        return messages(value, field, "user")
    text(value, field)
    turns = [
        {"role": role.lower(), "content": content} for role, content in zip(marked[::2], marked[1::2], strict=True)
    ]
    if first:  # a mark may stand before the first turn too
        turns.insert(0, {"role": "user", "content": first})
    roles = [turn["role"] for turn in turns]
    if roles[-1] != "user" or any(a == b for a, b in itertools.pairwise(roles)):
        raise ValueError(
            f"field '{field}': found <extra_id_1> turns of {', '.join(roles[-6:])}, need turns of user and assistant "
            "one after the other, the user's last"
        )
    return turns


def _opened(text: str) -> str:
    return "\n\n" + text.lstrip()


def is_hh(value: Any) -> bool:
    """Whether a value is text in which HH's speakers take turns from the first word on."""
    return isinstance(value, str) and value.lstrip().startswith(("Human:", "Assistant:")) and _marked(value)


def _marked(value: str) -> bool:
    return _MARKER.match(_opened(value)) is not None


def is_hh_prompt(value: Any) -> bool:
    """Whether a value is HH text that ends where the assistant should speak."""
    return is_hh(value) and value.rstrip().endswith("\n\nAssistant:")


def turned(prompt: Any, answers: list[Any]) -> tuple[Any, list[Any]]:
    """HH text that ends where the assistant should speak, before answers that are text, as turns and stripped answers
    (as `_hh_prompt` reads a pair); anything else as it is."""
    if not (is_hh_prompt(prompt) and all(isinstance(answer, str) for answer in answers)):
        return prompt, answers
    return hh_turns(prompt)[0], [answer.strip() for answer in answers]


def holds_turns(prompt: list[Message]) -> bool:
    """Whether a user's message holds turns with HH's or NeMo's marks, which are read as that user's own words."""
    said = (message["content"] for message in prompt if message["role"] == "user" and message["content"])
    return any("\n\nHuman:" in _opened(content) or _NEMO.search(content) is not None for content in said)


def _lists(row: Row) -> Iterator[Pair]:
    """All pairs of a chosen and a rejected text."""
    prompt = messages(row.get("prompt"), "prompt", "user")
    sides = []
    for field in ("chosen", "rejected"):
        texts = [row[field]] if isinstance(row.get(field), str) else entries(row.get(field), field)
        sides.append([messages(part, f"{field}[{i}]") for i, part in enumerate(texts)])
    check_number(len(sides[0]) * len(sides[1]), "fields 'chosen' and 'rejected'")
    for (i, chosen), (j, rejected) in itertools.product(*map(enumerate, sides)):
        yield Pair(f"/{i}>{j}", prompt, chosen, rejected)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)


def _listed(row: Row) -> bool:
    return _is_texts(row["chosen"]) or _is_texts(row["rejected"])


def _prompted_by_hh(row: Row) -> bool:
    return all(isinstance(row[side], str) for side in ("chosen", "rejected")) and is_hh_prompt(row["prompt"])


def _texts_of_hh(row: Row) -> bool:
    return all(is_hh(row[side]) for side in ("chosen", "rejected"))


def _in_full(row: Row) -> bool:
    return not (_listed(row) or _prompted_by_hh(row))


_SIDES = names("chosen", "rejected")
_WHOLE = PROMPTS | names("input")

SHAPES = (
    Shape(
        name="explicit prompt",
        needs="prompt, chosen and rejected (text or messages)",
        keys=_SIDES | names("prompt"),
        fits=_in_full,
        pairs=_explicit,
    ),
    Shape(
        name="implicit prompt",
        needs="chosen and rejected as whole conversations (messages)",
        keys=_SIDES,
        without=_WHOLE,
        fits=lambda row: not any(isinstance(row[side], str) for side in _SIDES),
        pairs=_implicit,
    ),
    Shape(
        name="HH text",
        needs='chosen and rejected as text that starts with "\\n\\nHuman: "',
        keys=_SIDES,
        without=_WHOLE,
        fits=_texts_of_hh,
        pairs=_hh,
    ),
    Shape(
        name="HH prompt",
        needs='prompt as text from "\\n\\nHuman: " to "\\n\\nAssistant:", chosen and rejected as text',
        keys=_SIDES | names("prompt"),
        fits=_prompted_by_hh,
        pairs=_hh_prompt,
    ),
    Shape(
        name="response lists",
        needs="prompt, chosen and rejected as lists of texts",
        keys=_SIDES | names("prompt"),
        fits=_listed,
        uses=names("domain"),
        pairs=_lists,
    ),
)
