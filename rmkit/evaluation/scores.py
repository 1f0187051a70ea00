"""Score preference pairs with one model: each distinct conversation once, split over the processes."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset

from rmkit import terminal
from rmkit.batch.pairs import TokenisedPairs, tokenise
from rmkit.config import DataConfig
from rmkit.scorer import Scorer

CHUNK = 512
"""Conversations that are batched at a time: enough to fill the forward passes, few enough to hold in memory."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """N pairs with their scores."""

    rows: np.ndarray
    """int64, ascending: the index of each pair among the preferences"""
    chosen: np.ndarray
    rejected: np.ndarray
    """float32"""
    tokens: np.ndarray
    """int64 [N, 2]: length of both conversations, prompt included"""
    sequences: int
    """Distinct conversations"""
    dropped: dict[str, int]
    """Preferences that were not scored, by reason"""

    def only(self, rows: np.ndarray) -> "Scored":
        """Keep the pairs of these preferences, all of which must have been scored."""
        at = np.searchsorted(self.rows, rows)
        parts = {name: getattr(self, name)[at] for name in ("rows", "chosen", "rejected", "tokens")}
        return Scored(**parts, sequences=self.sequences, dropped=self.dropped)


def with_a_preferred_side(preferences: Dataset, say: Callable[[str], None]) -> tuple[Dataset, dict[str, int]]:
    """Drop the pairs whose target says that chosen does not win, because no side is right; how many, by reason."""
    target = np.array(preferences["target"], np.float64)
    undecided = target <= 0.5
    if not undecided.any():
        return preferences, {}
    why = "a target of 0.5 or less: chosen is not the preferred side"
    say(f"dropped {undecided.sum()} of {len(target)} pairs: {why}")
    if undecided.all():
        raise ValueError(f"--data: no pair is left of {len(target)} ({why})")
    return preferences.select(np.flatnonzero(~undecided)), {why: int(undecided.sum())}


def score_pairs(
    preferences: Dataset, scorer: Scorer, name: str, accelerator: Accelerator, say: Callable[[str], None]
) -> Scored:
    """Score both sides of every preference that fits the model. All ranks take part, and each gets all scores.

    Raises ValueError, with the place of the pair, where a score of the model `name` is not finite.
    """
    with accelerator.main_process_first():  # one rank fills the cache, the others read it
        pairs = tokenise(preferences, scorer.tokenizer, DataConfig(), scorer.max_length, say)
    sides, sequences, group = distinct(pairs)
    mine = np.flatnonzero(group % accelerator.num_processes == accelerator.process_index)
    mine = mine[np.argsort(group[mine], kind="stable")]  # conversations on one prompt meet
    scores = np.zeros(len(sequences), np.float32)
    shown = time.perf_counter()
    for start in range(0, len(mine), CHUNK):
        chunk = mine[start : start + CHUNK]
        scores[chunk] = scorer.score_tokens([sequences[i] for i in chunk], group[chunk])
        if time.perf_counter() - shown > terminal.LINE_SECONDS:
            shown = time.perf_counter()
            say(f"scored {start + len(chunk):,} of {len(mine):,} conversations")
    # Each score is one rank's own and zero elsewhere, so the sum is exact.
    by_side = accelerator.reduce(torch.from_numpy(scores).to(accelerator.device), "sum").cpu().numpy()[sides]
    bad = np.flatnonzero(~np.isfinite(by_side).all(1))
    if len(bad):
        raise ValueError(
            f"{name} scores the pair of {pairs.source[int(bad[0])]} {by_side[bad[0]].tolist()} ({len(bad)} such pairs "
            f"of {len(pairs)}): a score must be finite. Look at the weights, or set --precision fp32"
        )
    return Scored(
        rows=pairs.chosen.rows,
        chosen=by_side[:, 0],
        rejected=by_side[:, 1],
        tokens=np.stack([pairs.chosen.lengths, pairs.rejected.lengths], 1),
        sequences=len(sequences),
        dropped=pairs.dropped,
    )


def distinct(pairs: TokenisedPairs) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """The distinct sequences of N pairs: the index of each side's sequence, int64 [N, 2]; the S sequences; the group of
    each, int64 [S], equal where the prompt is."""
    index: dict[bytes, int] = {}
    sides, sequences, group = np.empty((len(pairs), 2), np.int64), [], []
    for i in range(len(pairs)):
        for side, tokens in enumerate((pairs.chosen[i], pairs.rejected[i])):
            # A digest as the key: the tokens themselves would be held twice.
            key = hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()
            sides[i, side] = index.setdefault(key, len(sequences))
            if sides[i, side] == len(sequences):
                sequences.append(tokens)
                group.append(pairs.group[i])
    return sides, sequences, np.array(group)
