"""What a run leaves behind and what it shows: metrics.jsonl, env.json, the progress bar and the closing table."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import rmkit
from rmkit.data.fields import plain

LINE_SECONDS = 5.0
"""Where there is no terminal, at most one plain line in so many seconds."""

CLOCK_KEYS = ("examples_per_second", "tokens_per_second", "seconds")
"""Keys of metrics.jsonl that depend on the clock; all others repeat bit for bit."""


def refuse(error: Exception | str, console: Console | None = None) -> None:
    """Show a user's error as one boxed sentence, on standard error."""
    console = console or Console(stderr=True, emoji=False)
    words = Text(plain(str(error)))  # no markup: a path may hold [brackets]
    console.print(Panel(words, title="rmkit", title_align="left", border_style="red", box=box.ROUNDED))


def environment(device: torch.device, ranks: int) -> dict[str, Any]:
    """Versions, device and commit that a result belongs to."""
    versions = {}
    for package in ("torch", "transformers", "accelerate", "datasets", "safetensors", "triton", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "rmkit": rmkit.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions,
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def commit() -> str | None:
    """Commit of the checkout that this code runs from, -dirty where it was changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


class Metrics:
    """metrics.jsonl: a line per optimizer step and per evaluation, on the disk when `write` returns."""

    def __init__(self, folder: Path | None, keep_bytes: int = 0) -> None:
        """Open the file in `folder`, cut back to `keep_bytes`; None (ranks other than the first) writes nothing."""
        self._file = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / "metrics.jsonl"
            file.touch()
            os.truncate(file, min(keep_bytes, file.stat().st_size))
            self._file = file.open("a")

    def write(self, values: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    @property
    def bytes(self) -> int:
        return self._file.tell() if self._file is not None else 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def describe(folder: Path | None, config: dict[str, Any], device: torch.device, ranks: int) -> None:
    """Write config.json (resolved, and reloadable) and env.json into the run folder."""
    if folder is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "env.json").write_text(json.dumps(environment(device, ranks), indent=2) + "\n")


class Display:
    """A progress bar on a terminal, plain lines elsewhere, nothing on ranks other than the first."""

    def __init__(self, console: Console, steps: int, done: int, main: bool) -> None:
        self._console, self._steps, self._main = console, steps, main
        self._shown = 0.0
        self._started, self._first = time.perf_counter(), done
        self._bar = None
        if main and console.is_terminal:
            columns = (
                TextColumn("step"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=4)
            self._task = self._bar.add_task("", total=steps, completed=done)
            self._bar.start()

    def step(self, step: int, m: dict[str, Any]) -> None:
        """Show step `step` of metrics `m`: loss, accuracy, pairs/s, tokens/s, tokens saved, time left."""
        saved = 1.0 - m["tokens/computed"] / max(1, m["tokens/flat"])
        text = (
            f"loss {m['loss/train']:.4f}  acc {m['rewards_train/accuracies']:.3f}  "
            f"{m['examples_per_second']:.1f} pairs/s  {m['tokens_per_second']:,.0f} tokens/s  {saved:.0%} saved"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif self._main and (time.perf_counter() - self._shown > LINE_SECONDS or step == self._steps):
            self._shown = time.perf_counter()
            left = (self._shown - self._started) / max(1, step - self._first) * (self._steps - step)
            self.say(f"step {step}/{self._steps}  {text}  {clock(left)} left")

    def say(self, text: str) -> None:
        """One line for people, above the bar where there is one."""
        if self._main:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def evaluated(m: dict[str, Any]) -> str:
    """One line for an evaluation."""
    return (
        f"step {m['counters/updates']}: held-out accuracy {m['rewards_eval/accuracies']:.4f}, "
        f"loss {m['loss/eval']:.4f}, margin {m['rewards_eval/margins']:.3f} ({m['pairs']} pairs, {m['seconds']:.1f} s)"
    )


def closing(console: Console, rows: list[tuple[str, str]], say: Callable[[str], None]) -> None:
    """The table at the end of a run; plain lines where there is no terminal."""
    if console.is_terminal:
        table = Table(box=box.SIMPLE, show_header=False)
        for name, value in rows:
            table.add_row(name, value)
        console.print(table)
    else:
        for name, value in rows:
            say(f"{name:<21} {value}")


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
