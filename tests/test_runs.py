"""The program: a table, a page, a comparison; every mistake a sentence."""

import json
import os
import subprocess
import sys
import time

import pytest

from rmkit.pages import comparison
from rmkit.pages.folder import opened
from rmkit.runs import main
from rmkit.storage.lock import is_locked, locked
from support.run_of import write_run


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    columns(monkeypatch, 160)


def columns(monkeypatch, count: int) -> None:
    # rich asks the terminal unless it has both. Its own name for the environment: datasets.map with processes puts a
    # copy in the place of os.environ, which rich, loaded before, never sees.
    monkeypatch.setattr("rich.console.Console._environ", {**os.environ, "COLUMNS": str(count), "LINES": "100"})


def told(capsys, *arguments: str, status: int = 0) -> str:
    """What it prints, on one line."""
    assert main([*arguments]) == status
    done = capsys.readouterr()
    text = " ".join((done.out + done.err).replace("\u2502", " ").split())
    assert "Traceback" not in text
    return text


def test_the_list_has_each_run_with_what_differs(tmp_path, capsys):
    write_run(tmp_path, "first", lr=1e-3)
    write_run(tmp_path, "second", lr=2e-3, final=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("x")
    (tmp_path / "recipe.sh").write_text("x")
    text = told(capsys, "--cache-dir", str(tmp_path))
    assert "optim.lr=0.001" in text
    assert "optim.lr=0.002" in text
    assert "second (stopped)" in text
    assert "batch.pairs" not in text
    assert f"{tmp_path / 'empty'} is empty" in text
    assert "holds no metrics.jsonl: it is no run of rmkit's" in text
    assert "recipe" not in text
    best = max(
        row["rewards_eval/accuracies"]
        for row in map(json.loads, (tmp_path / "first" / "metrics.jsonl").read_text().splitlines())
        if "loss/eval" in row
    )
    assert f"{best:.4f}" in text


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_no_interval_and_no_value_is_broken(tmp_path, capsys, monkeypatch, width):
    columns(monkeypatch, width)
    write_run(tmp_path, "harmless-1e-5-a-long-name-of-a-run", lr=1e-3, steps=2000)
    second = write_run(tmp_path, "second", lr=2e-3, final=False)
    held = json.loads((second / "config.json").read_text())
    held["model"]["name"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    (second / "config.json").write_text(json.dumps(held))
    assert main(["--cache-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    intervals = [comparison.summary(opened(path))[1] for path in sorted(tmp_path.iterdir())]
    values = ("optim.lr=0.001", "optim.lr=0.002", "model.name=HuggingFaceTB/SmolLM2-135M-Instruct", "2,000")
    for whole in (*intervals, *values):
        assert any(whole in line for line in printed.splitlines()), whole
    assert any(line.split()[-1:] == ["optim.lr=0.001"] for line in printed.splitlines()), "a line each"


def test_of_one_run_nothing_differs(tmp_path, capsys):
    run = write_run(tmp_path, "first")
    assert "what differs" not in told(capsys, str(run))


@pytest.mark.parametrize("made", [True, False])
def test_no_run_is_a_sentence(tmp_path, capsys, made):
    folder = tmp_path / "runs"
    if made:
        folder.mkdir()
    assert f"{folder} holds no run; python -m rmkit.train makes one" in told(capsys, "--cache-dir", str(folder))


def test_one_name_writes_its_page(tmp_path, capsys):
    run = write_run(tmp_path, "first")
    assert f"page: {run / 'report.html'}" in told(capsys, "first", "--cache-dir", str(tmp_path))
    before = (run / "report.html").read_text()
    assert before.startswith("<!DOCTYPE html>")
    (run / "report.html").write_text("older")
    told(capsys, str(run))
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_two_names_make_a_page_of_both(tmp_path, capsys):
    runs = [write_run(tmp_path, name, seed=seed) for seed, name in enumerate(("first", "second"))]
    text = told(capsys, "first", "second", "--cache-dir", str(tmp_path))
    assert "first against second: McNemar's p = " in text
    assert comparison.is_ours(tmp_path / "compare-first-second.html")
    out = tmp_path / "page.html"
    told(capsys, *map(str, runs), "--out", str(out))
    told(capsys, *map(str, runs), "--out", str(out))
    out.write_text("mine")
    assert "is no comparison of runs" in told(capsys, *map(str, runs), "--out", str(out), status=2)
    assert out.read_text() == "mine"


def test_unknown_names_and_what_is_no_run_are_sentences(tmp_path, capsys):
    write_run(tmp_path, "harmless-1e-5")
    cache = ("--cache-dir", str(tmp_path))
    (tmp_path / "empty").mkdir()
    for given, words in (
        (["harmles-1e-5"], "did you mean harmless-1e-5?"),
        (["zzz"], "there is no such run (there are empty, harmless-1e-5)"),
        ([""], "there is no such run"),
        (["a\0b"], "there is no such run"),
        (["empty"], "is empty"),
        (["harmless-1e-5", "harmles"], "did you mean harmless-1e-5?"),
        (["harmless-1e-5", "harmless-1e-5"], "one and the same run"),
        (["harmless-1e-5", str(tmp_path / "harmless-1e-5/.")], "one and the same run"),
        (["harmless-1e-5", "--out", "x.html"], "it is the page of two or more runs"),
    ):
        assert words in told(capsys, *given, *cache, status=2)
    assert "holds none" in told(capsys, "x", "--cache-dir", str(tmp_path / "absent"), status=2)


def test_a_run_that_is_being_trained_keeps_its_own_page(tmp_path, capsys):
    run = write_run(tmp_path, "first", final=False)
    code = "import sys, time\nfrom pathlib import Path\nfrom rmkit.storage.lock import locked\n"
    code += "with locked(Path(sys.argv[1]), ''):\n    print('held', flush=True)\n    time.sleep(600)\n"
    other = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        assert is_locked(run)
        assert "It is being trained" in told(capsys, str(run))
        assert not (run / "report.html").exists()
        assert "first (running)" in told(capsys, "--cache-dir", str(tmp_path))
    finally:
        other.kill()
        other.wait()
    for _ in range(100):
        if not is_locked(run):
            break
        time.sleep(0.05)
    assert "It stopped at step 30" in told(capsys, str(run))
    with locked(run, "it is free again"):
        pass


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path, "first")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rmkit.runs.run_page.write", full)
    assert "it cannot be written (No space left on device)" in told(capsys, str(run), status=2)
    assert "report.html" not in os.listdir(run)
