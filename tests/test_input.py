"""Every way in: a file itself, gzip, standard input, Parquet, a folder, a named set, and what is none of them."""

import gzip
import io
import json
import sys
from types import SimpleNamespace

import datasets
import pytest
from datasets import Dataset

from rmkit.data.cache import empty_report
from rmkit.data.json_rows import rows
from rmkit.errors import UserError
from rmkit.labelling.config import FLAGS, identity
from rmkit.labelling.index import SampleFile, build_index
from rmkit.labelling.input import plain_file

ROWS = [{"prompt": "q", "output": "\u00fc"}, {"prompt": "p", "output": "b"}]
RAW = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read(given, folder, said=None):
    with plain_file(str(given), folder, (said or []).append).open("rb") as file:
        return [row.value for row in rows(file, "x")]


@pytest.fixture
def partial(tmp_path):
    folder = tmp_path / "partial"
    folder.mkdir()
    return folder


def test_a_plain_file_is_not_copied(tmp_path, partial):
    file = tmp_path / "s.jsonl"
    file.write_bytes(RAW)
    assert plain_file(str(file), partial, print) == file
    assert not list(partial.iterdir())


@pytest.mark.parametrize("name", ["s.jsonl.gz", "s.jsonl"])
def test_gzip_by_content(tmp_path, partial, name):
    file = tmp_path / name
    file.write_bytes(gzip.compress(RAW))
    assert read(file, partial) == ROWS
    assert [part.name for part in partial.iterdir()] == ["input"]


@pytest.mark.parametrize("raw", [RAW, gzip.compress(RAW, mtime=0), json.dumps(ROWS).encode()])
def test_standard_input(partial, monkeypatch, raw):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(raw))))
    assert read("-", partial) == ROWS


def test_parquet(tmp_path, partial):
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "s.parquet"))
    assert read(tmp_path / "s.parquet", partial) == ROWS


PAIRS = [
    {"prompt": "q1", "chosen": "a", "rejected": "b", "prompt_id": "p1", "dataset": "d"},
    {"prompt": "q2", "chosen": "same", "rejected": "same", "split": "test"},
    {"prompt": "q3", "chosen": "", "rejected": "b"},
    {"prompt": "q4", "responses": ["a", "b"], "ranks": [1, 1]},
    {**{"question": "q5", "response_A": "a", "response_B": "b"}, "label": "A=B"},
    {"prompt": "q6", "output": "a", "generator": "m"},
]


def completions(given, partial):
    """What is scored of an input, with what its records keep of the row."""
    file = plain_file(str(given), partial, print)
    build_index(file, "s", partial)
    samples = SampleFile(file, "s", partial)
    found = [samples[i] for i in range(len(samples))]
    return [(sample.prompt, sample.response, sample.prompt_id, sample.record) for sample in found]


def test_a_folder_gives_what_its_file_does(tmp_path, partial):
    """It lost what training drops: identical sides, empty answers, ties, and of each row all but the pair."""
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    wanted = completions(file, partial)
    assert [response[0]["content"] for _, response, _, _ in wanted] == [
        "a",
        "b",
        "same",
        "",
        "b",
        "a",
        "b",
        "a",
        "b",
        "a",
    ]
    assert completions(file.parent, partial) == wanted


def test_a_named_set_and_a_hub_set_give_what_a_file_of_their_rows_does(tmp_path, partial, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    turns = [("a", "b"), ("same", "same"), ("", "b")]
    hh = [[f"\n\nHuman: q{i}\n\nAssistant: {side}" for side in sides] for i, sides in enumerate(turns)]
    rows = [dict(zip(("chosen", "rejected"), sides, strict=True)) for sides in hh]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Dataset.from_list(rows))
    wanted = completions(tmp_path / "s.jsonl", partial)
    assert [response[0]["content"] for _, response, _, _ in wanted] == ["a", "b", "same", "", "b"]
    for given in ("hh_harmless", "owner/name"):
        assert completions(given, partial) == wanted
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    assert completions(tmp_path / "saved", partial) == wanted


def test_a_named_set_is_read_by_its_own_rule(tmp_path, partial):
    assert len(read("demo:test", partial)) == 900
    tree = [
        {"message_id": "m", "parent_id": None, "text": "q", "role": "prompter", "rank": None, "lang": "en"},
        *(
            {"message_id": t, "parent_id": "m", "text": t, "role": "assistant", "rank": r, "lang": "en"}
            for r, t in enumerate("ab")
        ),
    ]
    (tmp_path / "trees").mkdir()
    (tmp_path / "trees" / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tree))
    ((prompt, *_), (_, response, *_)) = completions(tmp_path / "trees", partial)
    assert (prompt[0]["content"], response[0]["content"]) == ("q", "b")


def test_a_bad_row_of_a_folder_is_named_by_its_own_place(tmp_path, partial):
    """It was named by its line in the copy."""
    (tmp_path / "rows").mkdir()
    for name in ("a", "b"):
        (tmp_path / "rows" / f"{name}.jsonl").write_text(RAW.decode() + '{"output": "x"}\n{\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: field 'prompt': found nothing"):
        plain_file(str(tmp_path / "rows"), partial, print)
    report = empty_report()
    file = plain_file(str(tmp_path / "rows"), partial, print, (), "drop", report)
    counts = build_index(file, "s", partial, (), "drop", report)
    assert (counts["samples"], counts["bad"]) == (4, 4)
    assert [told.rpartition("/")[2].partition(": ")[0] for told in counts["listed"]] == [
        *("a.jsonl, line 3", "a.jsonl, line 4", "b.jsonl, line 3", "b.jsonl, line 4")
    ]


def test_fields_of_a_table_under_other_names(tmp_path, partial):
    Dataset.from_list([{"question": "q", "answer": "a"}]).to_parquet(str(tmp_path / "s.parquet"))
    file = plain_file(str(tmp_path / "s.parquet"), partial, print, ("prompt=question", "output=answer"))
    assert json.loads(file.read_text()) == {"prompt": "q", "output": "a"}
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(UserError, match="no row has such a field"):
        plain_file(str(tmp_path / "t.parquet"), partial, print, ("note=reply",))


@pytest.mark.parametrize("cut", [5, 20, 40])
def test_a_cut_gzip_file_is_named(tmp_path, partial, cut):
    file = tmp_path / "s.json.gz"
    file.write_bytes(gzip.compress(RAW)[:cut])
    with pytest.raises(ValueError, match=r"s\.json\.gz: broken or cut gzip file"):
        plain_file(str(file), partial, print)
    assert not (partial / "input").exists()


def test_nothing_by_that_name(partial):
    with pytest.raises(UserError) as caught:
        plain_file("nowhere.json", partial, print)
    assert caught.value.told(FLAGS).startswith("SAMPLES nowhere.json: no such file")


def test_identity_changes_with_the_file(tmp_path):
    file = tmp_path / "s.jsonl"
    file.write_bytes(RAW)
    before = identity(str(file))
    file.write_bytes(RAW + b"\n")
    assert identity(str(file)) != before
    assert identity("demo") == ["demo"]
