"""Rows of the benchmarks, in the schemas that their repositories have, and how --data finds them."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from rmkit.data import source
from rmkit.data.benchmarks import BENCHMARKS
from rmkit.evaluation.benchmarks import BENCHMARKS as SCORED
from rmkit.evaluation.benchmarks import benchmark_of
from support.true_rows import benchmark_rows

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


ON_THE_HUB = {
    "rewardbench": [("allenai/reward-bench", "filtered")],
    "rewardbench2": [("allenai/reward-bench-2", "test")],
    "rm-bench": [("THU-KEG/RM-Bench", "train")],
    "judgebench": [("ScalerLab/JudgeBench", "gpt"), ("ScalerLab/JudgeBench", "claude")],
    "ppe-preference": [("lmarena-ai/PPE-Human-Preference-V1", "test")],
    "ppe-correctness": [
        (f"lmarena-ai/PPE-{part}-Best-of-K", "train") for part in ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")
    ],
}
"""As the sets' own pages name them and their splits"""


@pytest.mark.parametrize("name", [name for name, known in BENCHMARKS.items() if known.hub])
def test_a_set_on_the_hub_is_read_as_a_clone_is(tmp_path, name, monkeypatch):
    file, row = list(benchmark_rows()[name].items())[-1]
    asked = []

    def load_dataset(path, *, data_dir, split):
        asked.append((path, split))
        return Dataset.from_list([row])

    monkeypatch.setattr(source.datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(source, "hub_settled", lambda: None)
    of_hub = read(name)
    assert asked == ON_THE_HUB[name]
    of_clone = read(f"{name}={written(tmp_path, file, [row]) / file}")
    assert {benchmark_of(pair["source"]) for pair in of_hub} == {name}
    texts = [[pair[side] for side in ("prompt", "chosen", "rejected")] for pair in of_clone]
    assert texts
    assert [[pair[side] for side in ("prompt", "chosen", "rejected")] for pair in of_hub] == texts * len(asked)
    assert len({pair["subset"] for pair in of_hub}) == (5 if name == "ppe-correctness" else 1), "a part has its name"


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


def parquet(folder: Path, name: str, rows: list[dict]) -> Path:
    """The folder, with a set as the hub holds it below `name`."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(folder / name)
    return folder


def test_rewardbench_is_read_from_a_clone_of_its_set(tmp_path):
    row = benchmark_rows()["rewardbench"]["filtered.jsonl"]
    rows = [row, {**row, "subset": "hep-go", "id": 7, "chosen": "better"}]
    parquet(tmp_path / "set", "data/filtered-00000-of-00001.parquet", rows)
    parquet(tmp_path / "set", "data/raw-00000-of-00001.parquet", [{**row, "id": 9}])
    written(tmp_path / "plain", "filtered.jsonl", rows)
    for clone in ("set", "plain"):
        found = read(f"rewardbench={tmp_path / clone}")
        assert [(content(r["chosen"]), content(r["rejected"]), r["subset"], r["id"]) for r in found] == [
            ("good", "bad", "alpacaeval-easy", "0"),
            ("better", "bad", "hep-go", "7"),
        ]
        assert {benchmark_of(r["source"]) for r in found} == {"rewardbench"}


def test_rewardbench_2_is_read_as_lists(tmp_path):
    files = benchmark_rows()["rewardbench2"]
    ties = {**files["ties.jsonl"], "num_incorrect": 3}
    parquet(tmp_path / "set", "data/test-00000-of-00001.parquet", [files["test.jsonl"], ties])
    written(tmp_path / "plain", "test.jsonl", [files["test.jsonl"], ties])
    for clone in ("set", "plain"):
        found = read(f"rewardbench2={tmp_path / clone}")
        assert [(r["id"], content(r["rejected"])) for r in found[:3]] == [
            ("1/0>0", "bad"),
            ("1/0>1", "worse"),
            ("1/0>2", "worst"),
        ]
        assert {r["subset"] for r in found[3:]} == {"Ties"}
        assert [r["id"] for r in found[3:]] == [f"ref:1/{i}>{j}" for i in range(3) for j in range(3)]
        assert {benchmark_of(r["source"]) for r in found} == {"rewardbench2"}


def test_human_preferences_of_ppe_are_read_from_a_clone_of_their_set(tmp_path):
    row = benchmark_rows()["ppe-preference"]["test.jsonl"]
    winners = ("model_b", "tie", "model_a", "tie (bothbad)")
    rows = [{**row, "question_id": str(i), "winner": winner} for i, winner in enumerate(winners)]
    said: list[str] = []
    given = f"ppe-preference={parquet(tmp_path, 'data/test-00000-of-00001.parquet', rows)}"
    found = source.load((given,), "test", said.append).to_list()
    assert [(content(r["chosen"]), content(r["rejected"]), r["id"]) for r in found] == [
        ("bad", "good", "0"),
        ("good", "bad", "2"),
    ]
    assert "4 rows, 2 preferences; dropped: 2 tie" in said[0]
    assert {benchmark_of(r["source"]) for r in found} == {"ppe-preference"}


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


@pytest.mark.parametrize("chosen", [["a", "b", "c", "d"], ["a"], "abc"])
def test_rm_bench_has_three_styles_of_either_side(tmp_path, chosen):
    """Four beside three make no table of styles."""
    file = written(tmp_path, "x_filtered.json", [{**LISTS, "chosen": chosen}]) / "x_filtered.json"
    with pytest.raises(ValueError, match=r"index 0: field 'chosen': found .*, need a list of three responses"):
        read(f"rm-bench={file}")
