"""A shape of rows: how a file of it is recognised by its fields, and how one row becomes pairs or rated lists.

Pure functions of one row. Every ValueError names the field and what it holds; the caller adds file and line.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from rmkit.data.fields import MOST, show
from rmkit.data.messages import Message, same_turn

Row = dict[str, Any]


class Pair(NamedTuple):
    """Two responses to one prompt, the better one first."""

    suffix: str
    """Behind the id of the row, where a row makes several"""
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    undecided: str = ""
    """Why neither is preferred ("tie"); "" where one is"""
    target: float | None = None
    """Probability that chosen is preferred, where the row's label is one"""
    tools: Any = None
    """Tools of the conversation, where the row holds them elsewhere than in the field `tools`"""
    ratings: str | None = None
    """Ratings of both sides, as the cache holds them, where the row's own fields give them"""


class Responses(NamedTuple):
    """Any number of responses to one prompt, each with a number: the higher, the better."""

    prompt: list[Message]
    sides: list[list[Message]]
    goods: list[float]


def anything(row: Row) -> bool:
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A shape of rows. A row has it where it holds all of `keys` and none of `without` (null counts as absent), and
    `fits` says yes to what they hold. No row should fit two shapes: then it is read as neither."""

    name: str
    """What the terminal calls it"""
    needs: str
    """What a row of it holds, for messages"""
    keys: frozenset[str]
    without: frozenset[str] = frozenset()
    fits: Callable[[Row], bool] = anything
    uses: frozenset[str] = frozenset()
    """Fields that are read, besides `keys`"""
    parts: tuple[str, frozenset[str]] | None = None
    """A field whose objects hold an answer each, and what of them is read"""
    pairs: Callable[[Row], Iterator[Pair]] | None = None
    responses: Callable[[Row], Responses] | None = None
    """In place of `pairs`: all responses of a row, from which all pairs of different rank are made"""
    asked: Callable[[Row], list[Message]] | None = None
    """The prompt of a row that `joins`, which is one answer's alone to whoever takes rows one by one"""
    named: str = ""
    """In place of both: the named set whose converter reads the whole file"""
    joins: str = ""
    """Rows that follow one another are one row where this field is equal (HelpSteer2)"""

    def has(self, row: Row) -> bool:
        """Whether a row has this shape."""
        given = row.get
        for key in self.keys:
            if given(key) is None:
                return False
        for key in self.without:
            if given(key) is not None:
                return False
        return self.fits(row)


def pairs_of(shape: Shape, row: Row) -> Iterator[Pair]:
    """The pairs of a row: those that it gives, or all pairs of its responses of different rank."""
    if shape.pairs is not None:
        return shape.pairs(row)
    return (pair for pair, _ in ranked(shape.responses(row)))


def ranked(given: Responses) -> Iterator[tuple[Pair, tuple[int, int]]]:
    """All pairs of responses of different rank, the better one first, and the place of both."""
    count = len(given.sides)
    check_number(count * (count - 1) // 2, "the list of responses")
    for i, j in itertools.permutations(range(count), 2):
        if given.goods[i] > given.goods[j]:
            yield Pair(f"/{i}>{j}", given.prompt, given.sides[i], given.sides[j]), (i, j)


def check_number(pairs: int, what: str) -> None:
    if pairs > MOST:
        raise ValueError(f"{what}: found responses for {pairs} preferences, need at most {MOST} a row; give fewer")


def same_count(values: list[Any], by: str, responses: list[Any], field: str) -> None:
    if len(values) != len(responses):
        raise ValueError(f"field '{by}': found {len(values)} numbers for {len(responses)} {field}")


def parted(chosen: list[Message], rejected: list[Message]) -> Pair:
    """Split two conversations into their common start, which is the prompt, and the rest: at least the last message."""
    for field, side in (("chosen", chosen), ("rejected", rejected)):
        if not side:
            raise ValueError(f"field '{field}': found an empty list, need a conversation")
    longest = min(len(chosen), len(rejected)) - 1
    n = next((i for i in range(longest) if not same_turn(chosen[i], rejected[i])), longest)
    return Pair("", chosen[:n], chosen[n:], rejected[n:])


def behind(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Pair:
    """A pair of a prompt and two sides; sides that repeat the prompt at their start (ultrafeedback_binarized) are cut
    to the rest."""
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
    return Pair("", prompt, chosen, rejected)


def _repeats(prompt: list[Message], side: list[Message]) -> int:
    """How many messages at the start of `side` repeat the prompt: 0, all, or one more (a system message first)."""
    behind_system = [1] if side and prompt and side[0]["role"] == "system" != prompt[0]["role"] else []
    for start in [0, *behind_system]:
        part = side[start : start + len(prompt)]
        if prompt and list(map(_words, part)) == list(map(_words, prompt)):
            return start + len(prompt)
    return 0


def _words(message: Message) -> tuple[str, str]:
    return message["role"], (message["content"] or "").strip()


def names(*fields: str | Iterable[str]) -> frozenset[str]:
    """A set of names from names and sets of names."""
    return frozenset(itertools.chain.from_iterable([f] if isinstance(f, str) else f for f in fields))
