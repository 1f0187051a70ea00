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
    """The table of some runs; of the flags only those in which they differ."""
    differing = settings.differing([run.config for run in held])
    table = Table(box=box.SIMPLE)
    for name, right in (("run", False), ("best accuracy", True), ("95 % interval", True), ("at step", True)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for name in ("steps", "time"):
        table.add_column(name, justify="right")
    table.add_column("what differs", overflow="fold")
    for i, run in enumerate(held):
        share, interval, step, *_, steps, seconds = comparison.summary(run)
        of_run = [f"{name.removeprefix('--')}={values[i]}" for name, values in differing.items()]
        state = {"finished": "", "running": " (running)", "stopped": " (stopped)"}[run.state]
        cells = (run.name + state, share, interval, step, steps, seconds, plain(", ".join(of_run)))
        table.add_row(*(Text(cell) for cell in cells))
    terminal.console.print(table)
    for run in held:
        for note in run.notes:
            terminal.say(f"{run.name}: {plain(note)}")


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
    return cli.run(lambda console: runs(flags, console), "stopped", flags=FLAGS)
