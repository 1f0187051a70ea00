"""Everything that a training needs, read and checked before its first step."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from rmkit.batch.build import Batches
from rmkit.batch.pairs import TokenisedPairs
from rmkit.batch.planner import epoch_order
from rmkit.batch.trie import PackedBatch
from rmkit.config import DEMO, TrainConfig
from rmkit.distributed.collectives import agreed, first_then_others, rank, ranks
from rmkit.distributed.sharding import distribute
from rmkit.model import compile as compiler
from rmkit.model import family, flash
from rmkit.model.pretrained import build_model
from rmkit.model.reward_model import RewardModel
from rmkit.storage import training_state
from rmkit.storage.checkpoint import Progress
from rmkit.storage.run_folder import open_run
from rmkit.storage.self_check import verify
from rmkit.training import plan
from rmkit.training.inputs import Memory, read
from rmkit.training.optim import adamw
from rmkit.training.record import Meter


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training needs: model, optimizer, batches, and the progress it starts from."""

    config: TrainConfig
    accelerator: Accelerator
    model: RewardModel
    wrapped: nn.Module
    """The module whose forward runs the model: the model itself, or its DDP or FSDP2 wrapper"""
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    train: Batches
    test: Batches | None
    max_length: int
    progress: Progress
    """Step 0, or the step of the checkpoint it resumes from"""
    plan: plan.Plan
    meter: Meter
    attention: flash.Flash | None = None
    """What computes attention, where it is one of these"""
    compiled: bool = False
    held_out: Dataset | None = None
    """The preferences that `test` is made of, with their texts"""
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was read and dropped, of train and of test"""

    @property
    def steps_an_epoch(self) -> int:
        return math.ceil(len(self.train.items) / self.config.batch.pairs)

    @property
    def steps(self) -> int:
        steps = self.steps_an_epoch * self.config.optim.epochs
        return min(steps, self.config.optim.max_steps or steps)

    def microbatches(self, step: int) -> Iterator["Microbatch"]:
        """What this rank runs from `step` on to the last step, on its device."""
        order, order_epoch, pairs = np.empty(0), -1, self.config.batch.pairs
        for coming in range(step, self.steps):
            epoch, position = divmod(coming, self.steps_an_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.train.items.group, epoch, self.config), epoch
            indices = order[position * pairs : (position + 1) * pairs]
            for batch, last in self.train.microbatches(indices):
                flops = self.meter.flops(batch)
                yield Microbatch(batch=batch.to(self.accelerator.device), last=last, indices=indices, flops=flops)


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """The pairs that a rank runs forward and backward at once."""

    batch: PackedBatch
    last: bool
    """Whether it is the rank's last one of its step"""
    indices: np.ndarray
    """The global batch that it is a part of"""
    flops: float
    """Of the model's mathematics; 0 where no peak rate is known"""


def start(config: TrainConfig, accelerator: Accelerator, say: Callable[[str], None], memory: Memory) -> Run:
    """Read what the run needs, cheapest first, so that a wrong flag shows before the weights are read."""
    weights, progress = open_run(config, say)
    name = str(weights or config.model.name)  # --resume goes on from the checkpoint's weights
    inputs = first_then_others(lambda: read(config, name, memory, say))
    tokenizer = inputs.tokenizer
    planned = plan.at_start(config, inputs.architecture, inputs.train, ranks(), say)
    config = planned.config
    loading = replace(config, model=replace(config.model, name=name))
    device = accelerator.device
    kernel = agreed(lambda: flash.chosen(config, inputs.architecture, device, say))
    compiled = family.tested(inputs.architecture) and agreed(lambda: compiler.wanted(config.model.compile, device))
    with plan.told_if_full(planned):
        model = agreed(lambda: build_model(loading, inputs.architecture, len(tokenizer), tokenizer.pad_token_id, say))
        if compiled:
            compiler.compile_layers(model, repeatable=config.deterministic)
            say("the decoder layers are compiled: the first steps take longer than the others")
        wrapped = distribute(model, config.parallel, accelerator)
        if name != DEMO and (checked := verify(model, tokenizer, Path(name))):
            say(checked)
        optimizer = adamw(model, config.optim, config.seed)
        if weights is not None:
            agreed(lambda: training_state.load(weights / "training", model, optimizer))

    def batches(pairs: TokenisedPairs) -> Batches:
        return Batches(
            items=pairs,
            config=config.batch,
            pad_token_id=tokenizer.pad_token_id,
            pair_cost=model.pair_cost,
            rank=rank(),
            ranks=ranks(),
        )

    run = Run(
        config=config,
        accelerator=accelerator,
        model=model,
        wrapped=wrapped,
        tokenizer=tokenizer,
        optimizer=optimizer,
        train=batches(inputs.train),
        test=None if inputs.test is None else batches(inputs.test),
        max_length=inputs.max_length,
        progress=progress,
        plan=planned,
        meter=Meter.of(planned, device),
        attention=kernel,
        compiled=compiled,
        held_out=inputs.held_out,
        counts=inputs.counts,
    )
    if progress.step:
        say(f"resumed at step {progress.step} of {run.steps}")
    if config.deterministic and device.type == "cpu":
        say("--deterministic changes nothing on a CPU: a training repeats bit for bit there")
    where = f"{ranks()} x {device.type}" if ranks() > 1 else str(device)
    parameters = sum(p.numel() for p in model.parameters())
    pairs = f"{len(inputs.train)} training pairs, {run.steps} steps of {config.batch.pairs}"
    say(f"{parameters:,} parameters, {pairs} on {where}")
    return run
