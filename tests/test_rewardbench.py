"""RewardBench's scores, beside those that its own program (0.1.4) gave for the same scores, and its file."""

import json
from pathlib import Path

import numpy as np
import pytest

from rmkit.evaluation import rewardbench

PUBLISHED = json.loads((Path(__file__).parent / "golden" / "rewardbench.json").read_text())
"""Random scores, and what the program's functions made of them"""


def test_weights_are_the_published_ones():
    weights = {name: sum(subsets.values()) for name, subsets in rewardbench.SECTIONS.items()}
    assert weights == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968, "Prior": 4}


def test_sections_of_known_accuracies():
    found = rewardbench.sections(
        {"alpacaeval-easy": 0.9, "mt-bench-med": 0.5, "math-prm": 1.0, "hep-go": 0.5, "shp": 0.4, "summarize": 0.6}
    )
    chat, reasoning, prior = (found["sections"][name] for name in ("Chat", "Reasoning", "Prior"))
    assert chat["score"] == pytest.approx((0.9 * 100 + 0.5 * 40) / 140)
    assert chat["covered"] == pytest.approx(140 / 358)
    assert chat["subsets"] == ["alpacaeval-easy", "mt-bench-med"]
    assert reasoning["score"] == pytest.approx((984 + 82) / (984 + 164))
    assert prior["score"] == pytest.approx(0.5)
    assert set(found["sections"]) == {"Chat", "Reasoning", "Prior"}
    assert found["average"] == pytest.approx((2 * chat["score"] + 2 * reasoning["score"] + prior["score"]) / 5)


def test_no_section_where_no_name_is_known():
    assert rewardbench.sections({"chat": 0.5, "math": 0.5}) is None


@pytest.mark.parametrize("case", PUBLISHED["sections"])
def test_sections_are_those_of_the_program(case):
    found = rewardbench.sections(case["accuracies"])["sections"]
    for name, score in case["sections"].items():
        assert found[name]["score"] == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("case", PUBLISHED["ties"])
def test_ties_are_scored_as_by_the_program(case):
    rows = {row["id"]: (np.array(row["right"]), np.array(row["wrong"])) for row in case["rows"]}
    assert rewardbench.ties_score(rows) == pytest.approx(case["score"], abs=1e-12)


def test_ties_need_a_row_in_both_forms():
    row = (np.array([1.0, 2.0]), np.array([0.0]))
    assert rewardbench.ties_score({"tied:1": row, "ref:2": row}) is None


@pytest.mark.parametrize("case", PUBLISHED["best_of_four"])
def test_best_of_four_shares_the_point_of_a_tie(case):
    first, *others = case["scores"]
    assert rewardbench.best_of_four(first, np.array(others)) == case["result"]


def turn(role: str, text: str) -> dict:
    return {"role": role, "content": text}


def test_rewardbench_file_holds_whole_conversations_only(tmp_path):
    plain = {"prompt": [turn("user", "q")], "chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]}
    plain["more"] = None
    system = {**plain, "prompt": [turn("system", "s"), turn("user", "q")], "id": "x", "subset": "y"}
    several = {**plain, "rejected": [turn("assistant", "a"), turn("user", "?"), turn("assistant", "c")]}
    tools = {**plain, "more": '{"options": {"tools": []}}'}
    file, said = tmp_path / "rb.jsonl", []
    rewardbench.write_rewardbench(file, [plain, system, several, tools], said.append)
    first, second, *_ = (json.loads(line) for line in file.read_text().splitlines())
    assert first == {side: plain["prompt"] + plain[side] for side in ("chosen", "rejected")}
    assert set(second) == {"chosen", "rejected"}
    assert [p.name for p in tmp_path.iterdir()] == ["rb.jsonl"]
    assert "4 pairs" in said[0]
    assert "read 3 of them otherwise" in said[1]


def test_rewardbench_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"--export rewardbench .*could not be written"):
        rewardbench.write_rewardbench(tmp_path / "absent" / "rb.jsonl", [], print)
