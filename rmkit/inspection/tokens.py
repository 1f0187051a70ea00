"""Tokens of the pairs under each layout, planned as training plans them, on a sample of whole prompts."""

from typing import Any, Literal

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rmkit.batch.build import Batches
from rmkit.batch.pairs import TokenisedPairs, tokenise
from rmkit.config import BatchConfig, DataConfig, TrainConfig
from rmkit.data.cache import features
from rmkit.data.conversation import packed
from rmkit.inspection.facts import Row
from rmkit.inspection.reading import Sample, Say
from rmkit.training.workload import workload

SAMPLED = 2000
"""Pairs whose tokens are counted: their mean is within a few per cent of that of all"""
PAIR_COST = 4e-5
"""Cost of a (query, key) pair in tokens, as of an 8B model; it balances microbatches, and changes no count"""
BUDGET = 16384
LAYOUTS = ("trie", "padded")


def dataset_of(pairs: list[Row]) -> Dataset:
    """Preferences as `rmkit.batch.pairs.tokenise` takes them."""
    columns = features()
    rows = [{name: row[name] for name in columns} for row in map(packed, pairs)]
    return Dataset.from_list(rows, features=columns)


def tokenised(
    pairs: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    say: Say,
    bad_rows: Literal["stop", "drop"] = "drop",
) -> TokenisedPairs:
    """The pairs as tokens. Over-long pairs lose their start; those that are equal then are left out."""
    config = DataConfig(overlong="keep-end", bad_rows=bad_rows)
    return tokenise(dataset_of(pairs), tokenizer, config, max_length, say)


def measure(
    sample: Sample,
    total: int,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    max_length: int,
    say: Say,
    bad_rows: Literal["stop", "drop"] = "drop",
) -> dict[str, Any]:
    """Lengths in tokens and the tokens that one epoch over `total` pairs computes, scaled up from the sample."""
    small = sample.first(SAMPLED)
    pairs = tokenised(small.pairs, tokenizer, max_length, say, bad_rows)
    lengths = np.stack([pairs.chosen.lengths, pairs.rejected.lengths], 1)
    found: dict[str, Any] = {"tokenizer": name, "sampled_pairs": len(pairs), "max_length": max_length}
    scale = total / len(pairs)
    for layout in LAYOUTS:
        config = TrainConfig(batch=BatchConfig(layout=layout, max_tokens=max(BUDGET, 2 * max_length)))
        batches = Batches(items=pairs, config=config.batch, pad_token_id=tokenizer.pad_token_id, pair_cost=PAIR_COST)
        planned = workload(batches, config)
        epoch = len(pairs) / planned.pairs
        found["flat"] = planned.flat * epoch * scale
        found[layout] = planned.computed * epoch * scale
    return found | {
        "saved_against_flat": 1 - found["trie"] / found["flat"],
        "saved_against_padded": 1 - found["trie"] / found["padded"],
        "sequence_quantiles": quantiles(lengths.ravel()),
        "cut_pairs": int((lengths >= max_length).any(1).sum()),
    }


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Smallest, median, 95 %, 99 % and largest."""
    points = np.quantile(values, [0, 0.5, 0.95, 0.99, 1]).tolist()
    return dict(zip(("min", "median", "q95", "q99", "max"), points, strict=True))
