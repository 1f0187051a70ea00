"""A conversation in one field and the two answers beside it: the shapes of chat trainers.

Sources: axolotl `prompt_strategies/dpo/chat_template.py` (messages; chosen and rejected as text, object or list),
LLaMA-Factory `data/converter.py` (sharegpt ranking, from/value) and `v1/plugins/data_plugins/converter.py`
(chosen_messages), torchtune `docs/source/basics/preference_datasets.rst` (chosen_conversations), ms-swift
`swift/dataset/preprocessor/core.py` (rejected_response, rejected_messages), OpenAI's preference fine-tuning (input,
preferred_output, non_preferred_output).
"""

from collections.abc import Iterator
from typing import Any

from rmkit.data.fields import show
from rmkit.data.messages import Message, called, messages
from rmkit.data.shapes.plain import PROMPTS
from rmkit.data.shapes.shape import Pair, Row, Shape, behind, names, parted

_SIDES = names("chosen", "rejected")
CHATS = ("messages", "conversations", "conversation")


def _beside(field: str) -> Shape:
    """`field` is the prompt; where it is the chosen conversation itself, the answers hold the whole conversations."""

    def pairs(row: Row) -> Iterator[Pair]:
        prompt = messages(row[field], field, "user")
        chosen, rejected = (messages(row.get(side), side) for side in ("chosen", "rejected"))
        yield parted(chosen, rejected) if prompt == chosen else behind(prompt, chosen, rejected)

    return Shape(
        name=f"{field} with chosen and rejected",
        needs=f"{field} (messages that end in the user's), chosen and rejected (text, a message or messages)",
        keys=_SIDES | names(field),
        without=PROMPTS - names(field),
        pairs=pairs,
    )


def _swift_messages(value: Any, field: str) -> list[Message]:
    """Messages of ms-swift, whose roles tool_call and tool_response hold a call as JSON and what came of it."""
    turns = []
    for i, turn in enumerate(messages(value, field)):
        if turn["role"] == "tool_call":
            calls = called(turn["content"], f"{field}[{i}].content")
            turn = {**turn, "role": "assistant", "content": None, "tool_calls": calls}
        elif turn["role"] == "tool_response":
            turn = {**turn, "role": "tool"}
        turns.append(turn)
    return turns


def _swift(row: Row) -> Iterator[Pair]:
    """The last turn of `messages` is the chosen answer."""
    whole = _swift_messages(row["messages"], "messages")
    if not whole or whole[-1]["role"] != "assistant":
        ends = show(whole[-1]["role"]) if whole else "nothing"
        raise ValueError(f"field 'messages': found a conversation that ends in {ends}, need the chosen answer there")
    if row.get("rejected_messages") is not None:
        yield parted(whole, _swift_messages(row["rejected_messages"], "rejected_messages"))
        return
    given = row["rejected_response"]
    for i, answer in enumerate(given if _texts(given) else [given]):
        suffix = f"/{i}" if _texts(given) and len(given) > 1 else ""
        yield Pair(suffix, whole[:-1], whole[-1:], messages(answer, "rejected_response"))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)


def _swift_query(row: Row) -> Iterator[Pair]:
    sides = (messages(row[side], side) for side in ("response", "rejected_response"))
    yield Pair("", messages(row["query"], "query", "user"), *sides)


def _openai(row: Row) -> Iterator[Pair]:
    given = row["input"]
    held, field = (given.get("messages"), "input.messages") if isinstance(given, dict) else (given, "input")
    sides = (messages(row[side], side) for side in ("preferred_output", "non_preferred_output"))
    pair = Pair("", messages(held, field, "user"), *sides)
    yield pair._replace(tools=given.get("tools")) if isinstance(given, dict) else pair


def _whole(chosen: str, rejected: str, name: str) -> Shape:
    def pairs(row: Row) -> Iterator[Pair]:
        yield parted(*(messages(row[side], side) for side in (chosen, rejected)))

    return Shape(
        name=name,
        needs=f"{chosen} and {rejected}, both whole conversations",
        keys=names(chosen, rejected),
        without=_SIDES | names("messages"),
        pairs=pairs,
    )


SHAPES = (
    *map(_beside, CHATS),
    Shape(
        name="ms-swift rejected_response",
        needs="messages that end in the chosen answer, and rejected_response",
        keys=names("messages", "rejected_response"),
        without=_SIDES | names("rejected_messages", "query"),
        pairs=_swift,
    ),
    Shape(
        name="ms-swift rejected_messages",
        needs="messages and rejected_messages, both whole conversations",
        keys=names("messages", "rejected_messages"),
        without=_SIDES | names("rejected_response", "chosen_messages"),
        pairs=_swift,
    ),
    Shape(
        name="ms-swift query",
        needs="query, response and rejected_response",
        keys=names("query", "response", "rejected_response"),
        without=_SIDES | names("messages"),
        pairs=_swift_query,
    ),
    Shape(
        name="OpenAI preference",
        needs="input with its messages, preferred_output and non_preferred_output",
        keys=names("input", "preferred_output", "non_preferred_output"),
        pairs=_openai,
    ),
    _whole("chosen_messages", "rejected_messages", "LLaMA-Factory 1"),
    _whole("chosen_conversations", "rejected_conversations", "torchtune"),
)
