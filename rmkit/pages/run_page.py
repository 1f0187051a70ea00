"""The page of one run, RUN/report.html: the values that templates/run.html.jinja shows."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from rmkit.data.counts import in_words
from rmkit.pages import settings, training_charts
from rmkit.pages.curves import counted
from rmkit.pages.folder import RunFolder
from rmkit.pages.frame import environment
from rmkit.pages.heldout import HeldOut
from rmkit.pages.verdicts import calibration, length_controlled, wilson
from rmkit.storage.atomic import written_file
from rmkit.terminal import clock

NAME = "report.html"

_ENVIRONMENT = environment("rmkit.pages")


def write(run: RunFolder, file: Path | None = None) -> None:
    """Write the page into the run's folder, or into `file`, whole or not at all."""
    text = page(run)
    with written_file(file or run.path / NAME) as out:
        out.write(text)


def page(run: RunFolder) -> str:
    """report.html as text."""
    held_out = run.held_out
    return _ENVIRONMENT.get_template("run.html.jinja").render(
        name=run.name,
        status=status(run),
        tiles=_tiles(run),
        charts=training_charts.of_steps(run),
        held_out=held_out and _held_out(held_out, run.temperature),
        data=_data(run.env.get("data")),
        changed=settings.changed(run.config),
        others=settings.unchanged(run.config),
        machine=_machine(run.env),
        notes=run.notes,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def status(run: RunFolder) -> str:
    """How far it is, in a sentence."""
    steps = f"{run.curves.steps:,}" + (f" of {run.steps:,}" if run.steps else "")
    return {
        "finished": f"Finished after {run.curves.steps:,} steps.",
        "running": f"It is being trained: step {steps}. This page is written anew at every evaluation.",
        "stopped": f"It stopped at step {steps}: --resume goes on from its newest checkpoint.",
    }[run.state]


def _tiles(run: RunFolder) -> list[tuple[str, str, str]]:
    """The figures that are seen first."""
    curves, found = run.curves, []
    if curves.evaluations and (counts := counted(last := curves.evaluations[-1])):
        low, high = wilson(*counts)
        words = f"95 % interval {low:.3f} to {high:.3f}, {counts[1]:,} pairs, step {last['counters/updates']:,.0f}"
        found.append(("held-out accuracy", f"{counts[0] / counts[1]:.4f}", words))
        best = curves.best()
        if best and (share := best["rewards_eval/accuracies"]) > last["rewards_eval/accuracies"]:
            found.append(("best held-out accuracy", f"{share:.4f}", f"step {best['counters/updates']:,.0f}"))
    if curves.evaluations:
        found.append(("held-out loss", f"{curves.evaluations[-1]['loss/eval']:.4f}", ""))
    elif len(loss := curves["loss/train"]):
        found.append(("training loss", f"{loss[-1]:.4f}", "no held-out pairs were evaluated"))
    if curves.saved is not None:
        layout = run.setting("batch", "layout")
        found.append(("tokens saved", f"{curves.saved:.0%}", f"layout {layout}, of conversations written out in full"))
    speed = curves["examples_per_second"]
    if len(speed) and np.isfinite(speed).any():
        tokens = np.nanmedian(curves["tokens_per_second"])
        found.append(("pairs per second", f"{np.nanmedian(speed):,.1f}", f"{tokens:,.0f} tokens/s (medians of steps)"))
    seen = curves["counters/examples"]
    pairs = f"{int(seen[-1]):,} pairs seen, " if len(seen) and np.isfinite(seen[-1]) else ""
    found.append(("time in training", clock(curves.seconds), f"{pairs}{curves.steps:,} steps"))
    for key, words in (("memory/peak_gib", "of the first rank"), ("memory/process_gib", "of the first rank's process")):
        if np.isfinite(memory := curves[key]).any():
            found.append(("peak memory", f"{np.nanmax(memory):.1f} GiB", words))
    return found


def _held_out(held: HeldOut, temperature: tuple[float, int] | None) -> dict[str, Any] | None:
    """Calibration, length and the worst pairs of the last evaluation."""
    if len(held.margin) == 0:
        return None
    measured, longer = calibration(held.margin), held.tokens[:, 0] - held.tokens[:, 1]
    rows = [
        ("pairs", f"{len(held.margin):,}"),
        ("Brier score", f"{measured['brier']:.4f} (a coin: 0.25)"),
        ("expected calibration error", f"{measured['ece']:.4f}"),
        *_with_temperature(held.margin, temperature),
        ("accuracy at like length (length alone has 0.5)", _at_like_length(held.margin > 0, longer)),
        ("accuracy where the longer conversation is chosen", _share(held.margin[longer > 0] > 0)),
        ("accuracy where the shorter conversation is chosen", _share(held.margin[longer < 0] > 0)),
        ("always the longer (a floor)", _share(longer[longer != 0] > 0)),
    ]
    charts = [training_charts.reliability(measured["reliability"]), training_charts.margins(held.margin)]
    return {
        "step": f"{held.step:,}",
        "rows": rows,
        "charts": [each for each in charts if each is not None],
        "wrong": f"{int((held.margin <= 0).sum()):,}",
        "worst": [_pair(held, i) for i in held.worst],
    }


def _with_temperature(margin: np.ndarray, temperature: tuple[float, int] | None) -> list[tuple[str, str]]:
    """The temperature of the saved model, and calibration with it: on pairs that it was fitted on, not a forecast."""
    if temperature is None:
        return []
    value, pairs = temperature
    fitted = f"fitted on {pairs:,} of these pairs"
    error = calibration(margin / value)["ece"]
    return [
        ("temperature", f"{value:.3f} ({fitted}; probability sigmoid(margin / temperature))"),
        ("calibration error with it", f"{error:.4f} ({fitted}, so a fit and not a forecast)"),
    ]


def _share(right: np.ndarray) -> str:
    if len(right) == 0:
        return "no such pair"
    low, high = wilson(int(right.sum()), len(right))
    return f"{right.mean():.4f} ({low:.3f} to {high:.3f}; {len(right):,} pairs)"


def _at_like_length(right: np.ndarray, longer: np.ndarray) -> str:
    if (found := length_controlled(right, longer))["accuracy"] is None:
        return "no pairs that can be matched"
    interval = f"{found['accuracy_low']:.3f} to {found['accuracy_high']:.3f}"
    return f"{found['accuracy']:.4f} ({interval}; weight of {found['effective']:,.0f} pairs)"


def _pair(held: HeldOut, i: int) -> dict[str, Any]:
    sides = [
        {"name": side, "text": held.texts[i][side], "score": f"{held.scores[i, k]:.3f}"}
        for k, side in enumerate(("chosen", "rejected"))
    ]
    return {
        "source": held.source[i],
        "margin": f"{held.margin[i]:.3f}",
        "prompt": held.texts[i]["prompt"],
        "sides": sides,
    }


def _data(data: Any) -> list[tuple[str, str, str]]:
    """Set, rows of its files and pairs, each with what was dropped and why; [] where the run did not write it down."""
    found = []
    for name in ("train", "test"):
        try:
            of_set = data[name]
            found.append(
                ({"train": "training", "test": "held out"}[name], in_words(of_set, "rows"), in_words(of_set, "pairs"))
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return found


def _machine(env: dict[str, Any]) -> list[tuple[str, str]]:
    """How it ran."""
    versions = env.get("versions")
    held = (
        ", ".join(f"{name} {number}" for name, number in versions.items() if number)
        if isinstance(versions, dict)
        else ""
    )
    command = env.get("command")
    words = " ".join(map(str, command)) if isinstance(command, list) else ""
    rows = [
        ("device", f"{env.get('ranks', 1)} x {env['device']}" if "device" in env else ""),
        ("cores, threads", f"{env['cores']}, {env['threads']}" if {"cores", "threads"} <= env.keys() else ""),
        ("attention", str(env.get("attention") or "")),
        ("compiled", "yes" if env.get("compiled") is True else ""),
        ("rmkit", " ".join(str(env[name]) for name in ("rmkit", "commit") if env.get(name))),
        ("python", str(env.get("python", ""))),
        ("packages", held),
        ("command", words),
    ]
    return [(name, value) for name, value in rows if value]
