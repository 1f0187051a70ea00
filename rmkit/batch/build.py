"""From positions in the data to batches on the device: the planner's lists, filled with tokens."""

from collections.abc import Sequence

import numpy as np

from rmkit.batch.lengths import count
from rmkit.batch.pairs import TokenisedPairs
from rmkit.batch.planner import attention_weight, split
from rmkit.batch.trie import PackedBatch, pack
from rmkit.config import BatchConfig, TrainConfig
from rmkit.errors import UserError, flag
from rmkit.model.reward_model import RewardModel

BLOCK = 1 << 16
"""Pairs that are measured at once."""


def sides(pairs: TokenisedPairs, indices: Sequence[int]) -> list[np.ndarray]:
    """Token sequences of some pairs: all chosen ones first, then all rejected ones, as TRL stacks them."""
    return [pairs.chosen[i] for i in indices] + [pairs.rejected[i] for i in indices]


def check_budget(pairs: TokenisedPairs, config: BatchConfig) -> None:
    """ValueError where a pair alone takes more than --batch.max-tokens: said before a run, not at the step it is in."""
    over, largest, worst = 0, 0, 0
    for start in range(0, len(pairs), BLOCK):
        items = np.arange(start, min(start + BLOCK, len(pairs)))
        tokens = count(pairs.lengths, items, items - start, len(items), config.layout).tokens
        over += int((tokens > config.max_tokens).sum())
        if tokens.max() > largest:
            largest, worst = int(tokens.max()), start + int(tokens.argmax())
    if over:
        found = (
            f"{over} of {len(pairs)} pairs take more under {flag('batch.layout')} {config.layout}, the largest "
            f"{largest} tokens ({pairs.source[worst]})"
        )
        hint = f"{found}; raise the budget, or lower {flag('data.max_length')}"
        raise UserError("batch.max_tokens", config.max_tokens, hint)


def microbatches(
    pairs: TokenisedPairs, indices: np.ndarray, config: TrainConfig, ranks: int, attention: float
) -> list[list[np.ndarray]]:
    """Split the global batch `indices` into [rank][microbatch] arrays of pair indices; `attention` is that of split."""
    return split(
        pairs.lengths,
        indices,
        layout=config.batch.layout,
        attention=attention,
        ranks=ranks,
        max_tokens=config.batch.max_tokens,
    )


def attention_of(model: RewardModel) -> float:
    """What one (query, key) pair of this model weighs, in tokens (`attention_weight`)."""
    config, layers = model.config, model.backbone.layers
    return attention_weight(
        config.num_hidden_layers,
        config.num_attention_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        sum(p.numel() for p in layers.parameters()),
    )


def build(pairs: TokenisedPairs, indices: np.ndarray, config: TrainConfig, pad_token_id: int) -> PackedBatch:
    """The packed batch of some pairs; none gives the one-token batch of a rank that has nothing left."""
    n = len(indices)
    target = pairs.target[indices]
    return pack(
        sides(pairs, indices),
        range(n),
        range(n, 2 * n),
        layout=config.batch.layout,
        margin=pairs.margin[indices].tolist(),
        target=np.where(np.isnan(target), 1.0 - config.loss.label_smoothing, target).tolist(),
        weight=pairs.weight[indices].tolist(),
        pad_token_id=pad_token_id,
    )
