"""A trained reward model, ready to score: loaded with its contract checked, run on packed batches."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rmkit.batch.build import Batches, TokenisedTexts
from rmkit.batch.lengths import count, measure
from rmkit.batch.trie import Layout
from rmkit.config import BatchConfig, ModelConfig, TrainConfig
from rmkit.data.fields import messages
from rmkit.data.tokenizer import encode, load_tokenizer, render
from rmkit.model.adapter import tokenizer_of
from rmkit.model.pretrained import build_model, check_length, load_config, saved_head
from rmkit.model.reward_model import RewardModel
from rmkit.storage.export import verify

BUDGET = {"cpu": 4096, "cuda": 16384}
"""Tokens of one forward pass by default, at most."""
FULL = {"cpu": 2048, "cuda": 16384}
"""Tokens of a pass by default, where no prompt group is larger and would be cut. On a CPU larger passes leave its
cache and are 1 to 10 % slower a token."""
LONGEST = 16384
"""Tokens of the longest conversation by default, where the model's context is longer still."""


Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A reward model with its tokenizer, ready to score."""

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    max_tokens: int
    """Tokens of one forward pass, where no conversation alone is longer"""
    full: int
    """Tokens at which a pass is full, where no prompt group needs more"""
    max_length: int
    """Tokens of the longest conversation that is scored"""

    def score(
        self,
        conversations: Messages | Sequence[Messages] | None = None,
        *,
        prompts: Sequence[str | Messages] | None = None,
        responses: Sequence[str | Messages] | None = None,
    ) -> float | list[float]:
        """The reward of one conversation (a list of messages), or of each of a list of them.

        `prompts` and `responses`, as long as one another, are texts or messages in place of whole conversations.
        Raises ValueError, with the place in the list, on what is no conversation that ends in an assistant's turn, and
        on one of more than `max_length` tokens.
        """
        if (prompts is None) != (responses is None) or (conversations is None) == (prompts is None):
            raise ValueError("score: give conversations, or prompts and responses")
        if conversations is None:
            conversations = joined(prompts, responses)
        if len(conversations) == 0:
            raise ValueError("score: the list is empty; give one conversation, or a list of them")
        one = isinstance(conversations[0], dict)
        found = [conversation(each, i) for i, each in enumerate([conversations] if one else conversations)]
        texts = [self._rendered(each, i) for i, each in enumerate(found)]
        sequences = [np.array(ids, np.int32) for ids in encode(self.tokenizer, texts)]
        for i, sequence in enumerate(sequences):
            if not 0 < len(sequence) <= self.max_length:
                raise ValueError(f"conversation {i}: it has {len(sequence)} tokens, need 1 to {self.max_length}")
        prompt = [json.dumps(each[:-1]) for each in found]
        scores = self.score_tokens(sequences, np.unique(prompt, return_inverse=True)[1]).tolist()
        return scores[0] if one else scores

    def compare(self, prompt: str | Messages, chosen: str | Messages, rejected: str | Messages) -> "Compared":
        """By how much the first of two responses to a prompt is better, and how probable the model holds it to be."""
        margin = float(np.subtract(*self.score(prompts=[prompt, prompt], responses=[chosen, rejected])))
        return Compared(margin=margin, probability=float(1.0 / (1.0 + np.exp(-margin))))

    def _rendered(self, turns: Messages, i: int) -> str:
        try:
            return render(self.tokenizer, turns)
        except jinja2.TemplateError as error:
            raise ValueError(f"conversation {i}: the chat template refuses it: {error}") from error

    def score_tokens(self, sequences: Sequence[np.ndarray], group: np.ndarray) -> np.ndarray:
        """Rewards, float32 [S], of S token sequences of at most `max_length`; `group` int64 [S] is equal where
        sequences share their prompt, which is then computed once where the budget allows."""
        rewards = np.empty(len(sequences), np.float32)
        if len(sequences) == 0:
            return rewards
        lengths = np.array([[len(s)] for s in sequences])
        texts = TokenisedTexts(columns=(sequences,), lengths=measure([sequences], lengths, group))
        items, of_group = np.arange(len(sequences)), np.unique(group, return_inverse=True)[1]
        largest = int(count(texts.lengths, items, of_group, int(of_group.max()) + 1, self.layout).tokens.max())
        budget = max(min(self.max_tokens, max(self.full, largest)), int(lengths.max()), 2)
        batches = Batches(
            items=texts,
            config=BatchConfig(layout=self.layout, max_tokens=budget),
            pad_token_id=self.tokenizer.pad_token_id,
            pair_cost=self.model.pair_cost,
        )
        with torch.inference_mode():
            for positions in filter(len, batches.split(items)[0]):
                scores = self.model(batches.pack(positions).to(self.model.device))
                rewards[positions] = self.model.head.rewards(scores).cpu().numpy()
        return rewards


class Compared(NamedTuple):
    """Two responses to one prompt."""

    margin: float
    """Reward of the first, less that of the second"""
    probability: float
    """That the first one is preferred, sigmoid(margin) (Bradley and Terry)"""


def joined(prompts: Sequence[str | Messages], responses: Sequence[str | Messages]) -> list[Messages]:
    """Conversations of prompts and responses. ValueError where they are no two lists of one length."""
    if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses):
        raise ValueError("score: give as many responses as prompts, in two lists")
    return [
        [*messages(prompt, f"prompts[{i}]", "user"), *messages(response, f"responses[{i}]")]
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]


def conversation(given: Any, i: int) -> Messages:
    """Messages that end in an assistant's turn; ValueError, with the place i in the list, where they do not."""
    if isinstance(given, str):
        raise ValueError(f"conversation {i}: found a text, need a list of messages; give prompts= and responses=")
    turns = messages(given, f"conversation {i}")
    if not turns or turns[-1]["role"] != "assistant":
        ends = f"it ends in a turn of {turns[-1]['role']}" if turns else "it is empty"
        raise ValueError(f"conversation {i}: {ends}; the last message is what is scored, an assistant's")
    if len(turns) == 1:
        raise ValueError(f"conversation {i}: it is one message; give the prompt that it answers too")
    return turns


def load_scorer(
    name: str | Path,
    *,
    device: torch.device | None = None,
    layout: Layout = "trie",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    max_tokens: int | None = None,
    max_length: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Scorer:
    """Load a reward model: a folder that rmkit wrote (its self-check is verified), or anyone's sequence classifier
    with 1 label, or 2 as HALOs saves them (the reward is logit 1).

    Where there is no rmkit.json, what is assumed about template and end token is said. `max_tokens` defaults to
    `BUDGET` of the device, `max_length` to the model's context, at most `LONGEST` or `max_tokens`. Raises ValueError on
    a model without a score head, of another family, or not whole.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with torch.random.fork_rng():  # a head would be drawn from a seed; nobody else's numbers change
            return _load(str(name), device, layout, precision, max_tokens, max_length, say)
    except ValueError as error:
        # The parts are train's, whose flag has another name.
        raise ValueError(
            str(error).replace("--model.name", "--model").replace("--data.max-length", "--max-length")
        ) from error


def _load(name, device, layout, precision, max_tokens, max_length, say) -> Scorer:
    architecture = load_config(name)
    if saved_head(architecture, name) is None:
        raise ValueError(
            f"--model {name}: it is a {architecture.architectures[0]}, which has no score head; train one with "
            f"python -m rmkit.train --model.name {name}"
        )
    tokenizer = load_tokenizer(tokenizer_of(name), say)
    longest = max_length or min(architecture.max_position_embeddings, max_tokens or LONGEST)
    check_length(architecture, longest)
    if max_tokens is not None and longest > max_tokens:
        raise ValueError(f"--max-length {longest}: one conversation would not fit into --max-tokens {max_tokens}")
    budget = max_tokens or BUDGET[device.type]
    config = TrainConfig(
        model=ModelConfig(name=name, precision=precision), batch=BatchConfig(layout=layout, max_tokens=budget)
    )
    model = build_model(config, architecture, len(tokenizer), tokenizer.pad_token_id, say).to(device).eval()
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
    )


def _round_projections(model: RewardModel) -> None:
    """The decoder layers' projections in bf16 for good: the very numbers that autocast makes of them anew in each
    forward pass, in half the memory. Embedding, norms and score head stay float32, as under autocast."""
    for part in model.backbone.layers.modules():
        if isinstance(part, nn.Linear):
            part.to(torch.bfloat16)
