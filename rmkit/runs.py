"""List the runs in a folder, write the page of one anew, or put several on one page.

Without a name: a table of all runs. With one: its report.html. With more: curves over each other, McNemar's test on the
held-out pairs that they share, and what differs in their configurations.
"""

import sys

from rmkit import cli

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    sys.exit(cli.main(["runs", *sys.argv[1:]]))

import difflib
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rmkit.errors import UserError, plain
from rmkit.pages import comparison, run_page, settings
from rmkit.pages.config import FLAGS, RunsConfig
from rmkit.pages.folder import RunFolder, opened
from rmkit.storage.lock import is_locked
from rmkit.terminal import Terminal

LONGEST = 100
"""Characters of the names in a file's name that is made of them."""

FIGURES = ("best\naccuracy", "95 % interval", "at\nstep", "steps", "time")

USUAL = 80
"""Columns of a terminal from which on a figure stays on one line."""

NAME = 20
"""Columns that a run's name, with the space around it, can be put into."""


def runs(config: RunsConfig, console: Console) -> int:
    """Do as `config` says; the exit status. Raises UserError with a sentence."""
    terminal, cache = Terminal(console, True), Path(config.cache_dir)
    if config.out is not None and len(config.names) < 2:
        raise UserError("out", config.out, "it is the page of two or more runs; name them, or leave it out")
    if not config.names:
        list_runs(cache, terminal)
        return 0
    paths = list({path.resolve(): path for path in (found(cache, name) for name in config.names)}.values())
    if len(paths) < len(config.names) and len(paths) == 1:
        raise UserError("names", " ".join(config.names), "it is one and the same run; name another one beside it")
    held = [opened(path, is_locked(path)) for path in paths]
    if len(held) == 1:
        page_of_one(held[0], terminal)
    else:
        file = Path(config.out) if config.out is not None else cache / named_after(held)
        comparison.write(held, file)
        show(held, terminal)
        for test in (comparison.tested(a, b) for i, a in enumerate(held) for b in held[i + 1 :]):
            terminal.say(f"{' against '.join(test['names'])}: {comparison.in_words(test)}")
        terminal.say(f"page: {file}")
    return 0


def found(cache: Path, name: str) -> Path:
    """The folder of a run, by its name or its path; UserError with the nearest name where there is none."""
    for path in (cache / name, Path(name)):
        if name and path.is_dir():
            return path
    known = folders(cache)
    close = difflib.get_close_matches(name, [path.name for path in known], n=1, cutoff=0.5)
    meant = f"; did you mean {plain(close[0])}?" if close else ""
    there = ", ".join(plain(path.name) for path in known[:12]) + (", .." if len(known) > 12 else "")
    which = f" (there are {there})" if known else f": {plain(str(cache))} holds none"
    raise UserError("names", plain(name) or repr(name), f"there is no such run{which}{meant}")


def folders(cache: Path) -> list[Path]:
    """The folders that may be runs, by name."""
    try:
        return sorted(path for path in cache.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def list_runs(cache: Path, terminal: Terminal) -> None:
    """The table of all runs, and a sentence for each folder that is none."""
    held, others = [], []
    for path in folders(cache):
        try:
            held.append(opened(path, is_locked(path)))
        except (ValueError, OSError) as error:
            others.append(str(error))
    if held:
        show(held, terminal)
    else:
        terminal.say(
            f"{plain(str(cache))} holds no run; python -m rmkit.train makes one, --cache-dir names another folder"
        )
    for sentence in others:
        terminal.say(sentence)


def show(held: list[RunFolder], terminal: Terminal) -> None:
    """The table of some runs; of the flags only those in which they differ, in a table of their own where one of both
    would be wider than the terminal."""
    console, differing = terminal.console, settings.differing([run.config for run in held])
    names = [run.name + {"finished": "", "running": " (running)", "stopped": " (stopped)"}[run.state] for run in held]
    figures = [_figures(run) for run in held]
    values = [
        plain("\n".join(f"{flag.removeprefix('--')}={of_runs[i]}" for flag, of_runs in differing.items()))
        for i in range(len(held))
    ]
    both = _table(names, console, figures, values if differing else None)
    natural = Measurement.get(console, console.options.update(max_width=10**6), both).maximum
    if not differing or natural <= console.width:
        console.print(both)
    else:
        console.print(_table(names, console, figures))
        console.print(_table(names, console, None, values))
    for run in held:
        for note in run.notes:
            terminal.say(f"{run.name}: {plain(note)}")


def _figures(run: RunFolder) -> list[str]:
    share, interval, step, *_, steps, seconds = comparison.summary(run)
    return [share, interval, step, steps, seconds]


def _table(
    names: list[str], console: Console, figures: list[list[str]] | None = None, values: list[str] | None = None
) -> Table:
    """Names of runs with their figures, with what differs in them, or with both. A figure is never broken on a terminal
    of `USUAL` columns or more, nor is a value that leaves `NAME` for a name: the name is."""
    table = Table(box=box.SIMPLE)
    table.add_column("run", overflow="fold")
    for name in FIGURES if figures else ():
        table.add_column(name, justify="right", no_wrap=console.width >= USUAL)
    if values:
        longest = max(len(line) for value in values for line in value.split("\n"))
        table.add_column("what differs", overflow="fold", no_wrap=longest + NAME <= console.width)
    for i, name in enumerate(names):
        cells = [name, *(figures[i] if figures else ()), *([values[i]] if values else ())]
        table.add_row(*map(Text, cells))
    return table


def page_of_one(run: RunFolder, terminal: Terminal) -> None:
    """Write the page of a run anew; that of one that is being trained is its training's to write."""
    if run.state != "running":
        try:
            run_page.write(run)
        except OSError as error:
            raise UserError("", run.path / run_page.NAME, f"it cannot be written ({error.strerror})") from error
    show([run], terminal)
    terminal.say(run_page.status(run))
    terminal.say(f"page: {run.path / run_page.NAME}")


def named_after(held: list[RunFolder]) -> str:
    return f"compare-{'-'.join(run.path.resolve().name for run in held)[:LONGEST]}.html"


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags and do it; 2 with a boxed sentence on a user's error, 130 on Ctrl-C."""
    return run_program(cli.parsed("runs", arguments))


def run_program(flags: RunsConfig) -> int:
    """Do as the parsed flags say; the exit status of `main`."""
    return cli.simply(lambda console: runs(flags, console), "stopped", flags=FLAGS)
