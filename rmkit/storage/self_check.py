"""The self-check of a saved folder: a few conversations and their scores, which every later load verifies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rmkit.batch.trie import pack
from rmkit.data.fields import entries, text
from rmkit.data.tokenizer import default_template, encode, render
from rmkit.distributed.sharding import in_float32
from rmkit.model import attention, quantised
from rmkit.model.reward_model import RewardModel

SELF_CHECK = (
    [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "Four."}],
    [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "I would rather not say."}],
    [
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Danube."},
        {"role": "user", "content": "And a mountain, please?"},
        {"role": "assistant", "content": "Mont Blanc \u2014 4,806 m."},
    ],
)
"""Conversations whose scores are written into every saved folder: a shared prompt, several turns, non-ASCII."""

TOLERANCE = 1e-3
"""Largest difference that the self-check allows, relative to the largest expected score (at least 1): far above
round-off between machines, far below the effect of a wrong token, template or rotary base."""


def verify(model: RewardModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str | None:
    """Check a loaded model against the contract in its folder; the result in words, or None where there is no contract.

    Raises ValueError where the chat template or the scores differ: the weights or the tokenizer have changed, or a
    library reads them differently.
    """
    file = folder / "rmkit.json"
    if not file.is_file():
        return None
    try:
        contract = json.loads(file.read_text())
        template = contract["chat_template"]
        texts = [text(given, "texts") for given in entries(contract["self_check"]["texts"], "texts")]
        expected = [float(s) for s in contract["self_check"]["scores"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: the self-check cannot be read ({error}); restore the file or delete it") from error
    if template != default_template(tokenizer):
        raise ValueError(f"{file}: the tokenizer's chat template is not the one that the model was trained with")
    if contract.get("load") == "4bit" and not quantised.is_4bit(model.classifier):
        return f"{folder} was trained on 4-bit weights and runs on its base as it is: its self-check is not compared"
    scores = score_texts(model, tokenizer, texts)
    limit = TOLERANCE * max(1.0, *map(abs, expected))
    gaps = [abs(a - b) for a, b in zip(scores, expected, strict=False)]
    # Not by max(): it drops a NaN that comes later.
    if len(scores) != len(expected) or not all(gap <= limit for gap in gaps):
        raise ValueError(
            f"{file}: the self-check failed. Expected scores {_short(expected)}, got {_short(scores)}: the weights, "
            "the tokenizer or the library that reads them have changed since the folder was written"
        )
    return f"self-check of {folder}: {len(texts)} scores agree to {max(gaps):.1e}"


def _short(scores: list[float]) -> str:
    return "[" + ", ".join(f"{s:.5g}" for s in scores) + "]"


def self_check(model: RewardModel, tokenizer: PreTrainedTokenizerBase, *, variants: bool = False) -> dict[str, Any]:
    """What rmkit.json holds of a few conversations: their texts and rewards.

    With `variants` also their messages and ids, `bos_doubled`, the rewards with one BOS more in front, and `by_label`,
    those of every label of a head that has several: what a reader gives that adds a BOS, or reads another label, so
    that `rmkit.check` can name it.
    """
    texts = [render(tokenizer, messages) for messages in SELF_CHECK]
    ids = encode(tokenizer, texts)
    scores = _scores(model, tokenizer, ids)
    held: dict[str, Any] = {"texts": texts, "scores": model.head.rewards(scores).tolist()}
    if not variants:
        return held
    held |= {"messages": list(SELF_CHECK), "ids": ids}
    if tokenizer.bos_token_id is not None:
        doubled = _scores(model, tokenizer, [[tokenizer.bos_token_id, *each] for each in ids])
        held["bos_doubled"] = model.head.rewards(doubled).tolist()
    return held if scores.shape[1] == 1 else {**held, "by_label": scores.tolist()}


def score_texts(model: RewardModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[float]:
    """Rewards of rendered texts in float32 arithmetic, in one batch of the model's own layout."""
    return model.head.rewards(_scores(model, tokenizer, encode(tokenizer, texts))).tolist()


def _scores(model: RewardModel, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> Tensor:
    """Scores [S, C] of all labels, likewise."""
    sequences = [np.array(each) for each in ids]
    layout = "trie" if model.config._attn_implementation == attention.NAME else "padded"
    batch = pack(sequences, layout=layout, pad_token_id=tokenizer.pad_token_id).to(model.device)
    with in_float32(model), torch.no_grad():
        return model(batch)
