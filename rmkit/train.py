"""Train a Bradley-Terry reward model on preference pairs; with no flag, the embedded demo.

Leaves CACHE_DIR/EXP_NAME/ with config.json, env.json, metrics.jsonl, report.html (curves, calibration, the worst
held-out pairs; written anew at every evaluation), checkpoints/step-N/ (what --resume needs) and FINAL/, an ordinary
Hugging Face sequence classifier.
"""

import sys

from rmkit import cli

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    sys.exit(cli.main(["train", *sys.argv[1:]]))

import contextlib
import functools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from accelerate import Accelerator
from rich.console import Console

from rmkit import terminal
from rmkit.batch.ahead import Ahead
from rmkit.config import DEMO, TrainConfig, to_dict
from rmkit.distributed import launch
from rmkit.distributed.collectives import agreed, agreed_stop, first_then_others, rank, ranks
from rmkit.distributed.sharding import accumulating
from rmkit.errors import AgreedError
from rmkit.model import compile as compiler
from rmkit.model import flash
from rmkit.model.loss import PairSums
from rmkit.runtime import SIGNALS, Stop, stop_asked
from rmkit.storage.checkpoint import Progress, Saver
from rmkit.storage.export import write_model
from rmkit.storage.push import foresee, push
from rmkit.storage.run_folder import claimed, replace_earlier
from rmkit.training import plan, plan_table, trust, validation
from rmkit.training.inputs import Memory, read
from rmkit.training.metrics import Metrics, describe
from rmkit.training.optim import clip, learning_rate
from rmkit.training.page import Page
from rmkit.training.record import Result, Step, card_of, record, refused, report
from rmkit.training.repeat import repeatable
from rmkit.training.run import Microbatch, Run, start
from rmkit.training.trackers import check_trackers, open_mirrors
from rmkit.training.validation import all_ranks, means


def train_step(run: Run, coming: Iterator[Microbatch], step: int, stop: Stop) -> Step:
    """Optimizer step number `step` on the microbatches `coming` up to its last one. Raises AgreedError where loss or
    gradient norm is not finite; the weights are then those of the step before."""
    config, sums, flat, computed, flops = run.config, None, 0, 0, 0.0
    for part in coming:
        with accumulating(run.wrapped, part.last):
            # A sum over the global batch; DDP and FSDP2 average over the ranks, which the divisor undoes.
            loss, _, of_batch = run.wrapped(part.batch, config.loss, len(part.indices) / ranks())
            loss.backward()
        sums = of_batch if sums is None else sums + of_batch
        flat, computed = flat + part.batch.flat_tokens, computed + part.batch.tokens
        flops += part.flops
        if part.last:
            break
    # Filled on the device, and read from it once: a copy from the host or a second read would wait for the backward.
    # The signals go with it, so that all ranks stop at the same step without asking each other.
    counts = {"flat": flat, "computed": computed, "flops": flops}
    counts |= {each.name: stop.received == each for each in SIGNALS}
    filled = [sums.values.new_full((1,), float(count)) for count in counts.values()]
    sums = PairSums((*sums.names, *counts), torch.cat([sums.values, *filled]))
    sums, norm = all_ranks(sums, run.accelerator), clip(run.model, config.optim.max_grad_norm)
    summed = PairSums((*sums.names, "norm"), torch.cat([sums.values, norm.double()[None]])).as_dict()
    metrics, grad_norm = means(summed, len(part.indices), "train"), summed["norm"]
    if not (math.isfinite(metrics["loss/train"]) and math.isfinite(grad_norm)):
        raise AgreedError(refused(step, metrics["loss/train"], grad_norm, run.train.items, part.indices))
    lr = learning_rate(config.optim, step, run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return Step(
        metrics=metrics,
        grad_norm=grad_norm,
        lr=lr,
        tokens_flat=int(summed["flat"]),
        tokens_computed=int(summed["computed"]),
        flops=summed["flops"],
        pairs=len(part.indices),
        stop=max((each for each in SIGNALS if summed[each.name]), default=None),
    )


def loop(
    run: Run, metrics: Metrics, page: Page, shown: terminal.Terminal, bar: terminal.Progress, stop: Stop
) -> Result:
    """Train to the end, or to the step at which a signal asks to stop."""
    config, progress, evaluated = run.config, run.progress, metrics.evaluated
    began, stopped, device = progress.step, None, run.accelerator.device
    # A new thread's device is the first GPU, whatever this rank's is. Its stream is the one that computes here: what it
    # copies is there before what is asked for afterwards.
    at_start = functools.partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    with Saver(config.folder, config) as saver, Ahead(run.microbatches(began), at_start) as coming:
        while True:
            step = progress.step
            # Once in a while. What was due at the step of a checkpoint was done before it was written.
            if run.test and (step == 0 or (step > began and due(step, config.eval.every, run.steps))):
                measured, rewards = validation.measure(run.wrapped, run.test, config.loss, run.accelerator)
                evaluated = {"counters/examples": progress.examples, "counters/updates": step, **measured}
                metrics.write(evaluated)
                page.evaluated(step, rewards)
                shown.say(terminal.evaluated(evaluated))
                if step and (progress.best_loss is None or measured["loss/eval"] < progress.best_loss):
                    progress = replace(progress, best_loss=measured["loss/eval"], best_step=step)
                    progress = save(run, saver, progress, metrics)
            if step > began and config.save.every and step % config.save.every == 0 and progress.best_step != step:
                progress = save(run, saver, progress, metrics)
            if step == run.steps:
                break
            if saver.failed():  # seen by one rank first: it stops all of them, and save() says why
                stop.received = signal.SIGTERM
            if step == began or ranks() == 1:  # later the sums of a step tell what other ranks have received
                stopped = agreed_stop(stop, device)
            if stopped:
                progress = save(run, saver, progress, metrics)
                saver.wait()
                shown.say(f"stopped by {stopped.name} at step {step}: go on with --resume")
                return Result(final=config.folder / "FINAL", metrics=evaluated, progress=progress, stopped=stopped)
            # The step.
            step_began = time.perf_counter()
            done = train_step(run, coming, step, stop)
            stopped = done.stop
            # The record.
            progress = replace(progress, step=step + 1, examples=progress.examples + done.pairs)
            values = record(done, progress, time.perf_counter() - step_began, run.meter)
            metrics.write(values)
            bar.show(progress.step, terminal.stepped(values))
    return Result(final=config.folder / "FINAL", metrics=evaluated, progress=progress)


def due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def save(run: Run, saver: Saver, progress: Progress, metrics: Metrics) -> Progress:
    """Start writing a checkpoint; returns the progress that it records."""
    progress = replace(progress, metrics_bytes=metrics.bytes)
    saver.save(progress, run.model, run.tokenizer, run.optimizer, run.max_length)
    return progress


def run_training(
    config: TrainConfig,
    console: Console,
    stops: Callable[[], contextlib.AbstractContextManager[Stop]],
    memory: Memory | None = None,
) -> Result:
    """Train as the resolved `config` says, to the end or until the `Stop` that `stops` opens around the loop is set.

    Raises ValueError with a sentence for the user. What torch is told for the process holds until it returns.
    """
    began = time.perf_counter()
    with repeatable(config.deterministic), compiler.compiling():
        asked = launch.overruled(config)
        accelerator = launch.start()
        shown = terminal.Terminal(console, rank() == 0)
        for sentence in asked:
            shown.say(sentence)
        if config.plan.only:
            inputs = first_then_others(lambda: read(config, config.model.name, memory or Memory(), shown.say))
            plan_table.show(plan.made(config, inputs.architecture, inputs.train, ranks()), shown)
            return Result(final=config.folder / "FINAL", metrics={}, progress=Progress())
        agreed(lambda: check_trackers(config.log.to if shown.main else ()))
        with claimed(config, shown.say):
            return train(config, accelerator, shown, stops, memory or Memory(), began)


def train(
    config: TrainConfig,
    accelerator: Accelerator,
    shown: terminal.Terminal,
    stops: Callable[[], contextlib.AbstractContextManager[Stop]],
    memory: Memory,
    began: float,
) -> Result:
    """`run_training` in a folder that is claimed; an earlier run there is replaced when all that it needs is read."""
    say = shown.say
    if shown.main:
        foresee(config.hub, say)
    run = start(config, accelerator, say, memory)
    replace_earlier(config, say)
    folder = config.folder if shown.main else None
    how = {"attention": run.attention, "compiled": run.compiled, "steps": run.steps, "data": run.counts}
    describe(folder, to_dict(config), accelerator.device, ranks(), **how)
    mirrors = agreed(lambda: open_mirrors(config, folder, run.progress.step))
    metrics = Metrics(folder, run.progress.metrics_bytes, mirrors, say)
    page = Page(folder, run, say)
    bar = shown.progress("step", run.steps, run.progress.step)
    with plan.told_if_full(run.plan), contextlib.closing(metrics), contextlib.closing(page):
        with contextlib.closing(bar), flash.running(run.attention), stops() as stop:
            result = loop(run, metrics, page, shown, bar, stop)
        if result.stopped is None:
            worth = trust.worth(run, result.progress, say)
            temperature = worth and worth.temperature
            card = card_of(config, run.train.items, run.test and run.test.items, run.counts, result, temperature)
            write_model(run.model, run.tokenizer, config, run.max_length, result.final, card, worth)
            page.close()
            if shown.main:
                report(shown, result, time.perf_counter() - began)
            launch.end(accelerator)
    if result.stopped is None and shown.main:  # by the first process alone, when no other waits for it any more
        push(result.final, config.hub, say)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags and train; 2 with a boxed sentence on a user's error, 130 or 143 when stopped by a signal."""
    return run_program(cli.parsed("train", arguments))


def run_program(flags: TrainConfig) -> int:
    """Train as the parsed flags say; the exit status of `main`."""

    def work(console: Console) -> int:
        config = flags.resolved()
        if config.model.name == DEMO and "OMP_NUM_THREADS" not in os.environ:
            # Too small to gain from a second core, and threads that wait for one that is busy elsewhere lose tenfold.
            torch.set_num_threads(1)
        result = run_training(config, console, stop_asked)
        return 0 if result.stopped is None else 128 + result.stopped

    # While it trains, Ctrl-C ends the step first and writes a checkpoint; this is before or after.
    before_or_after = "stopped before the first step or after the last: no checkpoint is written"
    return cli.run(work, before_or_after, "Go on from the last checkpoint with --resume")
