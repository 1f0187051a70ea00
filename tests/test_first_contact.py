"""bench/first_contact.py without a card: its sections find what is wrong, and nothing is left out in silence."""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from rmkit.batch.trie import pack
from rmkit.model import attention
from support.oracle import random_pairs

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

import first_contact  # noqa: E402
from contact import attention_truth, gpu_tests, ladder, models, one_way, steps  # noqa: E402
from contact.ways import WAYS, Way, flags_of, missing_flags  # noqa: E402


def kept() -> tuple[list[dict], dict]:
    """What a section leaves on its way, and the arguments of a tiny one."""
    left: list[dict] = []
    return left, {"tiny": True, "seconds": 1000.0, "leave": lambda result: left.append(json.loads(json.dumps(result)))}


def contact(*arguments, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCH / "first_contact.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **more)


def test_a_section_leaves_its_json_with_what_it_ran_on(tmp_path):
    done = contact("--tiny", "--only", "ceilings", "--out", tmp_path, "--commit", "abc", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tiny: no figure of a GPU" in done.stdout
    left = json.loads((tmp_path / "ceilings.json").read_text())
    assert (left["status"], left["device"], left["tiny"]) == ("done", "cpu", True)
    assert left["environment"]["commit"] == "abc"
    assert left["environment"]["versions"]["torch"] == torch.__version__
    assert left["data_sheet_tflops"] == "no card"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["correct"], summary["tiny"], list(summary["sections"])) == (True, True, ["ceilings"])


def test_sections_are_chosen_by_name_and_by_kind():
    def names(*only):
        return [s.name for s in first_contact.chosen(list(only), first_contact.SECTIONS)]

    assert names("correctness") == ["gpu_tests", "attention", "ladder"]
    assert names("steps") == ["steps-0.6b", "steps-8b", "steps-1b"]
    assert names("loss", "ladder") == ["ladder", "loss"]
    assert names("correctness", "figures") == [s.name for s in first_contact.SECTIONS]
    assert len(names("figures")) + 1 <= 8  # files that the lent machine hands back


def test_what_takes_too_long_is_ended_and_what_is_left_is_named(tmp_path):
    arguments = argparse.Namespace(out=tmp_path, tiny=True, commit=None, minutes=0.5)
    environment = first_contact.child_environment(None, tiny=True)
    sections = list(first_contact.SECTIONS[1:3])
    late = first_contact.run_section(sections[0], arguments, environment, 0.2)
    assert (late["status"], late["why"]) == ("timed out", "it had 0 s")
    assert json.loads((tmp_path / "attention.json").read_text())["tiny"] is True
    results = first_contact.run_all(sections, arguments, environment, time.monotonic() + 1)
    assert [r["status"] for r in results.values()] == ["skipped", "skipped"]
    assert "--minutes 0.5 were over" in json.loads((tmp_path / "ladder.json").read_text())["why"]
    assert not first_contact.correct(results, sections)


def test_each_wheel_is_given_to_pip_once(tmp_path, monkeypatch):
    (tmp_path / "a-1-py3-none-any.whl").touch()
    given = []
    monkeypatch.setattr(
        first_contact.subprocess, "run", lambda command: given.extend(command) or argparse.Namespace(returncode=0)
    )
    first_contact.install(tmp_path, tmp_path / "site")
    assert given[-3:] == ["--target", str(tmp_path / "site"), str(tmp_path / "a-1-py3-none-any.whl")]
    assert (given.count("--target"), given.count(given[-1])) == (1, 1)


@pytest.mark.parametrize(
    ("status", "more", "fine"),
    [
        ("done", {}, True),
        ("wrong", {"failures": ["q is off"]}, False),
        ("failed", {}, False),
        ("timed out", {}, False),
    ],
)
def test_correct_is_what_came_to_its_end_without_a_fault(status, more, fine):
    truth, figures = first_contact.SECTIONS[1], first_contact.SECTIONS[-1]
    results = {truth.name: {"status": status, **more}, figures.name: {"status": "failed"}}
    assert first_contact.correct(results, [truth, figures]) is fine
    results[figures.name]["failures"] = ["rmkit is off by 0.2 from float64: not timed"]
    assert not first_contact.correct(results, [truth, figures])


def test_pytest_is_read_as_far_as_it_came():
    words = "tests/test_a.py::test_b[each family-1] PASSED [ 10%]\ntests/test_a.py::test_c FAILED [ 20%]\n"
    words += (
        "tests/test_a.py::test_d[x] SKIPPED (needs a CUDA device) [ 30%]\nFAILED tests/test_a.py::test_c - assert 0\n"
    )
    assert Counter(gpu_tests.outcomes(words).values()) == {"passed": 1, "failed": 1, "skipped": 1}
    row = {"file": "test_a.py", "counts": {"failed": 1}, "failed": ["test_c"], "exit_status": 1, "seconds": 2.0}
    assert gpu_tests.failures_of(row) == ["test_c failed"]
    assert gpu_tests.failures_of({**row, "failed": [], "exit_status": -6}) == [
        "test_a.py ended with status -6: see its output"
    ]
    assert "was not done" in gpu_tests.failures_of({**row, "exit_status": None})[0]
    assert gpu_tests.summed([{**row, "counts": {}, "failed": [], "exit_status": 5}], tiny=False)["failures"] == [
        "no test has passed on the card"
    ]
    names = {file.name for file in gpu_tests.files()}
    assert {"test_attention.py", "test_gather_kv.py", "test_on_gpu.py", "test_score_bt_loss.py"} <= names


def test_attention_is_held_against_float64(monkeypatch):
    left, arguments = kept()
    found = attention_truth.run(**arguments)
    assert found["failures"] == []
    assert len(found["rows"]) == len(left) - 1 == 3 * len(attention_truth.SHAPES)
    attend = attention.attend

    def wide(*arguments, sliding_window, **more):
        """A window one key too wide, as it would be if flash attention counted it another way."""
        return attend(*arguments, sliding_window=sliding_window and sliding_window + 1, **more)

    monkeypatch.setattr(attention, "attend", wide)
    windowed = attention_truth.SHAPES[3].small()
    wrong = attention_truth.compared(windowed, "trie", False, torch.device("cpu"))
    assert not all(error["fine"] for error in wrong["errors"].values())


def test_the_ladder_finds_a_wrong_position(monkeypatch):
    ways = [("fp32", "trie", False, False), ("bf16", "packed", True, False)]
    rows = ladder.family_rows("llama", torch.device("cpu"), ways, tiny=True)
    assert [row["fine"] for row in rows] == [True, True]
    assert len(ladder.plan(tiny=False)) >= len(ladder.FAMILIES)

    def moved(*arguments, **how):
        batch = pack(*arguments, **how)
        batch.position_ids[:, -1] += 1
        return batch

    monkeypatch.setattr(ladder, "pack", moved)
    assert not ladder.family_rows("llama", torch.device("cpu"), ways[:1], tiny=True)[0]["fine"]


def test_steps_are_those_of_the_product(tmp_path, monkeypatch):
    way = Way(name="trie recomputed", needs=1e-3, recomputed=True)
    unknown = Way(name="large", needs=1e9)
    monkeypatch.setitem(WAYS, "1b", (way, unknown))
    monkeypatch.setattr(steps, "STEPS", 5)
    monkeypatch.setattr(one_way, "STEPS", 5)
    left, arguments = kept()
    found = steps.run(model="1b", **arguments)
    row = found["rows"][0]
    assert "failed" not in row, row
    assert (row["device"], row["tiny"], row["mfu"], row["peak_gib"]) == ("cpu", True, "no card", "no card")
    assert len(row["losses"]) == 4
    assert 0 < row["tokens"] < row["flat"]
    assert 0 <= row["host_ms"] <= row["ms"]
    assert len(left) == 2
    assert steps.why_not(unknown, 80.0, 100.0) == "it takes about 1000000000 GiB of 80"
    assert steps.why_not(way, 80.0, 1.0) == "no time was left"


def test_flags_say_every_choice():
    assert "--deterministic" in flags_of(next(way for way in WAYS["0.6b"] if way.name == "trie deterministic"))
    assert "--deterministic" not in flags_of(WAYS["0.6b"][0])
    assert "--lora.rank" in flags_of(Way(name="x", needs=1, rank=8))
    assert missing_flags(Way(name="x", needs=1)) is None
    assert len({way.name for way in WAYS["8b"]}) == len(WAYS["8b"])


def test_flops_of_a_row_without_sharing_are_those_of_its_sequences_alone():
    config = models.config_of("1b", tiny=False)
    sequences, _ = random_pairs(np.random.default_rng(0), 3)
    sequences = [np.concatenate([[50 + i], s]) for i, s in enumerate(sequences)]  # nothing is shared
    alone = sum(one_way.flops(config, pack([s])) for s in sequences)
    for layout in ("trie", "packed"):
        assert one_way.flops(config, pack(sequences, layout=layout)) == pytest.approx(alone, rel=1e-12)
    # 8B: 6 x 6.98 B weights of the layers x tokens, and the last layer does most of its work for one token alone.
    large = models.config_of("8b", tiny=False)
    tokens = np.arange(3, 8003)
    of_weights = 6 * 6.98e9 * len(tokens)
    assert 0.97 * of_weights < one_way.flops(large, pack([tokens])) < 1.2 * of_weights


@pytest.mark.slow
def test_everything_at_tiny_sizes(tmp_path):
    done = contact("--tiny", "--out", tmp_path, "--minutes", "40", timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    sections = json.loads((tmp_path / "summary.json").read_text())["sections"]
    assert {name: s["status"] for name, s in sections.items()} == {s.name: "done" for s in first_contact.SECTIONS}
