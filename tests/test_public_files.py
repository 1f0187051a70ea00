"""The campaign on public files, on a file of our own: what is read alike, and what would be seen if it were not."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

from campaigns import public_files, public_readers

ROWS = [
    {"scenario": "s", "label": label, "prompt": f"ask {i}", "response 1": f"first {i}", "response 2": f"second {i}"}
    for i, label in enumerate([0, 1, 2, 1, 0])
]
FILE = public_readers.File(
    **{"repository": "owner/name", "commit": "c", "path": "a.jsonl", "rows": 5},
    **{"read": public_readers.auto_j, "shape": "auto-j"},
)


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """Runs the campaign on FILE with something changed; its status and what it wrote."""
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(**change):
        monkeypatch.setattr(public_files, "FILES", (replace(FILE, **change),))
        status = public_files.main([str(tmp_path), "--out", str(tmp_path / "found.json")])
        return status, json.loads((tmp_path / "found.json").read_text())["files"][0]

    return run


def test_a_file_is_read_alike_and_every_row_is_accounted_for(campaign):
    status, found = campaign()
    assert (status, found["faults"], found["compared"], found["equal"]) == (0, [], 5, 5)
    assert found["counts"]["rows"] == found["counts"]["rows_read"] == 5
    assert found["counts"]["pairs_dropped"] == {"tie": 1}


def turned(row):
    """The other answer is the better one."""
    return public_readers.auto_j({**row, "label": {0: 1, 1: 0, 2: 0}[row["label"]]})


def test_another_reading_is_seen(campaign):
    status, found = campaign(read=turned, rows=6, shape="LLMBar")
    assert (status, found["equal"]) == (1, 0)
    assert found["faults"] == [
        "5 rows, not 6",
        "4 pairs, not 5",
        "not read as LLMBar",
        "0 of 5 rows are read alike",
    ]


def test_the_other_reading_is_no_part_of_rmkit():
    tree = ast.parse(Path(public_readers.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.name for node in imports for name in node.names} | {getattr(node, "module", "") for node in imports}
    assert not any(name and name.startswith("rmkit") for name in names)
