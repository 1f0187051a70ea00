"""The inputs of a training except the weights: architecture, tokenizer and tokenised pairs, all checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rmkit.batch.build import check_budget
from rmkit.batch.pairs import TokenisedPairs, tokenise
from rmkit.config import DEMO, TrainConfig
from rmkit.data import demo, source
from rmkit.data.counts import Counts
from rmkit.data.guess import BYTES, guess, no_tokenizer_in
from rmkit.data.tokenizer import load_tokenizer
from rmkit.distributed.collectives import ranks
from rmkit.errors import UserError
from rmkit.model import family, lora, quantised
from rmkit.model.adapter import tokenizer_of
from rmkit.model.folder import saved_head
from rmkit.model.head import Head, fresh_head
from rmkit.model.loss import loss_of
from rmkit.model.pretrained import PAD_AT_END, check_length, load_config, pad_at_end

DEFAULT_LENGTH = 2048
"""Tokens of the longest conversation where --data.max-length is not given and the model's context is longer."""

Rows = Sequence[dict] | Dataset
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Preferences in memory, given from Python in place of --data.train and --data.test."""

    train: Rows | None = None
    test: Rows | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a training reads before its weights."""

    architecture: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    train: TokenisedPairs
    test: TokenisedPairs | None
    max_length: int
    held_out: Dataset | None = None
    """The preferences that `test` is made of, with their texts"""
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was read and dropped, of train and of test, as `rmkit.data.counts` has it"""


def read(config: TrainConfig, name: str, memory: Memory, say: Say) -> Inputs:
    """Read and check architecture, tokenizer and data for the model `name`, cheapest first: a wrong flag shows at once.

    Raises ValueError with a sentence for the user.
    """
    loss_of(config.loss)
    quantised.check(config, ranks())
    from_scratch = name == DEMO
    architecture = demo.model_config() if from_scratch else load_config(name)
    family.check_training(config, architecture)
    lora.check(config.lora, architecture, name)
    head = None if from_scratch else saved_head(architecture, name)
    tokenizer = demo.tokenizer() if from_scratch else _tokenizer(config, tokenizer_of(name), say)
    if head is not None and pad_at_end(architecture, tokenizer) is not None:
        say(f"{PAD_AT_END.format(name=name)}. From here on it is trained on the last")
    max_length = config.data.max_length or min(family.context(architecture), DEFAULT_LENGTH, config.batch.max_tokens)
    check_length(architecture, max_length)

    counts = {"train": Counts(), "test": Counts()}

    def tokenised(preferences: Dataset, split: str) -> TokenisedPairs:
        objectives = (head or fresh_head(config.model)).objectives
        pairs = tokenise(preferences, tokenizer, config.data, max_length, say, objectives)
        check_budget(pairs, config.batch)
        counts[split].pairs_dropped.update(pairs.dropped)
        return pairs

    def loaded(split: Literal["train", "test"], names: tuple[str, ...], rows: Rows | None) -> Dataset:
        how = {"bad_rows": config.data.bad_rows, "counts": counts[split]}
        return source.load(names, split, say, rows, config.data.columns, **how)

    train_set = loaded("train", config.data.train, memory.train)
    train, test, test_set = tokenised(train_set, "train"), None, None
    if head is None:
        check_rated(fresh_head(config.model), train)
    if config.data.test or memory.test is not None:
        test_set = loaded("test", config.data.test, memory.test)
        test = tokenised(test_set, "test")
        if both := source.overlap(train_set, test_set):
            say(f"warning: {both} of {len(test_set)} held-out pairs stand in the training pairs too")
    else:
        say("no held-out pairs: nothing is evaluated (give --data.test)")
    return Inputs(
        architecture=architecture,
        tokenizer=tokenizer,
        train=train,
        test=test,
        max_length=max_length,
        held_out=test_set,
        counts={name: of_set.as_dict() for name, of_set in counts.items() if of_set.rows},
    )


def _tokenizer(config: TrainConfig, name: str, say: Say) -> PreTrainedTokenizerBase:
    if not no_tokenizer_in(name):
        return load_tokenizer(name, say)
    if not config.plan.only:
        raise UserError("model.name", name, "no tokenizer is there; put its tokenizer.json beside config.json")
    say(f"{name} has no tokenizer: tokens are guessed as bytes / {BYTES}, and so is what follows from them")
    return guess()


def check_rated(head: Head, train: TokenisedPairs) -> None:
    """ValueError where an objective of a fresh head is rated in no row: its scores would stay as they were drawn."""
    if not head.objectives:
        return
    counts = np.isfinite(train.labels["ratings"]).sum((0, 1))
    absent = [name for name, count in zip(head.objectives, counts.tolist(), strict=True) if count == 0]
    if len(absent) == len(head.objectives):
        hint = (
            "no row of the training data has ratings of any; a row holds prompt, response and ratings "
            f'({{"{absent[0]}": 3}}), or a pair and the ratings of its sides'
        )
        raise UserError("model.objectives", " ".join(absent), hint)
    if absent:
        raise UserError("model.objectives", " ".join(absent), "no row of the training data rates it; leave it out")
