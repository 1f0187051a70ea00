import json

import datasets
import pytest
from datasets import Dataset

from rmkit.data import cache, reading
from rmkit.data.cache import Source, build, features
from support.true_rows import call, true_rows

ROWS = [
    {"prompt": "q", "chosen": "a", "rejected": "b", "split": "test"},
    {"prompt": "q", "chosen": "a", "rejected": "a", "split": "train"},
    {"prompt": "q", "chosen": "a", "rejected": "c", "split": None},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_report_is_no_preference():
    built, report = build(Source(shown="x", own_split="train"), Dataset.from_list(ROWS))
    assert built.features == features()
    assert built["source"][:] == ["x:2"]
    dropped = {"other split": 1, "identical chosen and rejected": 1}
    flaws = {"identical chosen and rejected": 1}
    known = {"form": "explicit prompt", "rows": 3, "dropped": dropped, "flaws": flaws, "bad": []}
    assert report == known | {"benchmark": "", "columns": [], "unused": [], "speakers": 0}


def test_what_is_judged_keeps_ties_and_empty_answers():
    """As benchmarks count them."""
    rows = [row | {"rejected": [{"role": "assistant", "content": row["rejected"]}]} for row in ROWS]
    rows[0]["rejected"] = []
    built, report = build(Source(shown="x", judged=True), Dataset.from_list(rows))
    assert (report["dropped"], report["flaws"], len(built)) == ({}, {}, 3)
    assert built["rejected"][0] == [{"role": "assistant", "content": ""}]


def test_what_is_built_is_a_slice_without_an_index():
    """An indices mapping would turn every later read into a random one."""
    built, _ = build(Source(shown="x"), Dataset.from_list(ROWS))
    assert built._indices is None


def test_nothing_left_is_an_empty_dataset():
    built, report = build(Source(shown="x"), Dataset.from_list(ROWS[1:2]))
    assert len(built) == 0
    assert built.features == features()
    assert report["rows"] == 1


def test_another_version_of_the_code_reads_anew(monkeypatch):
    rows = Dataset.from_list(ROWS)
    build(Source(shown="x"), rows)
    monkeypatch.setattr(reading, "preferences", lambda row, form: [])
    assert len(build(Source(shown="x"), rows)[0]) == 2
    monkeypatch.setattr(cache, "_code", lambda: "another")
    assert len(build(Source(shown="x"), rows)[0]) == 0


def test_a_full_disk_is_a_sentence(monkeypatch):
    def full(row, form):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reading, "preferences", full)
    with pytest.raises(ValueError, match=r"^x: .*No space left on device"):
        build(Source(shown="x"), Dataset.from_list(ROWS))


def test_a_failure_that_is_not_ours_keeps_its_traceback(monkeypatch):
    def broken(row, form):
        raise ZeroDivisionError

    monkeypatch.setattr(reading, "preferences", broken)
    with pytest.raises(datasets.exceptions.DatasetGenerationError) as caught:
        build(Source(shown="x"), Dataset.from_list(ROWS))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_is_not_read_is_reported_by_name():
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [row | {"source": "x", "model": None}, row | {"source": None, "model": "m"}]
    assert build(Source(shown="x"), Dataset.from_list(rows))[1]["unused"] == ["model", "source"]


def test_columns_of_other_names():
    rows = Dataset.from_list([{"question": "q", "best": "a", "worst": "b", "input": "x"}])
    named = ("prompt=question", "chosen=best", "rejected=worst", "input=")
    built, report = build(Source(shown="x", columns=named), rows)
    assert (built["prompt"][0], report["columns"]) == ([{"role": "user", "content": "q"}], list(named))
    with pytest.raises(ValueError, match=r"x, row 0: columns .*found no field bset"):
        build(Source(shown="x", columns=("prompt=question", "chosen=bset")), rows)


def test_ties_are_counted_and_pairs_that_differ_in_tool_calls_are_kept():
    prompt = [{"role": "user", "content": "q"}]
    rows = [{"prompt": prompt, "chosen": [call("Ulm")], "rejected": [call(city)]} for city in ("Aalen", "Ulm")]
    built, report = build(Source(shown="x"), Dataset.from_list(rows))
    assert built["source"][:] == ["x:0"]
    assert report["dropped"] == {"identical chosen and rejected": 1}
    tied = [true_rows()["WebGPT"][1] | {"score_0": 0.5}]
    assert build(Source(shown="x"), Dataset.from_list(tied))[1]["dropped"] == {"tie": 1}


def test_helpsteer_rows_that_follow_one_another_are_one():
    row = true_rows()["HelpSteer2"][1]
    rows = [row | {"helpfulness": 1, "response": "bad"}, row, row | {"prompt": "alone"}]
    built, report = build(Source(shown="x"), Dataset.from_list(rows))
    assert [turn["content"] for turn in (built["chosen"][0][0], built["rejected"][0][0])] == ["good", "bad"]
    assert json.loads(built["ratings"][0])["rejected"]["helpfulness"] == 1
    assert (report["rows"], report["dropped"]) == (3, {"no responses of different rank": 1})


def test_a_file_of_a_named_set_is_read_by_its_converter(tmp_path):
    row = true_rows()["SHP"][1]
    rows = [row | {"human_ref_A": f"bad{i}"} for i in range(7)] + [row | {"score_A": 7}]
    (tmp_path / "shp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    built, report = build(Source(shown="x", path=str(tmp_path / "shp.jsonl"), own_split="train"), None)
    assert report["dropped"] == {"beyond 5 pairs of its prompt": 2, "score ratio below 2": 1}
    assert (report["rows"], len(built), built["rejected"][0][0]["content"][:3]) == (8, 5, "bad")
    assert set(built["source"]) <= {f"x:{line}" for line in range(1, 9)}
    assert len(build(Source(shown="x", path=str(tmp_path / "shp.jsonl"), own_split="test"), None)[0]) == 8
