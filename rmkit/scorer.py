"""A trained reward model, ready to score: loaded with its contract checked, run on packed batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rmkit.batch.build import attention_of
from rmkit.batch.lengths import count, measure
from rmkit.batch.planner import split
from rmkit.batch.trie import Layout, pack
from rmkit.config import BatchConfig, ModelConfig, TrainConfig
from rmkit.data.tokenizer import load_tokenizer
from rmkit.distributed.sharding import placed
from rmkit.model.pretrained import build_model, check_length, load_config, saved_labels
from rmkit.model.reward_model import RewardModel
from rmkit.runtime import keep_freed
from rmkit.storage.export import verify

BUDGET = {"cpu": 4096, "cuda": 16384}
"""Tokens of one forward pass by default, at most."""
FULL = {"cpu": 2048, "cuda": 16384}
"""Tokens of a pass by default, where no prompt group is larger and would be cut. On a CPU larger passes leave its
cache and are 1 to 10 % slower a token."""
LONGEST = 16384
"""Tokens of the longest conversation by default, where the model's context is longer still."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What turns token sequences into scores."""

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    max_tokens: int
    """Tokens of one forward pass, where no conversation alone is longer"""
    full: int
    """Tokens at which a pass is full, where no prompt group needs more"""
    max_length: int
    """Tokens of the longest conversation that is scored"""
    attention: float
    """What one (query, key) pair weighs, in tokens"""

    def score(self, sequences: Sequence[np.ndarray], group: np.ndarray) -> np.ndarray:
        """Scores, float32 [S], of S token sequences of at most `max_length`; `group` int64 [S] is equal where
        sequences share their prompt, which is then computed once where the budget allows."""
        scores = np.empty(len(sequences), np.float32)
        if len(sequences) == 0:
            return scores
        lengths = np.array([[len(s)] for s in sequences])
        measured, items = measure([sequences], lengths, group), np.arange(len(sequences))
        of_group = np.unique(group, return_inverse=True)[1]
        largest = int(count(measured, items, of_group, int(of_group.max()) + 1, self.layout).tokens.max())
        budget = max(min(self.max_tokens, max(self.full, largest)), int(lengths.max()))
        layout, attention = self.layout, self.attention
        bins = split(measured, items, layout=layout, attention=attention, ranks=1, max_tokens=budget)[0]
        with torch.inference_mode():
            for positions in filter(len, bins):
                chosen = [sequences[i] for i in positions]
                batch = pack(chosen, layout=self.layout, pad_token_id=self.tokenizer.pad_token_id)
                scores[positions] = self.model(batch.to(self.model.device))[1].cpu().numpy()
        return scores


def load_scorer(
    name: str,
    *,
    device: torch.device,
    layout: Layout = "trie",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    max_tokens: int | None = None,
    max_length: int | None = None,
    say: Callable[[str], None],
) -> Scorer:
    """Load a reward model: a folder that rmkit wrote (its self-check is verified), or anyone's sequence classifier
    with 1 label, or 2 as HALOs saves them (the reward is logit 1).

    Where there is no rmkit.json, what is assumed about template and end token is said. `max_tokens` defaults to
    `BUDGET` of the device, `max_length` to the model's context, at most `LONGEST` or `max_tokens`. Raises ValueError on
    a model without a score head, of another family, or not whole.
    """
    try:
        return _load(name, device, layout, precision, max_tokens, max_length, say)
    except ValueError as error:
        # The parts are train's, whose flag has another name.
        raise ValueError(
            str(error).replace("--model.name", "--model").replace("--data.max-length", "--max-length")
        ) from error


def _load(name, device, layout, precision, max_tokens, max_length, say) -> Scorer:
    if device.type == "cpu":
        keep_freed()
    architecture = load_config(name)
    if saved_labels(architecture, name) is None:
        raise ValueError(
            f"--model {name}: it is a {architecture.architectures[0]}, which has no score head; train one with "
            f"python -m rmkit.train --model.name {name}"
        )
    tokenizer = load_tokenizer(name, say)
    longest = max_length or min(architecture.max_position_embeddings, max_tokens or LONGEST)
    check_length(architecture, longest)
    if max_tokens is not None and longest > max_tokens:
        raise ValueError(f"--max-length {longest}: one conversation would not fit into --max-tokens {max_tokens}")
    budget = max_tokens or BUDGET[device.type]
    config = TrainConfig(
        model=ModelConfig(name=name, precision=precision), batch=BatchConfig(layout=layout, max_tokens=budget)
    )
    model = placed(build_model(config, architecture, len(tokenizer), tokenizer.pad_token_id, say), device).eval()
    checked = verify(model, tokenizer, Path(name))
    say(checked or f"{name} has no rmkit.json: its own chat template is used, and the last token of the text is scored")
    if model.bf16:
        _round_projections(model)
    return Scorer(
        model=model,
        tokenizer=tokenizer,
        layout=layout,
        max_tokens=budget,
        full=min(budget, FULL[device.type]) if max_tokens is None else budget,
        max_length=longest,
        attention=attention_of(model),
    )


def _round_projections(model: RewardModel) -> None:
    """The decoder layers' projections in bf16 for good: the very numbers that autocast makes of them anew in each
    forward pass, in half the memory. Embedding, norms and score head stay float32, as under autocast."""
    for part in model.backbone.layers.modules():
        if isinstance(part, nn.Linear):
            part.to(torch.bfloat16)
