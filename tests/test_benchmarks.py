"""The benchmarks' own scores of pairs whose scores are known."""

from collections import Counter

import numpy as np
import pytest

from rmkit.evaluation.benchmarks import Rows, benchmark_of, scores
from rmkit.evaluation.lists import list_rows


def scored(rows: list[dict], *lost: int) -> tuple[Rows, Counter[str], Counter[str]]:
    """What is scored of some rows, without the pairs at the places `lost`, which are counted by benchmark.

    Rows have `source`, `subset`, `chosen` and `rejected` (scores, or lists of them).
    """
    source, ids, chosen, rejected, subset = [], [], [], [], []
    for row in rows:
        sides = [x if isinstance(x, list) else [x] for x in (row["chosen"], row["rejected"])]
        listed = isinstance(row["chosen"], list)
        for i, better in enumerate(sides[0]):
            for j, worse in enumerate(sides[1]):
                source.append(row["source"])
                ids.append(f"{row.get('id', '')}/{i}>{j}" if listed else row.get("id", ""))
                chosen.append(better)
                rejected.append(worse)
                subset.append(row["subset"])
    position = np.full(len(ids), -1)
    kept = np.array([i for i in range(len(ids)) if i not in lost], int)
    position[kept] = np.arange(len(kept))
    found = Rows(
        chosen=np.array(chosen, float)[kept],
        rejected=np.array(rejected, float)[kept],
        subset=np.array(subset)[kept],
        source=np.array(source)[kept],
        own=np.arange(len(kept)),
        lists=list_rows(source, ids, position),
    )
    return found, Counter(benchmark_of(source[i]) for i in lost), Counter()


def test_the_name_of_a_benchmark_is_read_from_the_place():
    assert benchmark_of("rm-bench=data/total_dataset.json:3") == "rm-bench"
    assert benchmark_of("judgebench:gpt:3") == "judgebench"
    assert benchmark_of("rewardbench2/test.jsonl:3") == ""
    assert benchmark_of("my.jsonl:3") == ""


def styled(domain: str, chosen: list[float], rejected: list[float], line: int) -> dict:
    return {"source": f"rm-bench:{line}", "subset": domain, "chosen": chosen, "rejected": rejected}


def test_rm_bench_averages_domains_and_merges_safety():
    """Against compute_accuracy of RM-Bench's README, domain by domain."""
    rng = np.random.default_rng(0)
    names = ["chat"] * 5 + ["code"] * 3 + ["math"] * 7 + ["safety-refuse"] * 4 + ["safety-response"] * 6
    rows = [styled(name, *rng.normal(size=(2, 3)).round(1).tolist(), i) for i, name in enumerate(names)]
    found = scores(*scored(rows))["rm-bench"]
    hard, normal, easy = [], [], []
    for domain in ("chat", "code", "math", "safety"):
        matrix = np.zeros((3, 3))
        some = [row for row in rows if row["subset"].startswith(domain)]
        for row in some:
            for i in range(3):
                for j in range(3):
                    matrix[i][j] += row["chosen"][i] > row["rejected"][j]
        matrix /= len(some)
        hard.append(np.triu(matrix, 1).sum() / 3)
        normal.append(np.diag(matrix).mean())
        easy.append(np.tril(matrix, -1).sum() / 3)
    assert found["hard"] == pytest.approx(np.mean(hard))
    assert found["normal"] == pytest.approx(np.mean(normal))
    assert found["easy"] == pytest.approx(np.mean(easy))
    assert found["score"] == pytest.approx(np.mean([hard, normal, easy]))
    assert {name: part["rows"] for name, part in found["parts"].items()} == {
        "chat": 5,
        "code": 3,
        "math": 7,
        "safety": 10,
    }
    assert all(part["few"] for part in found["parts"].values())


def test_rewardbench_2_is_the_mean_of_its_subsets():
    rows = [
        {"subset": "Math", "chosen": [2.0], "rejected": [1.0, 0.0, 0.0]},
        {"subset": "Math", "chosen": [1.0], "rejected": [1.0, 0.0, 0.0]},
        {"subset": "Math", "chosen": [0.0], "rejected": [1.0, 0.0, 0.0]},
        {"subset": "Focus", "chosen": [2.0], "rejected": [1.0, 0.0, 0.0]},
        {"subset": "Ties", "chosen": [3.0], "rejected": [1.0, 0.0], "id": "ref:1"},
        {"subset": "Ties", "chosen": [3.0, 2.5], "rejected": [1.0, 0.0], "id": "tied:1"},
    ]
    found = scores(*scored([{"source": f"rewardbench2:{i}", **row} for i, row in enumerate(rows)]))["rewardbench2"]
    assert found["parts"]["Math"]["score"] == pytest.approx(0.5)
    # Margins 2 and 1.5 over a spread of 0.5: every part of the rule is met, and the last one by tanh(3 - 1).
    ties = 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * np.tanh(2.0)
    assert found["parts"]["Ties"]["score"] == pytest.approx(ties)
    assert found["score"] == pytest.approx((0.5 + 1.0 + ties) / 3)


def pair(source: str, subset: str, right: bool, **more) -> dict:
    return {"source": source, "subset": subset, "chosen": float(right), "rejected": float(not right), **more}


def test_judgebench_pools_pairs_and_ppe_correctness_averages_benchmarks():
    parts = [("a", True), ("a", True), ("a", False), ("b", False)]
    pooled = [pair(f"judgebench:gpt:{i}", name, right) for i, (name, right) in enumerate(parts)]
    averaged = [pair(f"ppe-correctness:{i}", name, right) for i, (name, right) in enumerate(parts)]
    found = scores(*scored([*pooled, *averaged, pair("mine.jsonl:1", "a", True)]))
    assert set(found) == {"judgebench", "ppe-correctness"}
    assert found["judgebench"]["score"] == pytest.approx(0.5)
    assert found["ppe-correctness"]["score"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["judgebench"]["parts"]["a"] == {"score": pytest.approx(2 / 3), "rows": 3, "few": True}


def test_judgebench_has_a_score_for_each_response_model():
    """Its own program takes one of its two files."""
    files = [f"data/dataset=judgebench,response_model={name}.jsonl" for name in ("gpt-4o", "claude-3")]
    right = [(files[0], True), (files[0], True), (files[0], False), (files[1], False)]
    found = scores(*scored([pair(f"judgebench=/x/{file}:{i}", "math", r) for i, (file, r) in enumerate(right)]))
    assert found["judgebench"]["score"] == pytest.approx(0.5)
    assert found["judgebench"]["models"] == {
        "claude-3": {"score": 0.0, "rows": 1, "few": True},
        "gpt-4o": {"score": pytest.approx(2 / 3), "rows": 3, "few": True},
    }
    hub = [pair(f"judgebench:ScalerLab/JudgeBench:{part}:7", "math", True) for part in ("gpt", "claude")]
    assert set(scores(*scored(hub))["judgebench"]["models"]) == {"gpt", "claude"}


@pytest.mark.parametrize("name", ["rewardbench", "judgebench", "ppe-preference", "ppe-correctness", "rmb"])
def test_dropped_pairs_are_counted(name):
    rows = [pair(f"{name}:{i}", "Helpfulness/Chat", i < 2) for i in range(4)]
    found = scores(*scored([*rows, pair("mine.jsonl:1", "a", True)], 0, 4))
    assert set(found) == {name}, "rows of no benchmark are of none"
    assert found[name]["score"] == pytest.approx(1 / 3)
    assert found[name]["left_out"] == {"rows": 0, "pairs": 1, "lists": 0}
    nothing = scores(*scored([*rows, pair("mine.jsonl:1", "a", True)], 0, 1, 2, 3))[name]
    assert (nothing["score"], nothing["parts"], nothing["left_out"]) == (None, {}, {"rows": 0, "pairs": 4, "lists": 0})


@pytest.mark.parametrize(("name", "subset"), [("rm-bench", "chat"), ("rewardbench2", "Math"), ("rmb", "Helpfulness/A")])
def test_lists_that_lack_a_pair_are_counted_and_measured_nowhere(name, subset):
    shape = {"rm-bench": ([2.0, 2.0], [1.0, 1.0]), "rewardbench2": ([2.0], [1.0, 1.0]), "rmb": ([2.0], [1.0, 1.0])}
    sides = dict(zip(("chosen", "rejected"), shape[name], strict=True))
    rows = [{"source": f"{name}:{i}", "subset": subset, "id": str(i), **sides} for i in range(2)]
    found = scores(*scored(rows, 0))[name]
    assert found["score"] == 1.0
    assert [part["rows"] for part in found["parts"].values()] == [1]
    assert found["left_out"] == {"rows": 0, "pairs": 1, "lists": 1}
    of_one = len(shape[name][0]) * 2
    nothing = scores(*scored(rows, 0, of_one))[name]
    assert (nothing["score"], nothing["parts"], nothing["left_out"]) == (None, {}, {"rows": 0, "pairs": 2, "lists": 2})


def test_rmb_has_pairs_and_best_of_n_for_both_goals():
    rows = [
        pair("rmb=x.json:1", "Helpfulness/Chat", True),
        pair("rmb=x.json:2", "Helpfulness/Code", False),
        pair("rmb=y.json:1", "Harmlessness/S1", True),
        {"source": "rmb=z.json:1", "subset": "Helpfulness/Chat", "chosen": [2.0], "rejected": [1.0, 2.0]},
        {"source": "rmb=z.json:2", "subset": "Helpfulness/Chat", "chosen": [3.0], "rejected": [1.0, 2.0]},
        {"source": "rmb=z.json:3", "subset": "Harmlessness/S1", "chosen": [3.0], "rejected": [1.0, 2.0]},
    ]
    found = scores(*scored(rows))["rmb"]
    assert {name: part["score"] for name, part in found["parts"].items()} == {
        "Helpfulness, pairs": 0.5,
        "Harmlessness, pairs": 1.0,
        "Helpfulness, best of n": 0.5,
        "Harmlessness, best of n": 1.0,
    }
    assert found["score"] == pytest.approx(0.75)


def test_sections_are_for_rows_of_rewardbench_alone():
    rows = [pair("rewardbench:1", "hep-go", True), pair("mine.jsonl:1", "hep-go", False)]
    found = scores(*scored(rows))
    assert found["rewardbench"]["parts"] == {"Reasoning": {"score": 1.0, "rows": 1, "few": True}}
