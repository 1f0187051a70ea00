"""Rows of the benchmarks, in the schemas that their repositories have, and how --data finds them."""

import json
from pathlib import Path

import pytest

from rmkit.data import source
from rmkit.data.benchmarks import BENCHMARKS
from rmkit.evaluation.benchmarks import BENCHMARKS as SCORED

LISTS = {"id": "1", "prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
JUDGED = {
    "pair_id": "p",
    "source": "mmlu-pro-law",
    "question": "q",
    "response_A": "a",
    "response_B": "b",
    "label": "B>A",
}
RMB = {"conversation_input": [{"role": "user", "content": "q", "language": "English"}]}


def written(folder: Path, name: str, rows: list[dict]) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(text)
    return folder


def read(given: str) -> list[dict]:
    return source.load((given,), "test", lambda text: None).to_list()


def content(turns: list[dict]) -> str:
    return turns[-1]["content"]


def test_every_benchmark_that_is_read_is_scored():
    assert set(BENCHMARKS) == set(SCORED)


def test_rm_bench_is_read_from_its_clone_with_its_domains(tmp_path):
    written(tmp_path, "data/total_dataset.json", [{**LISTS, "domain": "safety-refuse"}])
    written(tmp_path, "data/chat_filtered.json", [{**LISTS, "domain": "chat"}])  # the same rows again
    rows = read(f"rm-bench={tmp_path}")
    assert len(rows) == 9
    assert {row["subset"] for row in rows} == {"safety-refuse"}
    assert rows[0]["source"] == f"rm-bench={tmp_path}/data/total_dataset.json:0"
    assert rows[1]["id"] == "1/0>1"


def test_judgebench_prefers_what_its_label_says(tmp_path):
    name = "data/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl"
    other = {**JUDGED, "label": "A>B", "source": "livebench-math"}
    rows = read(f"judgebench={written(tmp_path, name, [JUDGED, other])}")
    assert [(content(row["chosen"]), content(row["rejected"]), row["subset"]) for row in rows] == [
        ("b", "a", "mmlu-pro"),
        ("a", "b", "livebench-math"),
    ]


def test_rmb_has_pairs_and_lists(tmp_path):
    pair = {**RMB, "chosen": {"answer": "a"}, "reject": {"answer": "b"}, "pair_uid": "1"}
    best = {**RMB, "bon_best": {"answer": "a"}, "loser_list": [{"answer": "b"}, {"answer": "c"}], "bon_uid": "2"}
    written(tmp_path, "RMB_dataset/Pairwise_set/S1.json", [{**pair, "category_path": "Pairwise_set/Harmlessness/S1"}])
    written(tmp_path, "RMB_dataset/BoN_set/S1.json", [{**best, "category_path": "BoN_set/Harmlessness/S1"}])
    rows = read(f"rmb={tmp_path}")
    assert sorted((row["id"], content(row["rejected"])) for row in rows) == [("1", "b"), ("2/0>0", "b"), ("2/0>1", "c")]
    assert {row["subset"] for row in rows} == {"Harmlessness/S1"}


def test_ppe_takes_sampled_pairs_and_leaves_ties_out(tmp_path):
    answers = {f"response_{i + 1}": f"a{i}" for i in range(4)}
    row = {"question_id": "x", "prompt": "q", **answers, "scores": [True, False, False, True]}
    row["sampled_conflict_pairs"] = [[1, 0], [3, 2], [1, 2]]
    file = written(tmp_path, "PPE-MATH-Best-of-K/train.jsonl", [row]) / "PPE-MATH-Best-of-K/train.jsonl"
    rows = read(f"ppe-correctness={file}")
    assert [(content(row["chosen"]), content(row["rejected"])) for row in rows] == [("a0", "a1"), ("a3", "a2")]
    assert {row["subset"] for row in rows} == {"MATH"}
    votes = [
        {"question_id": str(i), "prompt": f"q{i}", **answers, "winner": w} for i, w in enumerate(("model_b", "tie"))
    ]
    file = written(tmp_path, "votes.jsonl", votes) / "votes.jsonl"
    said: list[str] = []
    rows = source.load((f"ppe-preference={file}",), "test", said.append).to_list()
    assert [content(row["chosen"]) for row in rows] == ["a1"]
    assert "dropped: 1 tie" in said[0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("rm-bench=/no/such/clone", "there is no such path"),
        ("rmb", "clone its repository and give rmb=PATH"),
        ("rm-bench={folder}", "it holds none of data/total_dataset.json"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, given, told):
    with pytest.raises(ValueError, match=told):
        read(given.format(folder=tmp_path))


def test_a_row_of_another_schema_is_named(tmp_path):
    file = written(tmp_path, "x.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}]) / "x.jsonl"
    with pytest.raises(ValueError, match=r"x.jsonl, line 1: KeyError 'label' among the fields .* no row of judgebench"):
        read(f"judgebench={file}")
