"""The campaign of mistakes: its judge, a sample of it, and (slow) all of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from campaigns import mistakes
from campaigns.mistakes import MISTAKES, Mistake, attempt, make_template

SAMPLE = (
    "mistyped data",
    "a mistyped model",
    "its own FINAL by a link above",
    "its own FINAL by links to its files",
    "a margin beyond float32",
    "Ctrl-C, then overwritten again, by mistake",
    "kill -9 in the first step",
    "a full disk at the first checkpoint",
    "resumed with other data",
)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return make_template(tmp_path_factory.mktemp("mistakes") / "template")


def test_there_are_forty_at_least():
    assert len(MISTAKES) >= 40


@pytest.mark.parametrize("name", SAMPLE)
def test_after_a_mistake_the_earlier_run_is_whole(template, tmp_path, name):
    wrong, told = attempt(template, tmp_path / "work", MISTAKES[name])
    assert wrong == []
    assert told


def test_the_judge_sees_a_lost_run(template, tmp_path):
    """What --overwrite did before it deleted last."""
    lost = Mistake(("--overwrite",), lambda work: (work / "runs" / "r" / "FINAL" / "config.json").unlink())
    wrong, _ = attempt(template, tmp_path / "work", Mistake((*lost.flags, "--data.train", "no.jsonl"), lost.prepare))
    assert len(wrong) == 1
    assert "the earlier run is not whole" in wrong[0]


@pytest.mark.slow
def test_after_every_mistake_the_earlier_run_is_whole(tmp_path):
    out = tmp_path / "mistakes.json"
    done = subprocess.run([sys.executable, mistakes.__file__, "--out", out])
    counts = json.loads(out.read_text())
    assert done.returncode == 0
    assert counts["survived"] == counts["tried"] == len(MISTAKES)
