"""From positions in the data to batches on the device: the planner's lists, filled with tokens."""

from collections.abc import Sequence

import numpy as np

from rmkit.config import TrainConfig
from rmkit.data.tokens import TokenisedPairs
from rmkit.model import RewardModel
from rmkit.packing import PackedBatch, pack
from rmkit.planner import attention_weight, split


def sides(pairs: TokenisedPairs, indices: Sequence[int]) -> list[np.ndarray]:
    """Token sequences of some pairs: all chosen ones first, then all rejected ones, as TRL stacks them."""
    return [pairs.chosen[i] for i in indices] + [pairs.rejected[i] for i in indices]


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
