"""Packed batches of any list of items: split over ranks and microbatches, then filled with tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rmkit.batch.lengths import Lengths, count
from rmkit.batch.pairs import TokenisedPairs
from rmkit.batch.planner import split
from rmkit.batch.trie import PackedBatch, pack
from rmkit.config import BatchConfig, Layout
from rmkit.errors import UserError, flag

BLOCK = 1 << 16
"""Pairs whose tokens are counted at once."""


@dataclass(frozen=True, kw_only=True)
class TokenisedTexts:
    """N tokenised conversations, each scored for itself."""

    columns: tuple[Sequence[np.ndarray]]
    """One column of N sequences"""
    lengths: Lengths


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Makes a rank's packed batches of any list of items: pairs in training and validation, single texts in scoring."""

    items: TokenisedPairs | TokenisedTexts
    config: BatchConfig
    pad_token_id: int
    pair_cost: float
    """Cost of one (query, key) pair of attention, in tokens"""
    rank: int = 0
    ranks: int = 1

    def split(self, indices: np.ndarray) -> list[list[np.ndarray]]:
        """Split the items `indices` into [rank][microbatch] arrays; every rank gets the same number of microbatches."""
        return split(
            self.items.lengths,
            indices,
            layout=self.config.layout,
            pair_cost=self.pair_cost,
            ranks=self.ranks,
            max_tokens=self.config.max_tokens,
        )

    def microbatches(self, indices: np.ndarray) -> Iterator[tuple[PackedBatch, bool]]:
        """This rank's packed batches of the items `indices`, each with whether it is the last one."""
        parts = self.split(indices)[self.rank]
        for i, part in enumerate(parts):
            yield self.pack(part), i == len(parts) - 1

    def pack(self, indices: np.ndarray) -> PackedBatch:
        """One packed batch of the items `indices`; no items give the one-token batch of a rank that has nothing left.

        Pairs are stacked as in TRL: all chosen sides first, then all rejected ones.
        """
        columns, n = self.items.columns, len(indices)
        sides = [columns[0][i] for i in indices]
        comparison = {}
        if isinstance(self.items, TokenisedPairs):
            compared = self.items.labels["compared"][indices] > 0  # a rated response stands alone: it has one side
            sides += [columns[1][i] for i in indices[compared]]
            rejected = np.where(compared, n - 1 + np.cumsum(compared), np.arange(n))
            comparison = {
                "chosen": range(n),
                "rejected": rejected.tolist(),
                "labels": self.items.labels.tensors(indices),
            }
        return pack(sides, layout=self.config.layout, pad_token_id=self.pad_token_id, **comparison)


def tokens_of_each(pairs: TokenisedPairs, layout: Layout) -> np.ndarray:
    """Tokens of each pair in a batch of its own, int32 [N]."""
    found = np.empty(len(pairs), np.int32)
    for start in range(0, len(pairs), BLOCK):
        items = np.arange(start, min(start + BLOCK, len(pairs)))
        found[items] = count(pairs.lengths, items, items - start, len(items), layout).tokens
    return found


def check_budget(pairs: TokenisedPairs, config: BatchConfig) -> None:
    """ValueError, before training starts, where a single pair takes more than --batch.max-tokens."""
    tokens = tokens_of_each(pairs, config.layout)
    over = int((tokens > config.max_tokens).sum())
    if over:
        worst = int(tokens.argmax())
        over_budget = (
            f"{over} of {len(pairs)} pairs take more under {flag('batch.layout')} {config.layout}, the largest "
            f"{tokens[worst]} tokens ({pairs.source[worst]})"
        )
        hint = f"{over_budget}; raise the budget, or lower {flag('data.max_length')}"
        raise UserError("batch.max_tokens", config.max_tokens, hint)
