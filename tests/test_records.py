"""Records of a file: order, what made none, and the two ways to write them. The schemas are test_feedback's."""

import json
from collections import Counter

import numpy as np
import pytest

from rmkit.labelling.config import LabelConfig
from rmkit.labelling.index import SampleFile, build_index
from rmkit.labelling.records import records, write

ROWS = [("p", "a"), ("q", "x"), ("p", "b"), ("r", "u"), ("p", "c"), ("q", "y"), ("r", "v"), ("s", "z")]
SCORES = np.array([1.0, 5.0, 3.0, 2.0, np.nan, 4.0, 2.0, np.nan], np.float32)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "output": o}) + "\n" for p, o in ROWS))
    build_index(path, "s", tmp_path)
    return SampleFile(path, "s", tmp_path)


def made(file, counts=None, **flags):
    config = LabelConfig(samples="s", **flags)
    return list(records(config, file, SCORES, Counter() if counts is None else counts))


@pytest.mark.parametrize("feedback", ["scalar", "binary"])
def test_one_record_a_scored_sample_in_the_order_of_the_input(file, feedback):
    found = made(file, feedback=feedback)
    assert [row["output"][0]["content"] for row in found] == ["a", "x", "b", "u", "y", "v"]
    assert [row["reward"] for row in found] == [1.0, 5.0, 3.0, 2.0, 4.0, 2.0]


def test_prompts_come_by_their_first_sample_and_those_without_a_record_are_counted(file):
    counts = Counter()
    found = made(file, counts, feedback="pairwise", format="trl")
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found] == [("b", "a"), ("x", "y")]
    assert counts == {
        "prompts without a gap over 0: no pair": 1,
        "prompts without a scored completion: no record": 1,
    }
    found = made(file, feedback="best", split="train")
    assert [(row["output"][0]["content"], row["n"], row["split"]) for row in found] == [
        ("b", 2, "train"),
        ("x", 2, "train"),
        ("u", 2, "train"),
    ]


def test_the_seed_swaps_a_and_b(file):
    drawn = {tuple(row["label"] for row in made(file, feedback="pairwise", seed=seed)) for seed in range(20)}
    assert len(drawn) == 4
    assert made(file, feedback="pairwise", seed=3) == made(file, feedback="pairwise", seed=3)


@pytest.mark.parametrize("values", [[], [{"a": "\u00fc\n"}], [{"a": 1}, {"a": [{"b": None}]}]])
def test_an_array_or_lines(tmp_path, values):
    assert write(iter(values), tmp_path / "f.json", tmp_path) == len(values)
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == values
    assert write(iter(values), tmp_path / "f.jsonl", tmp_path) == len(values)
    assert [json.loads(line) for line in (tmp_path / "f.jsonl").open(encoding="utf-8")] == values
    if values:
        assert (tmp_path / "f.json").read_text(encoding="utf-8") == json.dumps(
            values, indent=2, ensure_ascii=False
        ) + "\n"
