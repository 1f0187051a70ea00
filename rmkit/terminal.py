"""All that a person sees: lines, progress bars, tables and refusals."""

import time
from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rmkit.errors import plain

LINE_SECONDS = 5.0
"""Where there is no terminal, at most one plain line in so many seconds."""


def refuse(error: Exception | str, console: Console | None = None) -> None:
    """Show a user's error as one boxed sentence, on standard error."""
    console = console or Console(stderr=True, emoji=False)
    words = Text(plain(str(error)))  # no markup: a path may hold [brackets]
    console.print(Panel(words, title="rmkit", title_align="left", border_style="red", box=box.ROUNDED))


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
        accuracy = f"acc {m['rewards_train/accuracies']:.3f}  " if "rewards_train/accuracies" in m else ""
        text = (
            f"loss {m['loss/train']:.4f}  {accuracy}"
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
    accuracy, margin = "", ""
    if "rewards_eval/accuracies" in m:  # there are pairs, not ratings alone
        accuracy = f"accuracy {m['rewards_eval/accuracies']:.4f}, "
        margin = f", margin {m['rewards_eval/margins']:.3f}"
    held_out = f"held-out {accuracy}loss {m['loss/eval']:.4f}{margin}"
    return f"step {m['counters/updates']}: {held_out} ({m['pairs']} pairs, {m['seconds']:.1f} s)"


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


class Gauge:
    """Counts `total` things of which `done` stood at the start; shows rate and time left. Silent where not `main`."""

    def __init__(self, console: Console, verb: str, noun: str, total: int, done: int, main: bool) -> None:
        self._console, self._verb, self._noun, self._main = console, verb, noun, main
        self._total, self._first, self._done = total, done, done
        self._began = self._shown = time.perf_counter()
        self._bar = None
        if main and console.is_terminal:
            columns = (TextColumn(verb), BarColumn(bar_width=None), TaskProgressColumn())
            columns += (TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, refresh_per_second=4)
            self._task = self._bar.add_task("", total=total, completed=done)
            self._bar.start()

    @property
    def rate(self) -> float:
        """Things per second since the start."""
        return (self._done - self._first) / max(1e-9, time.perf_counter() - self._began)

    def show(self, done: int) -> None:
        """`done` of the total are ready."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"{self.rate:,.1f} {self._noun}/s")
        elif self._main and time.perf_counter() - self._shown > LINE_SECONDS:
            self._shown = time.perf_counter()
            left = (self._total - done) / max(1e-9, self.rate)
            text = f"{self._verb} {done:,}/{self._total:,}  {self.rate:,.1f} {self._noun}/s  {clock(left)} left"
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
