"""Every way in: a file itself, gzip, standard input, Parquet, a folder, a named set, and what is none of them."""

import gzip
import io
import json
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset

from rmkit.data.json_rows import rows
from rmkit.errors import UserError
from rmkit.labelling.config import FLAGS, identity
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


def test_a_folder_and_a_named_set_are_read_as_rmkit_train_reads_them(tmp_path, partial):
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n")
    (row,) = read(folder, partial)
    assert [row[side][0]["content"] for side in ("prompt", "chosen", "rejected")] == ["q", "a", "b"]
    assert len(read("demo:test", partial)) == 900


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
