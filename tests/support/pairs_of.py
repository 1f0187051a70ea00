"""Tokenised pairs for the tests, without a tokenizer: lists of arrays stand in for the columns."""

import numpy as np

from rmkit.batch.build import Batches
from rmkit.batch.labels import PairLabels
from rmkit.batch.lengths import measure
from rmkit.batch.pairs import TokenisedPairs
from rmkit.config import BatchConfig
from support.oracle import random_pairs


def tokenised(chosen, rejected, *, group=None, margin=None, target=None, weight=None) -> TokenisedPairs:
    n = len(chosen)
    group = np.arange(n) if group is None else np.array(group)
    length = np.array([(len(c), len(r)) for c, r in zip(chosen, rejected, strict=True)])
    return TokenisedPairs(
        chosen=chosen,
        rejected=rejected,
        group=group,
        lengths=measure([chosen, rejected], length, group),
        labels=PairLabels(
            {
                "margin": np.zeros(n) if margin is None else np.array(margin, np.float64),
                "target": np.full(n, np.nan) if target is None else np.array(target, np.float64),
                "weight": np.ones(n) if weight is None else np.array(weight, np.float64),
                "compared": np.ones(n),
            }
        ),
        source=[f"x:{i}" for i in range(n)],
    )


def random_tokenised(n: int, seed: int = 0) -> TokenisedPairs:
    """N pairs of random lengths, three to a prompt, every value drawn."""
    rng = np.random.default_rng(seed)
    prompts, _ = random_pairs(rng, -(-n // 3))
    group = np.arange(n) // 3
    chosen, rejected = ([np.append(prompts[g], rng.integers(3, 97, rng.integers(1, 9))) for g in group] for _ in "cr")
    target = rng.random(n)
    target[::4] = np.nan
    return tokenised(
        chosen, rejected, group=group, margin=rng.normal(size=n), target=target, weight=rng.random(n) + 0.5
    )


def batches_of(pairs: TokenisedPairs, layout="trie", max_tokens=16384, *, rank=0, ranks=1, pad_token_id=0) -> Batches:
    config = BatchConfig(layout=layout, max_tokens=max_tokens)
    return Batches(items=pairs, config=config, pad_token_id=pad_token_id, pair_cost=0.01, rank=rank, ranks=ranks)
