"""Score preference pairs with one model: each distinct conversation once, split over the processes."""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset

from rmkit.batch.pairs import TokenisedPairs, tokenise
from rmkit.config import DataConfig
from rmkit.distributed.collectives import first_then_others, rank, ranks
from rmkit.errors import AgreedError, UserError
from rmkit.model.posterior import Posterior
from rmkit.scorer import Scorer
from rmkit.storage.trust import Trust
from rmkit.terminal import Terminal

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
    se: np.ndarray | None = None
    """float32: standard error of each margin, where the model has a posterior"""
    trust: Trust | None = None
    """What the model says of its own scores"""

    def only(self, rows: np.ndarray, why: str) -> "Scored":
        """Keep the pairs of these preferences, all of which must have been scored; the others are dropped by `why`."""
        at = np.searchsorted(self.rows, rows)
        parts = {name: getattr(self, name)[at] for name in ("rows", "chosen", "rejected", "tokens")}
        beyond = {why: len(self.rows) - len(rows)} if len(rows) < len(self.rows) else {}
        se = None if self.se is None else self.se[at]
        return replace(self, **parts, se=se, dropped={**self.dropped, **beyond})


def with_a_preferred_side(preferences: Dataset, say: Callable[[str], None]) -> tuple[Dataset, dict[str, int]]:
    """Drop what has no preferred side to be right about; how many, by reason."""
    alone = np.array(preferences["compared"], np.float64) == 0
    undecided = {
        "a target of 0.5 or less: chosen is not the preferred side": ~alone
        & (np.array(preferences["target"], np.float64) <= 0.5),
        "a rated response: it is compared with nothing": alone,
    }
    dropped = {why: int(of.sum()) for why, of in undecided.items() if of.any()}
    for why, count in dropped.items():
        say(f"dropped {count} of {len(preferences)} pairs: {why}")
    kept = np.flatnonzero(~np.logical_or(*undecided.values()))
    if len(kept) == 0:
        raise UserError("data.test", None, f"no pair is left of {len(preferences)} ({'; '.join(dropped)})")
    return (preferences.select(kept) if dropped else preferences), dropped


def score_pairs(
    preferences: Dataset,
    scorer: Scorer,
    name: str,
    device: torch.device,
    terminal: Terminal,
    say: Callable[[str], None],
    bad_rows: Literal["stop", "drop"] = "stop",
) -> Scored:
    """Score both sides of every preference that fits the model. All ranks take part, and each gets all scores. With
    `bad_rows` "drop" those that the chat template refuses are left out.

    Raises AgreedError with the pair's place where a score of the model `name` is not finite.
    """

    data = DataConfig(bad_rows=bad_rows)

    def read() -> TokenisedPairs:
        return tokenise(preferences, scorer.tokenizer, data, scorer.max_length, say, judged=True)

    pairs = first_then_others(read)
    sides, sequences, group = distinct(pairs)
    mine = np.flatnonzero(group % ranks() == rank())
    mine = mine[np.argsort(group[mine], kind="stable")]  # conversations on one prompt meet
    scores = np.zeros(len(sequences), np.float32)
    errors = Errors.of(scorer, sides, mine)
    with contextlib.closing(terminal.progress("scored", len(mine), noun="conversations")) as progress:
        for start in range(0, len(mine), CHUNK):
            chunk = mine[start : start + CHUNK]
            given = [sequences[i] for i in chunk], group[chunk]
            if errors is None:
                scores[chunk] = scorer.score_tokens(*given)
            else:
                scores[chunk], features = scorer.score_with_features(*given)
                errors.add(chunk, features)
            progress.show(start + len(chunk))
    by_side = _summed(scores, device)[sides]
    bad = np.flatnonzero(~np.isfinite(by_side).all(1))
    if len(bad):
        raise AgreedError(
            f"{name} scores the pair of {pairs.source[int(bad[0])]} {by_side[bad[0]].tolist()} ({len(bad)} such pairs "
            f"of {len(pairs)}): a score must be finite. Look at the weights, or set --precision fp32"
        )
    return Scored(
        rows=pairs.chosen.rows,
        chosen=by_side[:, 0],
        rejected=by_side[:, 1],
        tokens=np.stack([pairs.chosen.lengths, pairs.rejected.lengths], 1),
        se=None if errors is None else _summed(errors.se, device),
        trust=scorer.trust,
        sequences=len(sequences),
        dropped=pairs.dropped,
    )


class Errors:
    """The standard errors of the margins of pairs, whose sides are scored in chunks and may stand in two of them."""

    def __init__(self, posterior: Posterior, sides: np.ndarray, order: np.ndarray) -> None:
        """`sides` int64 [N, 2] are the sequences of each pair; those in `order` are scored, one chunk after another."""
        place = np.full(int(sides.max()) + 1, -1)
        place[order] = np.arange(len(order))
        self._posterior, self._sides, self._place = posterior, sides, place
        self._due = place[sides].max(1)  # the place of the side that is scored last
        self._last = np.full(len(place), -1)
        np.maximum.at(self._last, sides.ravel(), np.repeat(self._due, 2))
        self._done, self._held = 0, {}
        self.se = np.zeros(len(sides), np.float32)
        """float32 [N]: 0 where a pair is not done, or another rank's"""

    @classmethod
    def of(cls, scorer: Scorer, sides: np.ndarray, order: np.ndarray) -> "Errors | None":
        """None where the model has no posterior."""
        trust = scorer.trust
        return cls(trust.posterior, sides, order) if trust is not None and trust.posterior is not None else None

    def add(self, chunk: np.ndarray, features: np.ndarray) -> None:
        """Take the end states of the next sequences of the order."""
        self._held |= dict(zip(chunk.tolist(), features, strict=True))
        end = self._done + len(chunk)
        due = np.flatnonzero((self._due >= self._done) & (self._due < end))
        if len(due):
            chosen, rejected = (np.stack([self._held[i] for i in self._sides[due, side].tolist()]) for side in (0, 1))
            self.se[due] = self._posterior.difference_se(chosen.astype(np.float64) - rejected)
        self._done = end
        self._held = {i: row for i, row in self._held.items() if self._last[i] >= end}


def _summed(scores: np.ndarray, device: torch.device) -> np.ndarray:
    """Those of all ranks: each score is one rank's own and zero elsewhere, so the sum is exact."""
    if ranks() == 1:
        return scores
    tensor = torch.from_numpy(scores).to(device)
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()


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
