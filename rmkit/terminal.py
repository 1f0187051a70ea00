"""All that a person sees: lines, progress, tables and refusals."""

import time
from typing import Any

from rich import box, progress
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rmkit.errors import plain

LINE_SECONDS = 5.0
"""Seconds between two plain lines of progress, at least, where there is no terminal."""


def refuse(error: Exception | str, console: Console | None = None) -> None:
    """Show a user's error as one boxed sentence, on standard error."""
    console = console or Console(stderr=True, emoji=False)
    words = Text(plain(str(error)))  # no markup: a path may hold [brackets]
    console.print(Panel(words, title="rmkit", title_align="left", border_style="red", box=box.ROUNDED))


class Terminal:
    """Output to the user: one object per program, silent on every rank but the first (`main`)."""

    def __init__(self, console: Console, main: bool) -> None:
        self.console, self.main = console, main

    def say(self, text: str) -> None:
        """One line for people, above the progress bar where there is one."""
        if self.main:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, rows: list[tuple[str, str]]) -> None:
        """The closing table of names and values; plain lines where there is no terminal."""
        if self.main and self.console.is_terminal:
            table = Table(box=box.SIMPLE, show_header=False)
            for name, value in rows:
                table.add_row(name, value)
            self.console.print(table)
        else:
            for name, value in rows:
                self.say(f"{name:<21} {value}")

    def grid(self, head: tuple[str, ...], rows: list[list[str]]) -> None:
        """A table with a head; the first column is a name, the others are set to the right."""
        if not self.main:
            return
        table = Table(box=box.SIMPLE)
        for i, name in enumerate(head):
            table.add_column(Text(name), justify="right" if i else "left")
        for row in rows:
            table.add_row(*(Text(plain(cell)) for cell in row))
        self.console.print(table)

    def progress(self, verb: str, total: int, done: int = 0, noun: str = "") -> "Progress":
        """A progress display for `total` things, `done` of them before the start; the caller closes it."""
        return Progress(self, verb, total, done, noun)


class Progress:
    """A progress display: a bar on a terminal, elsewhere a plain line every `LINE_SECONDS`.

    With a `noun` it shows the rate ("completions/s"). Without one, as for training steps, each `show` brings its own
    text, and the first and the last are always shown.
    """

    def __init__(self, terminal: Terminal, verb: str, total: int, done: int, noun: str) -> None:
        self._terminal, self._verb, self._noun = terminal, verb, noun
        self._total, self._first, self._done = total, done, done
        self._began = time.perf_counter()
        self._shown = self._began if noun else -LINE_SECONDS
        self._bar = None
        if terminal.main and terminal.console.is_terminal:
            columns = (progress.TextColumn(verb), progress.BarColumn(bar_width=None), progress.TaskProgressColumn())
            columns += (progress.TextColumn("{task.description}"), progress.TimeRemainingColumn())
            self._bar = progress.Progress(*columns, console=terminal.console, refresh_per_second=4)
            self._task = self._bar.add_task("", total=total, completed=done)
            self._bar.start()

    @property
    def rate(self) -> float:
        """Things per second since the start."""
        return (self._done - self._first) / max(1e-9, time.perf_counter() - self._began)

    def show(self, done: int, text: str = "") -> None:
        """Show that `done` of the total are done, with `text` in place of the rate."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text or self._rate())
        elif self._due():
            self._shown = time.perf_counter()
            left = clock((self._shown - self._began) / max(1, done - self._first) * (self._total - done))
            count = f"{done:,}/{self._total:,}" if self._noun else f"{done}/{self._total}"
            self._terminal.say(f"{self._verb} {count}  {text or self._rate()}  {left} left")

    def _due(self) -> bool:
        last = self._done == self._total and not self._noun
        return last or time.perf_counter() - self._shown > LINE_SECONDS

    def _rate(self) -> str:
        return f"{self.rate:,.1f} {self._noun}/s"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def stepped(m: dict[str, Any]) -> str:
    """The text of a training step: loss, accuracy, pairs/s, tokens/s, share of the tokens saved; what a GPU tells."""
    saved = 1.0 - m["tokens/computed"] / max(1, m["tokens/flat"])
    accuracy = f"acc {m['rewards_train/accuracies']:.3f}  " if "rewards_train/accuracies" in m else ""
    gpu = f"  MFU {m['tokens/mfu']:.0%}" if "tokens/mfu" in m else ""
    gpu += f"  {m['memory/peak_gib']:.1f} GiB" if "memory/peak_gib" in m else ""
    return (
        f"loss {m['loss/train']:.4f}  {accuracy}"
        f"{m['examples_per_second']:.1f} pairs/s  {m['tokens_per_second']:,.0f} tokens/s  {saved:.0%} saved{gpu}"
    )


def evaluated(m: dict[str, Any]) -> str:
    """One line for an evaluation."""
    accuracy, margin = "", ""
    if "rewards_eval/accuracies" in m:  # there are pairs, not ratings alone
        accuracy = f"accuracy {m['rewards_eval/accuracies']:.4f}, "
        margin = f", margin {m['rewards_eval/margins']:.3f}"
    held_out = f"held-out {accuracy}loss {m['loss/eval']:.4f}{margin}"
    return f"step {m['counters/updates']}: {held_out} ({m['pairs']} pairs, {m['seconds']:.1f} s)"


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
