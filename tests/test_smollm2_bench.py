"""The benchmark on a real model, but for its long part: stages of the recipe, and what is read from a run."""

import json
import sys
from pathlib import Path

import pytest

from support.run_of import write_run

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import smollm2_bench


def test_seconds_of_each_command_of_the_recipe():
    told = """+100.5 cd x
++101.5 python bench/smollm2.py runs/smollm2
something that Python said: +5.0 python -m rmkit.train
++111.5 python -m rmkit.inspect a --test b
+120.0 python -m rmkit.train --exp-name a
+220.0 python -m rmkit.train --exp-name b
"""
    assert smollm2_bench.stages(told, 250.0) == {
        "model": 10,
        "inspect": 8,
        "train": 100,
        "train, the second": 30,
    }


def test_the_recipe_has_the_settings_that_trl_is_given():
    text = (smollm2_bench.RUNS / "smollm2_hh.sh").read_text()
    for flag in (
        f"--data.max-length {smollm2_bench.MAX_LENGTH}",
        f"--batch.pairs {smollm2_bench.PAIRS}",
        f"--optim.max-steps {smollm2_bench.STEPS}",
        "--data.no-shuffle",
        f"--lora.rank {smollm2_bench.RANK}",
        "--optim.lr 3e-4",
        "--optim.schedule cosine",
    ):
        assert flag in text
    assert smollm2_bench.LR == 3e-4


def test_what_a_run_wrote(tmp_path, monkeypatch):
    run = write_run(tmp_path, "r")
    monkeypatch.setattr(smollm2_bench, "RUNS", tmp_path)
    found = smollm2_bench.of_run("r")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss/train" in row]
    assert found["losses"] == [row["loss/train"] for row in steps]
    assert sum(s * row["examples_per_second"] for s, row in zip(found["steps"], steps, strict=True)) == pytest.approx(
        found["pairs"]
    )
    assert found["held out after"]["accuracy"] == rows[-1]["rewards_eval/accuracies"]
