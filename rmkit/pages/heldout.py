"""heldout.jsonl: the scores of every held-out pair at the last evaluation, and the texts of the worst ones.

A line a pair, under the names of evaluate's scores.jsonl. `pair` is a digest of the texts, by which two runs find the
pairs that both were judged on; `step` the optimizer step of the evaluation. The pairs that are most wrong have their
texts too, cut to a length that can be read.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmkit.storage.atomic import written_file

NAME = "heldout.jsonl"

TEXTS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """N held-out pairs at one evaluation."""

    step: int
    pair: Sequence[str]
    source: Sequence[str]
    """Where each comes from: "file:line" or "set:row" """
    scores: np.ndarray
    """float64 [N, 2]: of the chosen and of the rejected side"""
    tokens: np.ndarray
    """int64 [N, 2]: length of both conversations, prompt included"""
    texts: dict[int, dict[str, str]]
    """Prompt, chosen and rejected of the pairs that are most wrong, by their place"""

    @property
    def margin(self) -> np.ndarray:
        return self.scores[:, 0] - self.scores[:, 1]

    @property
    def worst(self) -> list[int]:
        """The places of the pairs that have their texts, most wrong first."""
        return sorted(self.texts, key=lambda i: (self.margin[i], i))


def write(folder: Path, held: HeldOut) -> None:
    """Write heldout.jsonl into a run folder, whole or not at all."""
    with written_file(folder / NAME) as out:
        for i, (chosen, rejected) in enumerate(held.scores.tolist()):
            line = {
                **{"step": held.step, "pair": held.pair[i], "source": held.source[i]},
                **{"score_chosen": chosen, "score_rejected": rejected, "margin": chosen - rejected},
                **{"tokens_chosen": int(held.tokens[i, 0]), "tokens_rejected": int(held.tokens[i, 1])},
                **held.texts.get(i, {}),
            }
            out.write(json.dumps(line) + "\n")


def read(folder: Path) -> HeldOut | None:
    """What a run folder holds of its held-out pairs; None without a line that can be read. Spoiled lines are left
    out."""
    rows = []
    try:
        with (folder / NAME).open(encoding="utf-8", errors="replace") as opened:
            rows = [row for row in map(_row, opened) if row is not None]
    except OSError:
        return None
    if not rows:
        return None
    texts = {i: {name: row[name] for name in TEXTS if isinstance(row.get(name), str)} for i, row in enumerate(rows)}
    return HeldOut(
        step=rows[0]["step"],
        pair=[row["pair"] for row in rows],
        source=[row["source"] for row in rows],
        scores=np.array([[row["score_chosen"], row["score_rejected"]] for row in rows], np.float64),
        tokens=np.array([[row["tokens_chosen"], row["tokens_rejected"]] for row in rows], np.int64),
        texts={i: of_row for i, of_row in texts.items() if len(of_row) == len(TEXTS)},
    )


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        kinds = {"step": int, "tokens_chosen": int, "tokens_rejected": int, "pair": str, "source": str}
        whole = all(isinstance(row[name], kind) for name, kind in kinds.items())
        scores = all(math.isfinite(row[name]) for name in ("score_chosen", "score_rejected"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return row if whole and scores else None
