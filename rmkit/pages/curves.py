"""The numbers of metrics.jsonl over a training, read as far as it is written."""

import json
import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

STEP_KEYS = (
    *("counters/updates", "counters/examples", "counters/lr", "loss/train", "grad_norm"),
    *(f"rewards_train/{name}" for name in ("accuracies", "margins", "chosen", "rejected")),
    *("examples_per_second", "tokens_per_second", "tokens/flat", "tokens/computed", "tokens/mfu", "memory/peak_gib"),
    "memory/process_gib",
)
"""What is kept of the line of a step; NaN where a line has none"""

POINTS = 160
"""Most points of a curve: more cannot be told apart on a page."""


class Curves:
    """metrics.jsonl in columns. `read` takes in what was written since the last time: whole lines only."""

    def __init__(self, file: Path) -> None:
        self._file, self._read = file, 0
        self._steps = {key: array("d") for key in STEP_KEYS}
        self.evaluations: list[dict[str, float]] = []
        self.broken = 0
        """Lines that are no JSON, or of no step and no evaluation"""
        self.cut = False
        """Whether the last line is not whole"""

    def read(self) -> "Curves":
        with self._file.open("rb") as opened:
            opened.seek(self._read)
            written = opened.read()
        whole = written.rfind(b"\n") + 1
        self._read += whole
        self.cut = whole < len(written)
        for line in written[:whole].splitlines():
            self._add(line)
        return self

    def _add(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            step = values["counters/updates"]
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise ValueError("no step")
            numbers = {key: float(value) for key, value in values.items() if _is_number(value)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            self.broken += bool(line.strip())
            return
        if "loss/eval" in numbers:
            self.evaluations.append(numbers)
        elif "loss/train" in numbers:
            for key, column in self._steps.items():
                column.append(numbers.get(key, math.nan))
        else:
            self.broken += 1

    def __getitem__(self, key: str) -> np.ndarray:
        """A column of the steps, float64."""
        return np.array(self._steps[key])

    @property
    def steps(self) -> int:
        """The last step that was recorded."""
        trained = self._steps["counters/updates"]
        return int(max(trained[-1] if trained else 0, *(e["counters/updates"] for e in self.evaluations[-1:]), 0))

    @property
    def seconds(self) -> float:
        """Time in steps and evaluations; start-up and the last writing of the model are not in metrics.jsonl."""
        pairs = np.diff(self["counters/examples"], prepend=0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            of_steps = pairs / self["examples_per_second"]
        return float(of_steps[np.isfinite(of_steps)].sum()) + sum(e.get("seconds", 0.0) for e in self.evaluations)

    @property
    def saved(self) -> float | None:
        """Share of the tokens that the network did not have to compute; None before the first step."""
        flat, computed = np.nansum(self["tokens/flat"]), np.nansum(self["tokens/computed"])
        return float(1 - computed / flat) if flat > 0 else None

    def best(self) -> dict[str, float] | None:
        """The evaluation with the highest held-out accuracy, the earliest of them; None without any."""
        judged = [e for e in self.evaluations if counted(e)]
        return max(judged, key=lambda e: e["rewards_eval/accuracies"], default=None)


def counted(evaluation: Mapping[str, float]) -> tuple[int, int] | None:
    """How many held-out pairs an evaluation had right, and how many there were; None where it does not say."""
    share, pairs = evaluation.get("rewards_eval/accuracies"), evaluation.get("pairs", 0)
    if share is None or not (0 <= share <= 1 and 1 <= pairs < math.inf):
        return None
    return round(share * pairs), int(pairs)


def thinned(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float, float, float]]:
    """A curve as at most `POINTS` points (x, mean, lowest, highest) of equal stretches; what is not finite is left
    out."""
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) == 0:
        return []
    parts = min(POINTS, len(x))
    starts = np.arange(parts) * len(x) // parts
    counts = np.diff(starts, append=len(x))
    means = [np.add.reduceat(values, starts) / counts for values in (x, y)]
    columns = (*means, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
