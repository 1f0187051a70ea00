"""What a person sees: lines, progress in a log and on a terminal, tables, boxes; nothing from other ranks."""

import io

import pytest
from rich.console import Console

from rmkit import terminal
from rmkit.terminal import Terminal, evaluated, refuse, stepped

STEP = {
    "loss/train": 0.51234,
    "rewards_train/accuracies": 0.75,
    "examples_per_second": 12.34,
    "tokens_per_second": 5678.9,
    "tokens/flat": 200,
    "tokens/computed": 50,
}


def plain():
    out = io.StringIO()
    return Console(file=out, width=60, force_terminal=False, color_system=None), out


def of_completions(monkeypatch, main):
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    now = iter(range(0, 100, 2))
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(now))
    console, out = plain()
    counter = Terminal(console, main).progress("scored", 1000, 100, "completions")
    counter.show(300)
    counter.close()
    return out.getvalue()


def test_a_plain_line_with_rate_and_time_left(monkeypatch):
    line = of_completions(monkeypatch, True)
    assert line.startswith("scored 300/1,000  ")
    assert line.count("\n") == 1
    assert "completions/s" in line
    assert line.endswith(" left\n")


def test_other_processes_are_silent(monkeypatch):
    assert of_completions(monkeypatch, False) == ""


def test_completions_of_a_few_seconds_need_no_line(monkeypatch):
    console, out = plain()
    counter = Terminal(console, True).progress("scored", 10, 0, "completions")
    counter.show(5)
    counter.show(10)
    counter.close()
    assert out.getvalue() == ""


def test_steps_are_a_line_now_and_then_and_the_first_and_the_last_one_always(monkeypatch):
    clock = iter([0.0, 10.0, 10.0, 11.0, 20.0, 20.0, 21.0, 21.0])
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(clock))
    console, out = plain()
    display = Terminal(console, True).progress("step", 12, 2)
    display.show(3, stepped(STEP))
    display.show(4, stepped(STEP))  # a second later: nothing
    display.show(6, stepped(STEP))
    display.show(12, stepped(STEP))
    display.close()
    text = "loss 0.5123  acc 0.750  12.3 pairs/s  5,679 tokens/s  75% saved"
    assert out.getvalue().splitlines() == [
        f"step 3/12  {text}  1:30 left",
        f"step 6/12  {text}  0:30 left",
        f"step 12/12  {text}  0:00 left",
    ]


def test_a_terminal_of_other_ranks_is_silent():
    console, out = plain()
    silent = Terminal(console, False)
    display = silent.progress("step", 1)
    display.show(1, stepped(STEP))
    silent.say("x")
    silent.table([("steps", "1")])
    display.close()
    assert out.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar_that_ends():
    out = io.StringIO()
    shown = Terminal(Console(file=out, width=150, force_terminal=True), True)
    display = shown.progress("step", 2)
    display.show(2, stepped(STEP))
    shown.say("kept [as] it is")
    display.close()
    assert "100%" in out.getvalue()
    assert "75% saved" in out.getvalue()
    assert "kept [as] it is" in out.getvalue()


def test_evaluated():
    measured = {"loss/eval": 0.25, "rewards_eval/accuracies": 0.875, "rewards_eval/margins": 1.5}
    line = evaluated({"counters/updates": 7, **measured, "pairs": 9, "seconds": 1.25})
    assert line == "step 7: held-out accuracy 0.8750, loss 0.2500, margin 1.500 (9 pairs, 1.2 s)"


@pytest.mark.parametrize("a_terminal", [False, True])
def test_a_table_shows_every_row(a_terminal):
    out = io.StringIO()
    Terminal(Console(file=out, force_terminal=a_terminal), True).table([("steps", "10"), ("model", "runs/x/FINAL")])
    for text in ("steps", "10", "model", "runs/x/FINAL"):
        assert text in out.getvalue()
    assert (out.getvalue() == f"{'steps':<21} 10\n{'model':<21} runs/x/FINAL\n") != a_terminal


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00")])
def test_clock(seconds, shown):
    assert terminal.clock(seconds) == shown


def test_refuse_shows_what_would_move_the_cursor_as_its_escape():
    console, out = plain()
    refuse(ValueError("field \x1b[2J\ud800 :smile: is wrong"), console)
    assert "field \\x1b[2J\\ud800 :smile: is wrong" in out.getvalue()


def test_refuse_shows_the_sentence_as_it_is():
    """A path or a template in square brackets is no markup."""
    console, out = plain()
    refuse(ValueError("a.jsonl:3: [bold]need[/] [/nothing] a b"), console)
    assert "a.jsonl:3: [bold]need[/] [/nothing] a b" in out.getvalue()
    assert "rmkit" in out.getvalue().splitlines()[0]


def test_refuse_writes_to_standard_error(capsys):
    refuse("no such file")
    captured = capsys.readouterr()
    assert "no such file" in captured.err
    assert captured.out == ""
