"""A run folder as pages see it: whatever can be read of it, and sentences for what cannot."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rmkit.config import TrainConfig
from rmkit.errors import plain
from rmkit.pages import heldout
from rmkit.pages.curves import Curves

State = Literal["finished", "running", "stopped"]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run: its configuration, its curves, its held-out pairs."""

    path: Path
    curves: Curves
    config: dict[str, Any]
    """As config.json has it; {} where that cannot be read"""
    env: dict[str, Any]
    held_out: heldout.HeldOut | None
    state: State
    temperature: tuple[float, int] | None = None
    """What FINAL/rmkit.json divides margins by, and how many of the held-out pairs it was fitted on; None while it
    trains, and where nothing was fitted"""
    notes: list[str] = field(default_factory=list)
    """What could not be read, in sentences"""

    @property
    def name(self) -> str:
        return plain(self.path.resolve().name)

    @property
    def steps(self) -> int | None:
        """The steps that it is to have; None where an older run did not write them down."""
        steps = self.env.get("steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    def setting(self, part: str, key: str) -> Any:
        """A value of the configuration; its default where the run does not have it."""
        held = self.config.get(part)
        usual = getattr(getattr(TrainConfig(), part), key)
        return held.get(key, usual) if isinstance(held, dict) else usual


def opened(path: Path, running: bool = False) -> RunFolder:
    """The run in the folder `path`; ValueError with a sentence where there is none, or nothing of it can be read."""
    if not path.is_dir():
        raise ValueError(f"{plain(str(path))}: there is no such folder")
    if not any(path.iterdir()):
        raise ValueError(f"{plain(str(path))} is empty")
    file = path / "metrics.jsonl"
    if not file.is_file():
        ours = (path / "config.json").is_file() and (path / "env.json").is_file()
        what = "no step is recorded" if ours else "it is no run of rmkit's"
        raise ValueError(f"{plain(str(path))} holds no metrics.jsonl: {what}")
    try:
        curves = Curves(file).read()
    except OSError as error:
        raise ValueError(f"{plain(str(file))} cannot be read ({error.strerror})") from error
    if not curves.evaluations and not len(curves["counters/updates"]):
        spoiled = f" ({curves.broken} lines cannot be read)" if curves.broken else ""
        raise ValueError(f"{plain(str(file))} records no step and no evaluation{spoiled}")
    return gathered(path, curves, "running" if running else None)


def gathered(
    path: Path, curves: Curves, state: State | None = None, held_out: heldout.HeldOut | None = None
) -> RunFolder:
    """What stands beside metrics.jsonl; `held_out` in place of the file where the caller has it already."""
    notes: list[str] = []
    config, env = (_object(path / name, notes) for name in ("config.json", "env.json"))
    if curves.broken:
        notes.append(f"{curves.broken} lines of metrics.jsonl cannot be read and are left out.")
    if curves.cut:
        notes.append("The last line of metrics.jsonl is cut off and left out.")
    if state is None:
        # A run that goes on beyond its end has a FINAL of before.
        wanted = env.get("steps") if isinstance(env.get("steps"), int) else 0
        state = "finished" if (path / "FINAL").is_dir() and curves.steps >= wanted else "stopped"
    held_out = held_out or heldout.read(path)
    if held_out is None and curves.evaluations:
        notes.append("There is no heldout.jsonl: calibration, length and the worst pairs are not known.")
    return RunFolder(
        path=path,
        curves=curves,
        config=config,
        env=env,
        held_out=held_out,
        state=state,
        temperature=_temperature(path / "FINAL" / "rmkit.json") if state == "finished" else None,
        notes=notes,
    )


def _temperature(file: Path) -> tuple[float, int] | None:
    """Temperature and pairs of a saved model's contract, which has none where these pairs did not tell one."""
    try:
        trust = json.loads(file.read_text(encoding="utf-8"))["trust"]
        value, pairs = float(trust["temperature"]), int(trust["held_out_pairs"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return (value, pairs) if 0.0 < value < math.inf else None


def _object(file: Path, notes: list[str]) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(held, dict):
            return held
        why = "it holds no object"
    except FileNotFoundError:
        why = "it is not there"
    except (OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
    notes.append(f"{file.name} cannot be read: {why}.")
    return {}
