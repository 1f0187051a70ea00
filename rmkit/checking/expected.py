"""The self-check of a saved folder, as rmkit.json holds it: texts, and the rewards that every reader should give."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmkit.errors import UserError, brief

DOORS = ("messages", "text", "ids")
"""How a conversation can be sent"""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A few conversations by every door, with their rewards; what an older rmkit did not write is None."""

    texts: list[str]
    messages: list[list[dict[str, str]]] | None
    ids: list[list[int]] | None
    scores: list[float]
    bos_doubled: list[float] | None
    """Rewards with one BOS more in front"""
    by_label: list[list[float]] | None
    """Scores of every label, where there are several"""
    reward: tuple[float, ...]
    """Weight of each label in the reward"""

    def of(self, door: str) -> list[Any] | None:
        """What is sent through a door: messages, text or ids."""
        return {"messages": self.messages, "text": self.texts, "ids": self.ids}[door]

    def rewards(self, rows: list[list[float]]) -> list[float] | None:
        """The rewards of rows that hold a score of each label; None where they hold another number of them."""
        if any(len(row) != len(self.reward) for row in rows):
            return None
        return [sum(weight * score for weight, score in zip(self.reward, row, strict=True) if weight) for row in rows]


def expected_of(folder: Path) -> Expected:
    """Read it; UserError where a folder has none, or none that can be read."""
    file = folder / "rmkit.json"
    if not file.is_file():
        hint = "it has no rmkit.json, so nothing says which scores are right; give a folder that rmkit wrote"
        raise UserError("model.name", folder, hint)
    try:
        contract = json.loads(file.read_text(encoding="utf-8"))
        check, head = contract["self_check"], contract.get("head") or {"reward": [1.0]}
        held = Expected(
            texts=[str(text) for text in check["texts"]],
            messages=check.get("messages"),
            ids=check.get("ids"),
            scores=_numbers(check["scores"]),
            bos_doubled=_numbers(check["bos_doubled"]) if "bos_doubled" in check else None,
            by_label=[_numbers(row) for row in check["by_label"]] if "by_label" in check else None,
            reward=tuple(_numbers(head["reward"])),
        )
        listed = (held.texts, held.messages, held.ids, held.bos_doubled, held.by_label)
        if not held.scores or any(each is not None and len(each) != len(held.scores) for each in listed):
            raise ValueError("its lists differ in length")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        hint = f"the self-check of {file.name} cannot be read ({brief(error)})"
        raise UserError("model.name", folder, hint) from error
    return held


def _numbers(values: Any) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a score is not finite")
    return numbers
