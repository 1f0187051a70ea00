"""Progress in a log: a plain line now and then, none from other processes."""

import io

from rich.console import Console

from rmkit import terminal
from rmkit.terminal import Gauge


def shown(monkeypatch, main):
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    now = iter(range(0, 100, 2))
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(now))
    console = Console(file=io.StringIO(), width=40)
    counter = Gauge(console, "scored", "completions", 1000, 100, main)
    counter.show(300)
    counter.close()
    return console.file.getvalue()


def test_a_plain_line_with_rate_and_time_left(monkeypatch):
    line = shown(monkeypatch, True)
    assert line.startswith("scored 300/1,000  ")
    assert line.count("\n") == 1
    assert "completions/s" in line
    assert line.endswith(" left\n")


def test_other_processes_are_silent(monkeypatch):
    assert shown(monkeypatch, False) == ""
