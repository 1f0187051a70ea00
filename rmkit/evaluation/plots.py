"""The four plots of the report, each as SVG text that needs no font, script or other file."""

import io
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

CHOSEN, REJECTED, OTHER, GREY = "#1f6fb2", "#d1662a", "#6a4c93", "#8a8f98"
"""Colours that colour-blind readers can tell apart, and that differ in grey print."""

STYLE = {
    "svg.fonttype": "path",  # letters as outlines: the page looks the same everywhere
    "svg.hashsalt": "rmkit",  # and the file is the same each time
    "text.parse_math": False,  # a dollar sign in a subset's name is one
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5c6370",
    "axes.labelcolor": "#2b2f36",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "xtick.color": "#5c6370",
    "ytick.color": "#5c6370",
    "legend.frameon": False,
}

NAME = 30
"""Characters of a subset's name beside a plot; a longer name is cut at its start."""


def _svg(draw: Callable[[Figure], None], width: float = 6.0, height: float = 4.2) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, dpi=160)  # dpi: of the points, which are pixels
    return text.getvalue()


def _legend(figure: Figure) -> None:
    """Draw the legend above the axes, where it hides no point, in opaque colours."""
    for handle in figure.legend(loc="outside upper left", ncols=3).legend_handles:
        handle.set_alpha(1.0)
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([30])  # square points: large enough to show their colour


def reliability(table: list[dict]) -> str:
    """Accuracy against stated probability, with 95 % intervals; below, the pairs in each bin."""
    rows = [row for row in table if row["pairs"]]
    stated = np.array([row["confidence"] for row in rows])
    accuracy = np.array([row["accuracy"] for row in rows])
    # The interval of a bin with half a success may miss its share by a hair.
    spread = np.clip([[r["accuracy"] - r["accuracy_low"], r["accuracy_high"] - r["accuracy"]] for r in rows], 0, None).T

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", label="perfectly calibrated")
        upper.errorbar(stated, accuracy, spread, fmt="o-", color=CHOSEN, capsize=3, label="model, 95 % interval")
        upper.set(ylabel="pairs it has right (share)", ylim=(min(0.35, (accuracy - spread[0]).min() - 0.03), 1.03))
        middles = [(row["low"] + row["high"]) / 2 for row in table]
        lower.bar(middles, [row["pairs"] for row in table], width=0.046, color=GREY)
        lower.set(xlabel="probability it gives to the side it prefers", ylabel="pairs", xlim=(0.49, 1.01))
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        _legend(figure)

    return _svg(draw)


def by_confidence(curves: dict[str, list[dict]]) -> str:
    """Accuracy of the surest pairs against the share of pairs that they are, for each way of being sure."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, curve), colour, line in zip(
            curves.items(), (CHOSEN, REJECTED, OTHER), ("-", "--", ":"), strict=False
        ):
            shares, accuracy = ([point[key] for point in curve] for key in ("coverage", "accuracy"))
            axes.plot(shares, accuracy, line, color=colour, marker="o", markersize=3, label=name)
        axes.set(xlabel="share of the pairs that are kept, the surest first", ylabel="accuracy", xlim=(0, 1.02))
        _legend(figure)

    return _svg(draw)


def histograms(chosen: np.ndarray, rejected: np.ndarray) -> str:
    """Scores of the chosen and of the rejected responses."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins=40)
        for scores, colour, name in ((chosen, CHOSEN, "chosen"), (rejected, REJECTED, "rejected")):
            axes.hist(scores, edges, color=colour, alpha=0.45, label=name)
            axes.hist(scores, edges, color=colour, histtype="step", linewidth=1.4)
            axes.axvline(scores.mean(), color=colour, linestyle="--", linewidth=1.4)
        axes.set(xlabel="score (dashed: the mean)", ylabel="pairs")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure)

    return _svg(draw)


def against_length(lengths: np.ndarray, scores: np.ndarray, is_chosen: np.ndarray) -> str:
    """Score against length of every response, and the median score of ten groups of like length."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for side, colour, name in ((is_chosen, CHOSEN, "chosen"), (~is_chosen, REJECTED, "rejected")):
            axes.scatter(
                lengths[side], scores[side], s=9, color=colour, alpha=0.35, linewidths=0, label=name, rasterized=True
            )
        axes.plot(*medians(lengths, scores), color="#2b2f36", marker="o", markersize=4, label="median")
        if lengths.max() > 20 * max(1, lengths.min()):
            axes.set_xscale("symlog", linthresh=10)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="length of the response (characters)", ylabel="score")
        _legend(figure)

    return _svg(draw)


def medians(lengths: np.ndarray, scores: np.ndarray) -> tuple[list[float], list[float]]:
    """Median length and median score of at most ten groups of like length, responses of one length together."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 11))[1:-1])
    group = np.searchsorted(edges, lengths, "left")
    parts = [group == g for g in np.unique(group)]
    return [float(np.median(lengths[part])) for part in parts], [float(np.median(scores[part])) for part in parts]


def subsets(rows: list[tuple[str, dict]], other: list[tuple[str, dict]]) -> str:
    """Accuracy of each subset with its 95 % interval, from the top down; `other` is a second model's."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(rows))
        for of_model, colour, shift, name in ((rows, CHOSEN, 0.0, "model"), (other, OTHER, 0.25, "against")):
            if of_model:
                share = np.array([values["accuracy"] for _, values in of_model])
                ends = np.array([[v["accuracy_low"], v["accuracy_high"]] for _, v in of_model]).T
                spread = np.clip([share - ends[0], ends[1] - share], 0, None)
                axes.errorbar(share, places + shift, xerr=spread, fmt="o", color=colour, capsize=3, label=name)
        axes.axvline(0.5, color=GREY, linestyle="--")
        axes.set_yticks(places, [f"{_short(name)} ({values['pairs']:,})" for name, values in rows])
        axes.set(xlabel="accuracy, 95 % interval (dashed: a coin)", xlim=(-0.02, 1.02), ylim=(len(rows) - 0.4, -0.6))
        if other:
            _legend(figure)

    return _svg(draw, height=max(2.0, 0.9 + 0.36 * len(rows)))


def _short(name: str) -> str:
    return name if len(name) <= NAME else "..." + name[3 - NAME :]
