"""Train a Bradley-Terry reward model on preference pairs; with no flag, the embedded demo.

Leaves CACHE_DIR/EXP_NAME/ with config.json, env.json, metrics.jsonl, checkpoints/step-N/ (what --resume needs) and
FINAL/, an ordinary Hugging Face sequence classifier.
"""

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rmkit import cli, terminal
from rmkit.batch.build import attention_of, build, check_budget, microbatches
from rmkit.batch.pairs import TokenisedPairs, tokenise
from rmkit.batch.planner import epoch_order
from rmkit.config import DEMO, TrainConfig, to_dict
from rmkit.data import demo, source
from rmkit.data.tokenizer import load_tokenizer
from rmkit.distributed import launch
from rmkit.distributed.collectives import agreed_stop
from rmkit.distributed.launch import agreed, first_then_others
from rmkit.distributed.sharding import accumulating, distribute
from rmkit.errors import AgreedError
from rmkit.model.pretrained import build_model, check_length, load_config
from rmkit.model.reward_model import RewardModel
from rmkit.runtime import keep_freed, stop_asked
from rmkit.storage import training_state
from rmkit.storage.checkpoint import Progress, Saver
from rmkit.storage.export import verify, write_model
from rmkit.storage.run_folder import open_run
from rmkit.training import validation
from rmkit.training.metrics import Metrics, describe
from rmkit.training.optim import adamw, clip, learning_rate

DEFAULT_LENGTH = 2048
"""Tokens of the longest conversation where --data.max-length is not given and the model's context is longer."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run trains with."""

    config: TrainConfig
    accelerator: Accelerator
    model: RewardModel
    wrapped: nn.Module
    """What is called to run the model: itself, or what shares it among the ranks"""
    tokenizer: PreTrainedTokenizerBase
    train: TokenisedPairs
    test: TokenisedPairs | None
    max_length: int
    attention: float
    """What one (query, key) pair weighs, in tokens"""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run reads before it reads the weights."""

    architecture: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    train: TokenisedPairs
    test: TokenisedPairs | None
    max_length: int


def read(config: TrainConfig, name: str, say: Callable[[str], None]) -> Inputs:
    """Tokenizer and data for the model `name`."""
    from_scratch = name == DEMO
    architecture = demo.model_config() if from_scratch else load_config(name)
    tokenizer = demo.tokenizer() if from_scratch else load_tokenizer(name, say)
    context = architecture.max_position_embeddings
    max_length = config.data.max_length or min(context, DEFAULT_LENGTH, config.batch.max_tokens)
    check_length(architecture, max_length)

    train_set = source.load(config.data.train, "train", say)
    train, test = tokenise(train_set, tokenizer, config.data, max_length, say), None
    check_budget(train, config.batch)
    if config.data.test:
        test_set = source.load(config.data.test, "test", say)
        test = tokenise(test_set, tokenizer, config.data, max_length, say)
        check_budget(test, config.batch)
        if both := source.overlap(train_set, test_set):
            say(f"warning: {both} of {len(test_set)} held-out pairs stand in the training pairs too")
    else:
        say("no held-out pairs: nothing is evaluated (give --data.test)")
    return Inputs(architecture=architecture, tokenizer=tokenizer, train=train, test=test, max_length=max_length)


def prepare(config: TrainConfig, weights: Path | None, accelerator: Accelerator, say: Callable[[str], None]) -> Run:
    """Tokenizer, data and model, cheapest first, so that a wrong flag shows before the weights are read.

    `weights` is the checkpoint that --resume goes on from, in place of --model.name.
    """
    name = str(weights or config.model.name)
    inputs = first_then_others(lambda: read(config, name, say))
    tokenizer = inputs.tokenizer
    loading = replace(config, model=replace(config.model, name=name))
    model = agreed(lambda: build_model(loading, inputs.architecture, len(tokenizer), tokenizer.pad_token_id, say))
    wrapped = distribute(model, config.parallel, accelerator)
    if name != DEMO and (found := verify(model, tokenizer, Path(name))):
        say(found)
    return Run(
        config=config,
        accelerator=accelerator,
        model=model,
        wrapped=wrapped,
        tokenizer=tokenizer,
        train=inputs.train,
        test=inputs.test,
        max_length=inputs.max_length,
        attention=attention_of(model),
    )


def gradients(run: Run, indices: np.ndarray) -> Tensor:
    """Run the global batch `indices` forward and backward, split over ranks and microbatches.

    Returns float64 [7], summed over all ranks: the loss kernel's five sums, tokens flat, tokens computed.
    """
    accelerator, config = run.accelerator, run.config
    ranks = accelerator.num_processes
    totals = torch.zeros(7, dtype=torch.float64, device=accelerator.device)
    flat = computed = 0  # Python's: a copy to the device would wait for each microbatch
    mine = microbatches(run.train, indices, config, ranks, run.attention)[accelerator.process_index]
    for i, part in enumerate(mine):
        batch = build(run.train, part, config, run.tokenizer.pad_token_id).to(accelerator.device)
        with accumulating(run.wrapped, last=i == len(mine) - 1):
            # A sum over the global batch; DDP and FSDP2 average over the ranks, which the divisor undoes.
            loss, _, stats = run.wrapped(batch, config.loss.center, len(indices) / ranks)
            loss.backward()
        totals[:5].add_(stats)
        flat, computed = flat + batch.flat_tokens, computed + batch.tokens
    totals[5].add_(flat)
    totals[6].add_(computed)
    return accelerator.reduce(totals, "sum")


def train(config: TrainConfig, console: Console) -> int:
    """Train as `config` says; the exit status. Raises ValueError with a sentence for the user."""
    if config.model.name == DEMO and "OMP_NUM_THREADS" not in os.environ:
        # Too small to gain from a second core, and threads that wait for one that is busy elsewhere lose tenfold.
        torch.set_num_threads(1)
    asked = launch.overruled(config)
    accelerator = launch.start()
    if accelerator.device.type == "cpu":
        keep_freed()
    main, ranks = accelerator.is_main_process, accelerator.num_processes

    def say(text: str) -> None:
        if main:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    for sentence in asked:
        say(sentence)
    folder, pairs_a_step = config.folder, config.batch.pairs
    weights, progress = open_run(config, say)
    run = prepare(config, weights, accelerator, say)
    per_epoch = math.ceil(len(run.train) / pairs_a_step)
    steps = per_epoch * config.optim.epochs
    if config.optim.max_steps:
        steps = min(steps, config.optim.max_steps)
    optimizer = adamw(run.model, config.optim)
    if weights is not None:
        agreed(lambda: training_state.load(weights / "training", run.model, optimizer))
        say(f"resumed at step {progress.step} of {steps}")
    parameters = sum(p.numel() for p in run.model.parameters())
    where = f"{ranks} x {accelerator.device.type}" if ranks > 1 else str(accelerator.device)
    say(f"{parameters:,} parameters, {len(run.train)} training pairs, {steps} steps of {pairs_a_step} on {where}")

    metrics = Metrics(folder if main else None, progress.metrics_bytes)
    describe(folder if main else None, to_dict(config), accelerator.device, ranks)
    display = terminal.Display(console, steps, progress.step, main)
    saver = Saver(folder, config)
    last_eval: dict = {}

    def save() -> None:
        nonlocal progress
        progress = replace(progress, metrics_bytes=metrics.bytes)
        saver.save(progress, run.model, run.tokenizer, optimizer, run.max_length)

    def evaluate() -> None:
        nonlocal progress, last_eval
        if run.test is None:
            return
        found = validation.measure(
            run.wrapped, run.test, config, accelerator, run.tokenizer.pad_token_id, run.attention
        )
        last_eval = {"counters/examples": progress.examples, "counters/updates": progress.step, **found}
        metrics.write(last_eval)
        display.say(terminal.evaluated(last_eval))
        if progress.step and (progress.best_loss is None or found["loss/eval"] < progress.best_loss):
            progress = replace(progress, best_loss=found["loss/eval"], best_step=progress.step)
            save()

    began, order, order_epoch = time.perf_counter(), np.empty(0), -1
    with stop_asked() as stop, contextlib.closing(display), saver:
        if progress.step == 0:
            evaluate()
        while progress.step < steps:
            if saver.failed():  # seen by one rank first: it stops all of them, and save() says why
                stop.received = signal.SIGTERM
            if number := agreed_stop(stop, accelerator):
                save()
                saver.wait()
                display.say(f"stopped by {number.name} at step {progress.step}: go on with --resume")
                return 128 + number
            step_began = time.perf_counter()
            epoch, position = divmod(progress.step, per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(run.train.group, epoch, config), epoch
            indices = order[position * pairs_a_step : (position + 1) * pairs_a_step]

            totals = gradients(run, indices)
            grad_norm = clip(run.model, config.optim.max_grad_norm)
            measured = validation.means(totals[:5], len(indices), "train")
            if not (math.isfinite(measured["loss/train"]) and math.isfinite(grad_norm)):
                raise AgreedError(refused(progress.step, measured["loss/train"], grad_norm, run.train, indices))
            lr = learning_rate(config.optim, progress.step, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            progress = replace(progress, step=progress.step + 1, examples=progress.examples + len(indices))
            flat, computed = (int(count) for count in totals[5:].tolist())
            seconds = time.perf_counter() - step_began
            values = {
                **measured,
                "grad_norm": grad_norm,
                "examples_per_second": len(indices) / seconds,
                "tokens_per_second": computed / seconds,
                "tokens/flat": flat,
                "tokens/computed": computed,
                "counters/examples": progress.examples,
                "counters/updates": progress.step,
                "counters/lr": lr,
            }
            metrics.write(values)
            display.step(progress.step, values)
            if (config.eval.every and progress.step % config.eval.every == 0) or progress.step == steps:
                evaluate()
            if config.save.every and progress.step % config.save.every == 0 and progress.best_step != progress.step:
                save()

    final = folder / "FINAL"
    write_model(run.model, run.tokenizer, config, run.max_length, final)
    if main:
        report(config, console, say, progress, last_eval, time.perf_counter() - began)
    metrics.close()
    launch.end(accelerator)
    return 0


def refused(step: int, loss: float, grad_norm: float, pairs: TokenisedPairs, indices: np.ndarray) -> str:
    """The sentence for a step whose loss or gradient is not finite, with the pairs that were in it."""
    named = [pairs.source[int(i)] for i in indices]
    shown = ", ".join(named[:16]) + (f" and {len(named) - 16} more" if len(named) > 16 else "")
    return (
        f"step {step + 1}: loss {loss}, gradient norm {grad_norm}. The step was refused, the weights are those of step "
        f"{step}. Pairs in the batch: {shown}. Look at their margins and weights, or lower --optim.lr"
    )


def report(
    config: TrainConfig, console: Console, say: Callable[[str], None], progress: Progress, last: dict, seconds: float
) -> None:
    """The closing table, and the command to run next."""
    rows = [("steps", str(progress.step)), ("preferences", str(progress.examples)), ("seconds", f"{seconds:.0f}")]
    if last:
        rows += [
            ("held-out accuracy", f"{last['rewards_eval/accuracies']:.4f}"),
            ("held-out loss", f"{last['loss/eval']:.4f}"),
            ("held-out margin", f"{last['rewards_eval/margins']:.3f}"),
            ("best step", f"{progress.best_step} (loss {progress.best_loss:.4f})"),
        ]
    final = config.folder / "FINAL"
    rows += [("model", str(final)), ("metrics", str(config.folder / "metrics.jsonl"))]
    terminal.closing(console, rows, say)
    say(f"go on from it: python -m rmkit.train --model.name {final} --data.train FILE --data.test FILE")


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags and train; 2 with a boxed sentence on a user's error, 130 or 143 when stopped by a signal."""

    def work(console: Console) -> int:
        config = tyro.cli(TrainConfig, args=arguments, prog="python -m rmkit.train", description=__doc__)
        return train(config.resolved(), console)

    # While it trains, Ctrl-C ends the step first and writes a checkpoint; this is before or after.
    before_or_after = "stopped before the first step or after the last: no checkpoint is written"
    return cli.run(work, before_or_after, "Go on from the last checkpoint with --resume")


if __name__ == "__main__":
    sys.exit(main())
