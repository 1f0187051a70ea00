"""What is kept of every pair: numbers and digests in arrays, 130 bytes a pair, so that millions of pairs fit in memory.

Digests are the first 8 bytes of blake2b: among ten million texts two different ones agree with probability 3e-6.
"""

import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from rmkit.data import conversation
from rmkit.inspection import oddities

EXAMPLES = 5
"""Places of each kind of finding that are listed"""

COLUMNS = (
    *("prompt", "chosen", "rejected"),  # digests
    *("characters_prompt", "characters_chosen", "characters_rejected", "lists_chosen", "lists_rejected", "turns"),
    *("flags", "preferred", "subset", "script", "source", "number"),
)
LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+\u2022]|\d+[.)])[ \t]", re.MULTILINE)
"""A line of a list, in Markdown or in plain text"""

Row = dict[str, Any]


@dataclass(kw_only=True)
class Names:
    """Texts that occur many times, each held once."""

    index: dict[str, int] = field(default_factory=dict)

    def code(self, name: str) -> int:
        return self.index.setdefault(name, len(self.index))

    @property
    def list(self) -> list[str]:
        return list(self.index)


@dataclass(kw_only=True)
class Facts:
    """N pairs, one number of each in every column; `facts["turns"]` is int64 [N].

    `preferred` is 1 where chosen is preferred, -1 where a target below 0.5 says rejected, 0 for a tie.
    """

    columns: dict[str, Any] = field(default_factory=lambda: {name: array("q") for name in COLUMNS})
    subsets: Names = field(default_factory=Names)
    scripts: Names = field(default_factory=Names)
    sources: Names = field(default_factory=Names)
    rated: int = 0
    """Rated responses, which are compared with nothing"""

    def __len__(self) -> int:
        return len(self.columns["prompt"])

    def __getitem__(self, name: str) -> np.ndarray:
        return np.frombuffer(self.columns[name], np.int64) if len(self) else np.zeros(0, np.int64)

    def place(self, i: int) -> str:
        """Where pair i comes from: "file:line"."""
        return f"{self.sources.list[self.columns['source'][i]]}:{self.columns['number'][i]}"

    def places(self, rows: Sequence[int]) -> list[str]:
        return [self.place(int(i)) for i in rows]

    def add(self, pair: Row) -> int:
        """Add one preference as `rmkit.data.cache.read` gives it; the digest of its prompt."""
        prompt, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
        options = pair.get("options")
        texts = [text_of(prompt[-1:]), text_of(chosen), text_of(rejected)]
        flags, script = oddities.texts(*texts)
        shown, _, number = pair["source"].rpartition(":")
        target = pair["target"]
        digest = digest_of(prompt, options)
        values = (
            *(digest, digest_of(chosen), digest_of(rejected)),
            sum(len(message["content"] or "") for message in prompt),
            *(len(texts[1]), len(texts[2]), list_items(texts[1]), list_items(texts[2])),
            len(prompt) + len(chosen),
            flags | oddities.roles(prompt, chosen, rejected),
            1 if target is None or target > 0.5 else -1 if target < 0.5 else 0,
            *(self.subsets.code(pair["subset"]), self.scripts.code(script), self.sources.code(shown)),
            int(number) if number.isdigit() else len(self),
        )
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        return digest


def text_of(messages: list[Row]) -> str:
    """The text of some messages; of most answers there is one."""
    return messages[0]["content"] or "" if len(messages) == 1 else "\n".join(m["content"] or "" for m in messages)


def list_items(text: str) -> int:
    """How many lines of a text are items of a list."""
    if "\n" not in text:  # most of the time is spent where there is no second line to look for
        return 1 if LIST_ITEM.match(text) else 0
    return len(LIST_ITEM.findall(text))


def digest_of(messages: list[Row], options: Row | None = None) -> int:
    """int64 digest of what tells one list of messages from another, tools and arguments of the template included."""
    if options is None and all(len(message) == 2 for message in messages):
        text = "\x1e".join([f"{message['role']}\x1f{message['content']}" for message in messages])
    else:
        text = json.dumps(conversation.key(messages, options), default=str)
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True)


def mixed(*columns: np.ndarray) -> np.ndarray:
    """One uint64 [N] for N rows of several columns, equal where all of them are (but for 1 case in 2**64)."""
    out = np.zeros(len(columns[0]), np.uint64)
    for column in columns:  # the finaliser of splitmix64 (Steele, Lea and Flood, 2014) on each
        out += column.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out ^= out >> np.uint64(31)
    return out
