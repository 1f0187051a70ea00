"""RewardBench's sections and file, and rows of several responses put together again from their pairs."""

import json
from collections import Counter

import numpy as np
import pytest

from rmkit.data.forms import detect, preferences
from rmkit.evaluation import benchmarks


def test_weights_are_the_published_ones():
    weights = {name: sum(subsets.values()) for name, subsets in benchmarks.SECTIONS.items()}
    assert weights == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968, "Prior": 4}


def test_sections_of_known_accuracies():
    found = benchmarks.sections(
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
    assert benchmarks.sections({"chat": 0.5, "math": 0.5}) is None


def read(rows: list[dict], file: str = "f.jsonl") -> tuple[list[str], list[str]]:
    """Source and id of the pairs of some rows, by the reader itself."""
    found = [(f"{file}:{i}", p["id"]) for i, row in enumerate(rows, 1) for p in preferences(row, detect(row))]
    return [where for where, _ in found], [name for _, name in found]


def styled(k: int, m: int, **more) -> dict:
    return {"prompt": "q", "chosen": [f"c{i}" for i in range(k)], "rejected": [f"r{j}" for j in range(m)], **more}


@pytest.mark.parametrize("more", [{}, {"id": 7}, {"id": "a/1>2"}])
def test_rows_are_put_together_with_and_without_an_id(more):
    source, ids = read([styled(3, 3, **more), styled(3, 3, **more)])
    rows, broken = benchmarks.list_rows(source, ids, np.arange(18))
    assert not broken
    assert [row.pairs.tolist() for row in rows] == [
        np.arange(9).reshape(3, 3).tolist(),
        np.arange(9, 18).reshape(3, 3).tolist(),
    ]
    assert rows[0].file == "f.jsonl"


def test_a_row_with_a_dropped_pair_is_left_out():
    source, ids = read([styled(3, 3), styled(3, 3)])
    position = np.arange(18)
    position[13] = -1
    rows, broken = benchmarks.list_rows(source, ids, position)
    assert (len(rows), broken.total()) == (1, 1)


def test_ranked_and_plain_rows_are_no_lists():
    ranked = {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [1, 2, 3], "id": "r"}
    source, ids = read([ranked, styled(1, 1, id=1), {"prompt": "q", "chosen": "a", "rejected": "b", "id": "x"}])
    assert benchmarks.list_rows(source, ids, np.arange(len(ids))) == ([], Counter())


def shapes(rows) -> list[tuple]:
    return [row.pairs.shape for row in rows]


def test_a_file_of_squares_holds_styles_and_any_other_best_of_n():
    sources: list[str] = []
    names: list[str] = []
    for file, rows in {
        "rm.json": [styled(3, 3), styled(3, 3)],
        "rb2.jsonl": [styled(1, 3), styled(2, 2), styled(2, 4)],
        "two.jsonl": [styled(2, 2)],
        "squares.jsonl": [styled(2, 2), styled(3, 3)],
    }.items():
        source, ids = read(rows, file)
        sources += source
        names += ids
    rows, broken = benchmarks.list_rows(sources, names, np.arange(len(names)))
    styles, best = benchmarks.part_rows(rows)
    assert not broken
    assert [shapes(some) for some in styles] == [[(2, 2)], [(3, 3), (3, 3)]]
    assert shapes(best) == [(1, 3), (2, 2), (2, 4), (2, 2), (3, 3)]


def turn(role: str, text: str) -> dict:
    return {"role": role, "content": text}


def test_rewardbench_file_holds_whole_conversations_only(tmp_path):
    plain = {"prompt": [turn("user", "q")], "chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]}
    plain["more"] = None
    system = {**plain, "prompt": [turn("system", "s"), turn("user", "q")], "id": "x", "subset": "y"}
    several = {**plain, "rejected": [turn("assistant", "a"), turn("user", "?"), turn("assistant", "c")]}
    tools = {**plain, "more": '{"options": {"tools": []}}'}
    file, said = tmp_path / "rb.jsonl", []
    benchmarks.write_rewardbench(file, [plain, system, several, tools], said.append)
    first, second, *_ = (json.loads(line) for line in file.read_text().splitlines())
    assert first == {side: plain["prompt"] + plain[side] for side in ("chosen", "rejected")}
    assert set(second) == {"chosen", "rejected"}
    assert [p.name for p in tmp_path.iterdir()] == ["rb.jsonl"]
    assert "4 pairs" in said[0]
    assert "read 3 of them otherwise" in said[1]


def test_rewardbench_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"--export rewardbench .*could not be written"):
        benchmarks.write_rewardbench(tmp_path / "absent" / "rb.jsonl", [], print)
