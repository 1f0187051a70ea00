"""What a training reports: measurements of a step and their line of metrics.jsonl, the result, the closing table."""

import resource
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmkit.batch.pairs import TokenisedPairs
from rmkit.batch.trie import PackedBatch
from rmkit.config import TrainConfig
from rmkit.pages import heldout
from rmkit.pages.verdicts import calibration
from rmkit.storage.card import Card
from rmkit.storage.checkpoint import Progress
from rmkit.terminal import Terminal
from rmkit.training.estimate import load_of, work
from rmkit.training.plan import Plan


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
    flops: float = 0.0
    """Of the model's mathematics, recomputation left out; 0 where no peak rate is known"""


@dataclass(frozen=True, kw_only=True)
class Meter:
    """What a GPU tells of itself: memory at its peak, and how much of its peak rate is used. On a CPU, the peak of
    the process."""

    plan: Plan
    device: torch.device
    rate: float | None
    """FLOP/s of all devices at their peak; None on a CPU, and where the GPU is not known"""

    @classmethod
    def of(cls, plan: Plan, device: torch.device) -> "Meter":
        known = device.type == "cuda" and plan.shape.counted and plan.devices.rate
        return cls(plan=plan, device=device, rate=plan.devices.rate * plan.devices.count if known else None)

    def flops(self, batch: PackedBatch) -> float:
        """FLOPs of training on a batch, attention by the true lengths of its sequences."""
        if not self.rate:
            return 0.0
        load = load_of(batch)
        return work(self.plan.shape, self.plan.way, load.tokens, load.pairs, load.ends, load.end_keys).model

    def read(self, flops: float, seconds: float) -> dict[str, float]:
        """What it adds to a line of metrics.jsonl; memory is that of this rank, since its start."""
        read = {}
        if self.device.type == "cuda":
            read["memory/peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        elif self.device.type == "cpu":
            read["memory/process_gib"] = process_gib()
        if self.rate:
            read["tokens/mfu"] = flops / seconds / self.rate
        return read


def process_gib() -> float:
    """The most memory that this process has held, libraries and data with it, in GiB."""
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


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


def card_of(
    config: TrainConfig,
    train: TokenisedPairs,
    test: TokenisedPairs | None,
    counts: dict[str, dict[str, Any]],
    result: Result,
    temperature: float | None = None,
) -> Card:
    """What the model card tells of a training; `counts` is what was read and dropped of either split."""
    before, after = calibrations(config.folder, result, temperature)
    dropped: Counter[str] = Counter()
    for of_split in counts.values():
        dropped.update(of_split["rows_dropped"])
        dropped.update(of_split["pairs_dropped"])
    return Card(
        config=config,
        pairs=len(train),
        steps=result.progress.step,
        seen=result.progress.examples,
        held_out_pairs=len(test) if test else 0,
        dropped=dict(dropped),
        metrics=result.metrics,
        floors=floors(test) if test else {},
        temperature=temperature,
        calibration=before,
        calibrated=after,
    )


def calibrations(folder: Path, result: Result, temperature: float | None) -> tuple[dict | None, dict | None]:
    """Calibration of the held-out pairs as heldout.jsonl has them after the last step, as they are and with the
    temperature; None where it is not known."""
    held = heldout.read(folder) if result.metrics else None
    if held is None or held.step != result.progress.step:
        return None, None
    return calibration(held.margin), None if temperature is None else calibration(held.margin / temperature)


def floors(test: TokenisedPairs) -> dict[str, float]:
    """Accuracy on the held-out pairs of what looks at length alone; a tie counts half. Tokens of the whole conversation
    are compared, the prompt with them, which a pair shares."""
    lengths = test.lengths.length[test.lengths.place][test.labels["compared"] > 0].astype(np.int64)
    if not len(lengths):
        return {}
    longer = np.sign(lengths[:, 0] - lengths[:, 1])
    return {"the longer answer wins (in tokens; ties count half)": float((longer.mean() + 1) / 2)}


def record(step: Step, progress: Progress, seconds: float, meter: Meter | None = None) -> dict[str, Any]:
    """The line of metrics.jsonl for a step."""
    return {
        **step.metrics,
        "grad_norm": step.grad_norm,
        "examples_per_second": step.pairs / seconds,
        "tokens_per_second": step.tokens_computed / seconds,
        "tokens/flat": step.tokens_flat,
        "tokens/computed": step.tokens_computed,
        **(meter.read(step.flops, seconds) if meter else {}),
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
    if (page := result.final.parent / "report.html").is_file():
        rows.append(("report", str(page)))
    shown.table(rows)
    shown.say(f"go on from it: python -m rmkit.train --model.name {result.final} --data.train FILE --data.test FILE")
