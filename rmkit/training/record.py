"""What a training reports: measurements of a step and their line of metrics.jsonl, the result, the closing table."""

import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmkit.batch.pairs import TokenisedPairs
from rmkit.config import TrainConfig
from rmkit.storage.card import Card
from rmkit.storage.checkpoint import Progress
from rmkit.terminal import Terminal


@dataclass(frozen=True, kw_only=True)
class Step:
    """The measurements of one optimizer step, over all ranks."""

    metrics: dict[str, float]
    """As HALOs names them"""
    grad_norm: float
    """Before clipping"""
    lr: float
    tokens_flat: int
    tokens_computed: int
    pairs: int
    """Of the global batch"""
    stop: signal.Signals | None = None
    """The signal that a rank had received when its work was queued"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a training."""

    final: Path
    """The folder of the trained classifier"""
    metrics: dict[str, Any]
    """Of the last evaluation; empty without held-out pairs"""
    progress: Progress
    stopped: signal.Signals | None = None
    """The signal that stopped it before its end; `final` is not there then, and --resume goes on"""


def card_of(config: TrainConfig, train: TokenisedPairs, test: TokenisedPairs | None, result: Result) -> Card:
    """What the model card tells of a training."""
    dropped: Counter[str] = Counter(train.dropped)
    dropped.update(test.dropped if test else {})
    return Card(
        config=config,
        pairs=len(train),
        held_out_pairs=len(test) if test else 0,
        dropped=dict(dropped),
        metrics=result.metrics,
    )


def record(step: Step, progress: Progress, pairs: int, seconds: float) -> dict[str, Any]:
    """The line of metrics.jsonl for a step."""
    return {
        **step.metrics,
        "grad_norm": step.grad_norm,
        "examples_per_second": pairs / seconds,
        "tokens_per_second": step.tokens_computed / seconds,
        "tokens/flat": step.tokens_flat,
        "tokens/computed": step.tokens_computed,
        "counters/examples": progress.examples,
        "counters/updates": progress.step,
        "counters/lr": step.lr,
    }


def refused(step: int, loss: float, grad_norm: float, pairs: TokenisedPairs, indices: np.ndarray) -> str:
    """The sentence for a step whose loss or gradient is not finite, with the pairs that were in it."""
    named = [pairs.source[int(i)] for i in indices]
    shown = ", ".join(named[:16]) + (f" and {len(named) - 16} more" if len(named) > 16 else "")
    return (
        f"step {step + 1}: loss {loss}, gradient norm {grad_norm}. The step was refused, the weights are those of step "
        f"{step}. Pairs in the batch: {shown}. Look at their margins and weights, or lower --optim.lr"
    )


def report(shown: Terminal, result: Result, seconds: float) -> None:
    """The closing table, and the command to run next."""
    last, pairs = result.metrics, result.progress.examples
    rows = [("steps", str(result.progress.step)), ("preferences", str(pairs)), ("seconds", f"{seconds:.0f}")]
    if "rewards_eval/accuracies" in last:
        rows.append(("held-out accuracy", f"{last['rewards_eval/accuracies']:.4f}"))
    if last:
        rows.append(("held-out loss", f"{last['loss/eval']:.4f}"))
    if "rewards_eval/margins" in last:
        rows.append(("held-out margin", f"{last['rewards_eval/margins']:.3f}"))
    if last:
        rows.append(("best step", f"{result.progress.best_step} (loss {result.progress.best_loss:.4f})"))
    rows += [("model", str(result.final)), ("metrics", str(result.final.parent / "metrics.jsonl"))]
    shown.table(rows)
    shown.say(f"go on from it: python -m rmkit.train --model.name {result.final} --data.train FILE --data.test FILE")
