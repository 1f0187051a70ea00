"""Scoring with a trained reward model: load it, check it against its rmkit.json, run it on packed batches."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rmkit.batch.build import Batches, TokenisedTexts
from rmkit.batch.lengths import count, measure
from rmkit.batch.pairs import TokenisedPairs
from rmkit.config import BatchConfig, Layout, ModelConfig, TrainConfig
from rmkit.data.context import options
from rmkit.data.forms import check_asked
from rmkit.data.left_out import LeftOut, matters
from rmkit.data.messages import messages
from rmkit.data.tokenizer import encode, load_tokenizer, render
from rmkit.distributed.sharding import placed
from rmkit.errors import UserError, flag
from rmkit.model import family
from rmkit.model.adapter import tokenizer_of
from rmkit.model.folder import saved_head
from rmkit.model.posterior import Posterior
from rmkit.model.pretrained import PAD_AT_END, build_model, check_length, load_config, pad_at_end
from rmkit.model.reward_model import RewardModel
from rmkit.storage import trust
from rmkit.storage.self_check import verify
from rmkit.storage.trust import Trust

BUDGET = {"cpu": 4096, "cuda": 16384}
"""Most tokens of one forward pass, by default."""
FULL = {"cpu": 2048, "cuda": 16384}
"""Tokens to which a pass is filled by default; more only for a prompt group that is larger, which would be cut. On a
CPU larger passes do not fit its cache and are 1 to 10 % slower per token."""
LONGEST = 16384
"""Most tokens of a conversation by default, even where the model's context is longer."""
PAIRS = 256
"""Pairs whose features are computed at once: enough to fill the passes, few enough for memory."""


NO_POSTERIOR = (
    "the model has no posterior of its head: python -m rmkit.train leaves one in FINAL/ (--trust.posterior auto), "
    "another trainer's model has none"
)

Messages = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A reward model with its tokenizer, ready to score."""

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    max_tokens: int
    """Most tokens of one forward pass; more only for a single conversation that is longer"""
    full: int
    """Tokens to which a pass is filled; more, up to `max_tokens`, only for a prompt group that is larger"""
    max_length: int
    """Most tokens of a conversation that is scored"""
    unscored: int | None = None
    """A token that is passed over where it ends a conversation (--end-token before-pad)"""
    trust: Trust | None = None
    """What the model says of its own scores: the posterior of its head, and its temperature"""

    def score(
        self,
        conversations: Messages | Sequence[Messages] | None = None,
        *,
        prompts: Sequence[str | Messages] | None = None,
        responses: Sequence[str | Messages] | None = None,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        with_se: bool = False,
    ) -> "float | list[float] | Reward | list[Reward]":
        """The reward of one conversation (a list of messages), or of each of a list of them; `with_se` as a `Reward`,
        with its standard error.

        `prompts` and `responses`, as long as one another, are texts or messages in place of whole conversations. The
        chat template gets whole messages, `tools` and `chat_template_kwargs`; what it leaves out is a warning.
        Raises ValueError, with the index in the list, on a conversation that does not end in an assistant's turn, has
        no user's turn or more than `max_length` tokens; and where `with_se` asks a model without a posterior.
        """
        return self._scored(conversations, prompts, responses, tools, chat_template_kwargs, with_se)[0]

    def _scored(self, conversations, prompts, responses, tools, chat_template_kwargs, with_se) -> tuple[Any, Any]:
        """What `score` returns, and with `with_se` the end states [S, H]."""
        if (prompts is None) != (responses is None) or (conversations is None) == (prompts is None):
            raise ValueError("score: give conversations, or prompts and responses")
        if conversations is None:
            conversations = joined(prompts, responses)
        if len(conversations) == 0:
            raise ValueError("score: the list is empty; give one conversation, or a list of them")
        one = isinstance(conversations[0], dict)
        turns = [conversation(each, i) for i, each in enumerate([conversations] if one else conversations)]
        more = options({"tools": tools, "chat_template_kwargs": chat_template_kwargs})
        texts = [self._rendered(each, i, more) for i, each in enumerate(turns)]
        sequences = [np.array(ids, np.int32) for ids in encode(self.tokenizer, texts)]
        for i, sequence in enumerate(sequences):
            if not 0 < len(sequence) <= self.max_length:
                raise ValueError(f"conversation {i}: it has {len(sequence)} tokens, need 1 to {self.max_length}")
        prompt = [json.dumps(each[:-1]) for each in turns]
        group, features = np.unique(prompt, return_inverse=True)[1], None
        if with_se:
            scores, features = self.score_with_features(sequences, group)
            errors = self.posterior().reward_se(features)
            scores = [Reward(*values) for values in zip(scores.tolist(), errors.tolist(), strict=True)]
        else:
            scores = self.score_tokens(sequences, group).tolist()
        return (scores[0] if one else scores), features

    def posterior(self) -> Posterior:
        """The posterior of the head; ValueError where the model has none."""
        if self.trust is None or self.trust.posterior is None:
            raise ValueError(NO_POSTERIOR)
        return self.trust.posterior

    def compare(
        self,
        prompt: str | Messages,
        chosen: str | Messages,
        rejected: str | Messages,
        *,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        with_se: bool = False,
    ) -> "Compared | ComparedWithSe":
        """Compare two responses: the margin of their rewards, and the probability that `chosen` is preferred; `with_se`
        by the model's temperature and the posterior of its head, and with the standard error of the margin."""
        given = None, [prompt, prompt], [chosen, rejected], tools, chat_template_kwargs, with_se
        scores, ends = self._scored(*given)
        if not with_se:
            margin = float(np.subtract(*scores))
            return Compared(margin=margin, probability=float(1.0 / (1.0 + np.exp(-margin))))
        margin = scores[0].reward - scores[1].reward
        se = self.posterior().difference_se(ends[:1].astype(np.float64) - ends[1:])
        probability = self.trust.probability(np.array([margin]), se)
        return ComparedWithSe(margin=margin, probability=float(probability[0]), difference_se=float(se[0]))

    def _rendered(self, turns: Messages, i: int, more: dict[str, Any] | None) -> str:
        if missed := list(filter(matters, LeftOut(self.tokenizer).of(turns, more))):
            warnings.warn(f"conversation {i}: the chat template leaves out {', '.join(missed)}", stacklevel=4)
        try:
            return render(self.tokenizer, turns, more)
        except jinja2.TemplateError as error:
            raise ValueError(f"conversation {i}: the chat template refuses it: {error}") from error

    def score_tokens(self, sequences: Sequence[np.ndarray], group: np.ndarray) -> np.ndarray:
        """Rewards, float32 [S], of S token sequences of at most `max_length` tokens. `group` int64 [S] is equal where
        sequences share a prompt: it is computed once where they fit into one pass."""
        rewards = np.empty(len(sequences), np.float32)
        for positions, ends in self._passes(sequences, group):
            rewards[positions] = self._rewards(ends).cpu().numpy()
        return rewards

    def score_with_features(self, sequences: Sequence[np.ndarray], group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`score_tokens`, to the last bit, and the end states that were scored, float32 [S, H], in the same pass."""
        rewards = np.empty(len(sequences), np.float32)
        features = np.empty((len(sequences), self.model.config.hidden_size), np.float32)
        for positions, ends in self._passes(sequences, group):
            rewards[positions] = self._rewards(ends).cpu().numpy()
            features[positions] = ends.float().cpu().numpy()
        return rewards, features

    def features(self, pairs: TokenisedPairs) -> np.ndarray:
        """What the head sees of N pairs, float32 [N, H]: the end state of chosen less that of rejected, from one
        scoring pass over all. The margin of a pair is its row times the head's weights.

        4 H bytes a pair are held: 16 MB a thousand pairs of an 8B model. A rated response that stands alone has zeros.
        """
        features = np.empty((len(pairs), self.model.config.hidden_size), np.float32)
        order = np.argsort(pairs.group, kind="stable")  # pairs on one prompt meet
        for chunk in np.split(order, range(PAIRS, len(order), PAIRS)):
            sides = [pairs.chosen[i] for i in chunk] + [pairs.rejected[i] for i in chunk]
            _, ends = self.score_with_features(sides, np.tile(pairs.group[chunk], 2))
            features[chunk] = ends[: len(chunk)] - ends[len(chunk) :]
        return features

    @torch.inference_mode()
    def _rewards(self, ends: Tensor) -> Tensor:
        head = self.model.head
        return head.rewards(head.scores(ends, self.model.classifier.score.weight))

    def _passes(self, sequences: Sequence[np.ndarray], group: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """The forward passes over S sequences: positions of some of them, and their end states, one row each."""
        if len(sequences) == 0:
            return
        if self.unscored is not None:
            sequences = [_before(sequence, self.unscored) for sequence in sequences]
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
        for positions in filter(len, batches.split(items)[0]):
            with torch.inference_mode():
                ends = self.model(batches.pack(positions).to(self.model.device), features=True)
            yield positions, ends


def _before(sequence: np.ndarray, pad: int) -> np.ndarray:
    """A sequence up to its last token that is not `pad`: what stands behind it changes nothing before it."""
    others = np.flatnonzero(sequence != pad)
    return sequence[: others[-1] + 1] if len(others) else sequence[:1]


class Compared(NamedTuple):
    """How two responses to one prompt compare."""

    margin: float
    """reward(chosen) - reward(rejected)"""
    probability: float
    """sigmoid(margin): that chosen is preferred (Bradley and Terry)"""


class ComparedWithSe(NamedTuple):
    """How two responses to one prompt compare, and how far the head could be otherwise."""

    margin: float
    """reward(chosen) - reward(rejected)"""
    probability: float
    """That chosen is preferred, by temperature and posterior (`rmkit.model.probability`)"""
    difference_se: float
    """Standard error of the margin"""


class Reward(NamedTuple):
    """A reward and how far it could be otherwise."""

    reward: float
    se: float
    """Standard error of its distance from the mean training response (`rmkit.model.posterior`)"""


def joined(prompts: Sequence[str | Messages], responses: Sequence[str | Messages]) -> list[Messages]:
    """Each prompt with its response as a conversation. ValueError where they are not two lists of equal length."""
    if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses):
        raise ValueError("score: give as many responses as prompts, in two lists")
    return [
        [*messages(prompt, f"prompts[{i}]", "user"), *messages(response, f"responses[{i}]")]
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]


def conversation(given: Any, i: int) -> Messages:
    """Check that `given` is messages that end in an assistant's turn, and that a user asked something; else ValueError,
    with its index `i`."""
    if isinstance(given, str):
        raise ValueError(f"conversation {i}: found a text, need a list of messages; give prompts= and responses=")
    turns = messages(given, f"conversation {i}")
    if not turns or turns[-1]["role"] != "assistant":
        ends = f"it ends in a turn of {turns[-1]['role']}" if turns else "it is empty"
        raise ValueError(f"conversation {i}: {ends}; the last message is what is scored, an assistant's")
    if len(turns) == 1:
        raise ValueError(f"conversation {i}: it is one message; give the prompt that it answers too")
    try:
        check_asked(turns[:-1], turns[-1:])
    except ValueError as error:
        raise ValueError(f"conversation {i}: {error}") from None
    return turns


def load_scorer(
    name: str | Path,
    *,
    device: torch.device | None = None,
    layout: Layout = "trie",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    max_tokens: int | None = None,
    max_length: int | None = None,
    end_token: Literal["last", "before-pad"] = "last",
    headless: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Scorer:
    """Load a reward model: a folder that rmkit wrote (its self-check is verified), or anyone's sequence classifier
    with 1 label, or 2 as HALOs saves them (the reward is logit 1).

    Without an rmkit.json, `say` tells what is assumed about template and end token. `max_tokens` defaults to `BUDGET`
    of the device, `max_length` to the model's context, at most `max_tokens` or, without it, `LONGEST`. `end_token`
    matters where a model's pad token ends conversations: before-pad scores the token before it, as transformers does.
    With `headless` a causal LM is loaded too, for its features: the head that it gets is drawn, and its scores say
    nothing.
    Raises UserError on a model without a score head, of an untested family, or with missing tensors.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = str(name)
    architecture = load_config(name)
    family.check_layout(architecture, layout)
    if not headless and saved_head(architecture, name) is None:
        kind = architecture.architectures[0]
        train = f"python -m rmkit.train --model.name {name} --data.train FILE"
        hint = f"it is a {kind}, which has no score head; train one with {train}"
        raise UserError("model.name", name, hint)
    tokenizer = load_tokenizer(tokenizer_of(name), say)
    pad = pad_at_end(architecture, tokenizer)
    if pad is not None:
        asked = "the one before" if end_token == "before-pad" else "the last"
        other = "last" if end_token == "before-pad" else "before-pad"
        # rmkit.check loads models too, and has no such flag: the programs that have it are named.
        way = f"--end-token {other} (label, evaluate, inspect) or end_token='{other}' (load_scorer)"
        say(f"{PAD_AT_END.format(name=name)}. Here {asked} is scored; {way} scores the other")
    longest = max_length or min(family.context(architecture), max_tokens or LONGEST)
    check_length(architecture, longest)
    if max_tokens is not None and longest > max_tokens:
        hint = f"one conversation would not fit into {flag('batch.max_tokens')} {max_tokens}"
        raise UserError("data.max_length", longest, hint)
    budget = max_tokens or BUDGET[device.type]
    config = TrainConfig(
        model=ModelConfig(name=name, precision=precision), batch=BatchConfig(layout=layout, max_tokens=budget)
    )
    model = placed(build_model(config, architecture, len(tokenizer), tokenizer.pad_token_id, say), device).eval()
    checked = verify(model, tokenizer, Path(name))
    scored = "the last token" if pad is None or end_token == "last" else "the last token that is no pad token"
    say(checked or f"{name} has no rmkit.json: its own chat template is used, and {scored} of the text is scored")
    if model.bf16:
        _round_projections(model)
    return Scorer(
        model=model,
        tokenizer=tokenizer,
        layout=layout,
        max_tokens=budget,
        full=min(budget, FULL[device.type]) if max_tokens is None else budget,
        max_length=longest,
        unscored=pad if end_token == "before-pad" else None,
        trust=trust.load(Path(name), model.config.hidden_size),
    )


def _round_projections(model: RewardModel) -> None:
    """Round the decoder layers' projections to bf16 once, to the numbers that autocast makes of them in each forward
    pass, in half the memory. Embedding, norms and score head stay float32, as under autocast."""
    for part in model.layers.modules():
        if isinstance(part, nn.Linear):
            part.to(torch.bfloat16)
