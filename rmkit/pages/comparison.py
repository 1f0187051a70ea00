"""Several runs on one page: curves over each other, McNemar's test on the pairs they share, what differs in them."""

import itertools
import math
import time
from pathlib import Path

import numpy as np

from rmkit.errors import UserError, make_folder, plain
from rmkit.pages import settings
from rmkit.pages.chart import Chart, Line, chart
from rmkit.pages.curves import counted
from rmkit.pages.folder import RunFolder
from rmkit.pages.frame import COMPARISON, environment
from rmkit.pages.run_page import status
from rmkit.pages.training_charts import accuracy, evaluated, trained
from rmkit.pages.verdicts import mcnemar, wilson
from rmkit.storage.atomic import written_file
from rmkit.terminal import clock

COLOURS = 8
"""From the ninth run on the colours come again."""

_ENVIRONMENT = environment("rmkit.pages")


def write(runs: list[RunFolder], file: Path) -> None:
    """Write the page of two or more runs; UserError where the file is there and is no such page."""
    if file.exists() and not is_ours(file):
        raise UserError("out", plain(str(file)), "it is there already and is no comparison of runs; give another file")
    text = page(runs)
    try:
        make_folder(file.parent)
        with written_file(file) as out:
            out.write(text)
    except OSError as error:
        raise UserError("out", plain(str(file)), f"it cannot be written ({error.strerror})") from error


def is_ours(file: Path) -> bool:
    """Whether a file is a page that compares runs."""
    try:
        with file.open("rb") as opened:
            return COMPARISON.encode() in opened.read(2000)
    except OSError:
        return False


def page(runs: list[RunFolder]) -> str:
    """The page as text."""
    names = [run.name for run in runs]
    return _ENVIRONMENT.get_template("comparison.html.jinja").render(
        names=names,
        runs=[(run.name, *summary(run), i % COLOURS) for i, run in enumerate(runs)],
        charts=_charts(runs),
        tests=[tested(a, b) for a, b in itertools.combinations(runs, 2)],
        differing=[(flag, *values) for flag, values in settings.differing([run.config for run in runs]).items()],
        notes=[f"{run.name}: {note}" for run in runs for note in run.notes],
        status=[f"{run.name}: {status(run)}" for run in runs if run.state != "finished"],
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def summary(run: RunFolder) -> list[str]:
    """Best held-out accuracy, its interval, its step; the last accuracy and loss; steps and time."""
    curves, last = run.curves, run.curves.evaluations[-1] if run.curves.evaluations else {}
    best = curves.best()
    shares = ["-"] * 3
    if best is not None:
        correct, count = counted(best)
        low, high = wilson(correct, count)
        shares = [f"{correct / count:.4f}", f"{low:.3f} to {high:.3f}", f"{best['counters/updates']:,.0f}"]
    latest = f"{last['rewards_eval/accuracies']:.4f}" if counted(last) else "-"
    loss = f"{last['loss/eval']:.4f}" if "loss/eval" in last else "-"
    return [*shares, latest, loss, f"{curves.steps:,}", clock(curves.seconds)]


def _charts(runs: list[RunFolder]) -> list[Chart]:
    """Curves of all runs over each other: by steps where these have as many pairs in each run, else by pairs seen."""
    same = len({run.setting("batch", "pairs") for run in runs}) == 1
    key, x_label = ("counters/updates", "step") if same else ("counters/examples", "pairs seen in training")
    last = max((float(run.curves[key].max()) for run in runs if len(run.curves[key])), default=1.0)

    def over(title: str, y_label: str, of: str, held_out: bool, **how) -> Chart | None:
        lines = []
        for i, run in enumerate(runs):
            draw = evaluated if held_out else trained
            lines.append(draw(run.curves, of, name=run.name, colour=i % COLOURS, key=key))
        return chart(title, lines, x_label, y_label, x_range=(0.0, last), **how)

    of_accuracy: list[Line] = [accuracy(run.curves, run.name, i % COLOURS, key) for i, run in enumerate(runs)]
    charts = [
        chart(
            "Held-out accuracy",
            of_accuracy,
            x_label,
            "pairs it has right (share)",
            guides=[[(0.0, 0.5), (last, 0.5)]],
            x_range=(0.0, last),
            y_range=(0.5, 1.0),
            note="Shaded: Wilson's 95 % intervals. Dashed: a coin.",
        ),
        over("Held-out loss", "loss", "loss/eval", True),
        over("Held-out margin", "score of chosen - rejected", "rewards_eval/margins", True, y_range=(0.0, None)),
        over("Training loss", "loss", "loss/train", False),
        over("Gradient norm", "norm, before clipping", "grad_norm", False, may_be_log=True),
        over("Learning rate", "learning rate", "counters/lr", False, y_range=(0.0, None)),
        over("Speed", "pairs/s", "examples_per_second", False, y_range=(0.0, None)),
        over("Memory", "peak GiB, first rank", "memory/peak_gib", False, y_range=(0.0, None)),
        over("Memory of the process", "peak GiB, first rank", "memory/process_gib", False, y_range=(0.0, None)),
    ]
    return [each for each in charts if each is not None]


def tested(a: RunFolder, b: RunFolder) -> dict:
    """McNemar's test of two runs on the held-out pairs that both have, by the digests of their texts."""
    missing = [run.name for run in (a, b) if run.held_out is None]
    if missing:
        return {"names": (a.name, b.name), "problem": f"{' and '.join(missing)} has no heldout.jsonl"}
    places = [dict(zip(run.held_out.pair, range(len(run.held_out.pair)), strict=True)) for run in (a, b)]
    shared = [pair for pair in places[0] if pair in places[1]]
    if not shared:
        return {"names": (a.name, b.name), "problem": "they have no held-out pair in common"}
    right = [run.held_out.margin[[of[pair] for pair in shared]] > 0 for run, of in zip((a, b), places, strict=True)]
    found = mcnemar(*right)
    low, high = _difference(found, len(shared))
    return {
        "names": (a.name, b.name),
        "problem": "",
        "pairs": f"{len(shared):,}",
        "steps": [f"{run.held_out.step:,}" for run in (a, b)],
        "accuracies": [f"{of_run.mean():.4f}" for of_run in right],
        "difference": f"{found['accuracy_difference']:+.4f} ({low:+.3f} to {high:+.3f})",
        "alone": (f"{found['only_first_right']:,}", f"{found['only_second_right']:,}"),
        "same": (f"{found['both_right']:,}", f"{found['both_wrong']:,}"),
        "p_value": f"{found['p_value']:.3g}",
    }


def in_words(test: dict) -> str:
    """A test in a sentence."""
    if test["problem"]:
        return f"not tested, {test['problem']}"
    return f"McNemar's p = {test['p_value']}; accuracies differ by {test['difference']} on {test['pairs']} pairs"


def _difference(found: dict, count: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same pairs: Agresti and Min (2005), who add half a pair
    to each of the four cells, which keeps its coverage for few pairs."""
    only, other = found["only_first_right"] + 0.5, found["only_second_right"] + 0.5
    n = count + 2
    middle = (only - other) / n
    half = 1.959964 * math.sqrt(max(only + other - (only - other) ** 2 / n, 0.0)) / n
    return float(np.clip(middle - half, -1, 1)), float(np.clip(middle + half, -1, 1))
