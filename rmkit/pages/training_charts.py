"""The charts of one training over its steps, and of its held-out pairs."""

import math
from typing import Any

import numpy as np

from rmkit.pages.chart import Chart, Line, chart
from rmkit.pages.curves import POINTS, Curves, counted, thinned
from rmkit.pages.folder import RunFolder
from rmkit.pages.verdicts import wilson

TRAIN, HELD_OUT, OTHER = 7, 0, 1
"""Colours"""

BARS = 40
"""Columns of the histogram of margins."""


def of_steps(run: RunFolder) -> list[Chart]:
    """Everything that changes from step to step; what a run did not record is left out."""
    curves, clip = run.curves, run.setting("optim", "max_grad_norm")
    last = float(curves.steps)
    clipped = [[(0.0, clip), (last, clip)]] if isinstance(clip, int | float) and clip > 0 else []
    with np.errstate(divide="ignore", invalid="ignore"):
        saved = 100 * (1 - curves["tokens/computed"] / curves["tokens/flat"])
    some = "" if len(curves["loss/train"]) <= POINTS else "Training: means of equal stretches; shaded, their extremes."

    def over_steps(title: str, y_label: str, *lines: Line, zero: bool = False, **how: Any) -> Chart | None:
        how = {"y_range": (0.0 if zero else None, None), **how}
        return chart(title, lines, "step", y_label, x_range=(0.0, last), **how)

    def of(key: str, band: bool = True) -> Line:
        return _line(curves["counters/updates"], curves[key], "training", TRAIN, band)

    charts = [
        over_steps(
            "Accuracy",
            "pairs it has right (share)",
            of("rewards_train/accuracies", band=False),
            accuracy(curves),
            guides=[[(0.0, 0.5), (last, 0.5)]],
            y_range=(0.5, 1.0),
            note="Shaded: Wilson's 95 % interval of the held-out accuracy. Dashed: a coin.",
        ),
        over_steps("Loss", "loss", of("loss/train"), evaluated(curves, "loss/eval"), note=some),
        over_steps(
            "Margin",
            "score of chosen - rejected",
            of("rewards_train/margins"),
            evaluated(curves, "rewards_eval/margins"),
            zero=True,
        ),
        over_steps(
            "Scores, held out",
            "mean score",
            evaluated(curves, "rewards_eval/chosen", "chosen", HELD_OUT),
            evaluated(curves, "rewards_eval/rejected", "rejected", OTHER),
        ),
        over_steps(
            "Gradient norm",
            "norm before clipping",
            of("grad_norm"),
            guides=clipped,
            may_be_log=True,
            note="Dashed: --optim.max-grad-norm." if clipped else "",
        ),
        over_steps("Learning rate", "learning rate", of("counters/lr"), zero=True),
        over_steps("Speed", "computed tokens/s", of("tokens_per_second"), zero=True),
        over_steps(
            "Tokens saved",
            "% of the tokens",
            _line(curves["counters/updates"], saved, "saved", TRAIN),
            zero=True,
            note="Tokens that the layout did not compute, of those of all conversations written out in full.",
        ),
        over_steps("Memory", "peak GiB, first rank", of("memory/peak_gib"), zero=True),
        over_steps("Memory of the process", "peak GiB, first rank", of("memory/process_gib"), zero=True),
        over_steps("Share of the peak rate", "MFU", of("tokens/mfu"), zero=True),
    ]
    return [each for each in charts if each is not None]


def accuracy(curves: Curves, name: str = "held out", colour: int = HELD_OUT, key: str = "counters/updates") -> Line:
    """Held-out accuracy with its intervals."""
    points, band, words = [], [], []
    for evaluation in curves.evaluations:
        if (counts := counted(evaluation)) and key in evaluation:
            low, high = wilson(*counts)
            x, share = evaluation[key], counts[0] / counts[1]
            points.append((x, share))
            band.append((x, low, high))
            words.append(
                f"{name}, {_at(key, x)}: {share:.4f} ({low:.3f} to {high:.3f}), {counts[0]:,} of {counts[1]:,}"
            )
    return Line(name=name, points=points, band=band, dots=words, bars=band if len(band) == 1 else (), colour=colour)


def evaluated(
    curves: Curves, value: str, name: str = "held out", colour: int = HELD_OUT, key: str = "counters/updates"
) -> Line:
    """A mean over the held-out pairs."""
    points = [(e[key], e[value]) for e in curves.evaluations if key in e and math.isfinite(e.get(value, math.nan))]
    return Line(name=name, points=points, dots=[f"{name}, {_at(key, x)}: {y:.4f}" for x, y in points], colour=colour)


def trained(curves: Curves, value: str, name: str, colour: int, key: str = "counters/updates") -> Line:
    """A value of the steps, thinned."""
    return _line(curves[key], curves[value], name, colour, band=False)


def _line(x: np.ndarray, y: np.ndarray, name: str, colour: int, band: bool = True) -> Line:
    points = thinned(x, y)
    around = [(at, low, high) for at, _, low, high in points] if band and len(x) > POINTS else ()
    return Line(name=name, points=[(at, mean) for at, mean, *_ in points], band=around, colour=colour)


def _at(key: str, x: float) -> str:
    return f"step {x:,.0f}" if key == "counters/updates" else f"{x:,.0f} pairs"


def reliability(table: list[dict]) -> Chart | None:
    """Accuracy against stated probability, by bins of the probability."""
    rows = [row for row in table if row["pairs"]]
    most = max((row["pairs"] for row in rows), default=1)
    lowest = min([0.4, *(row["accuracy_low"] for row in rows)])
    line = Line(
        name="held-out pairs, 95 % interval",
        points=[(row["confidence"], row["accuracy"]) for row in rows],
        bars=[(row["confidence"], row["accuracy_low"], row["accuracy_high"]) for row in rows],
        dots=[f"stated {row['confidence']:.3f}, right {row['accuracy']:.3f}, {row['pairs']:,} pairs" for row in rows],
        colour=HELD_OUT,
        curve=False,
    )
    few = f"Dashed: what a calibrated model has. The largest bin has {most:,} pairs; point at one for its number."
    return chart(
        "Reliability",
        [line],
        "probability it gives to the side it prefers",
        "pairs it has right (share)",
        guides=[[(0.5, 0.5), (1.0, 1.0)]],
        x_range=(0.5, 1.0),
        y_range=(math.floor(lowest * 5) / 5, 1.0),
        note=few,
    )


def margins(margin: np.ndarray) -> Chart | None:
    """How many held-out pairs have which margin: those on the left of zero are wrong."""
    if len(margin) == 0 or not np.isfinite(margin).all():
        return None
    edges = np.histogram_bin_edges(margin, bins=min(BARS, max(5, len(margin) // 4)))
    if edges[0] < 0 < edges[-1]:  # a column is of right pairs or of wrong ones
        width = edges[1] - edges[0]
        first = -math.ceil(-edges[0] / width)
        edges = width * np.arange(first, math.ceil(edges[-1] / width) + 1)
    counts = np.histogram(margin, edges)[0]
    columns = [
        (float(a), float(b), float(n), f"{n:,} pairs from {a:.3g} to {b:.3g}", OTHER if b <= 0 else HELD_OUT)
        for a, b, n in zip(edges, edges[1:], counts.tolist(), strict=False)
        if n
    ]
    note = "Left of zero: pairs that it has wrong."
    return chart("Margins of the held-out pairs", [], "score of chosen - rejected", "pairs", columns=columns, note=note)
