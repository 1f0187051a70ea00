"""Rows of several responses put together again from their pairs."""

import numpy as np
import pytest

from rmkit.data.forms import detect, preferences
from rmkit.evaluation import lists


def read(rows: list[dict], file: str = "f.jsonl") -> tuple[list[str], list[str]]:
    """Source and id of the pairs of some rows, by the reader itself."""
    found = [(f"{file}:{i}", p["id"]) for i, row in enumerate(rows, 1) for p in preferences(row, detect(row))]
    return [where for where, _ in found], [name for _, name in found]


def styled(k: int, m: int, **more) -> dict:
    return {"prompt": "q", "chosen": [f"c{i}" for i in range(k)], "rejected": [f"r{j}" for j in range(m)], **more}


@pytest.mark.parametrize("more", [{}, {"id": 7}, {"id": "a/1>2"}])
def test_rows_are_put_together_with_and_without_an_id(more):
    source, ids = read([styled(3, 3, **more), styled(3, 3, **more)])
    rows = lists.list_rows(source, ids, np.arange(18))
    assert all(row.whole for row in rows)
    assert [row.pairs.tolist() for row in rows] == [
        np.arange(9).reshape(3, 3).tolist(),
        np.arange(9, 18).reshape(3, 3).tolist(),
    ]
    assert rows[0].file == "f.jsonl"


def test_a_row_with_a_dropped_pair_lacks_it():
    source, ids = read([styled(3, 3), styled(3, 3)])
    position = np.arange(18)
    position[13] = -1
    rows = lists.list_rows(source, ids, position)
    assert [row.whole for row in rows] == [True, False]
    assert rows[1].pairs.tolist() == [[9, 10, 11], [12, -1, 14], [15, 16, 17]]


def test_ranked_and_plain_rows_are_no_lists():
    ranked = {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [1, 2, 3], "id": "r"}
    source, ids = read([ranked, styled(1, 1, id=1), {"prompt": "q", "chosen": "a", "rejected": "b", "id": "x"}])
    assert lists.list_rows(source, ids, np.arange(len(ids))) == []


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
    rows = lists.list_rows(sources, names, np.arange(len(names)))
    styles, best = lists.part_rows(rows)
    assert [shapes(some) for some in styles] == [[(2, 2)], [(3, 3), (3, 3)]]
    assert shapes(best) == [(1, 3), (2, 2), (2, 4), (2, 2), (3, 3)]
