"""End-token features of pairs by a reward model, or by a causal LM, whose head is not needed."""

from typing import Literal

import numpy as np
import torch

from rmkit.inspection.reading import Sample, Say
from rmkit.inspection.tokens import tokenised
from rmkit.scorer import Scorer, load_scorer

LONGEST = 2048
"""Tokens of the longest conversation by default, where the model's context is longer"""


def load(name: str, max_length: int | None, say: Say, end_token: Literal["last", "before-pad"] = "last") -> Scorer:
    """The model, ready. Raises UserError where the folder lacks something."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_scorer(name, device=device, max_length=max_length, end_token=end_token, headless=True, say=say)


def of_pairs(
    sample: Sample, scorer: Scorer, max_length: int, say: Say, bad_rows: Literal["stop", "drop"] = "drop"
) -> tuple[np.ndarray, np.ndarray]:
    """Index of each pair in the sample, int64 [N], and its features, float32 [N, H]. What `tokens.tokenised` leaves
    out has none."""
    pairs = tokenised(sample.pairs, scorer.tokenizer, max_length, say, bad_rows)
    say(f"both answers of {len(pairs):,} pairs are run through the model once")
    return pairs.chosen.rows.astype(np.int64), scorer.features(pairs)
