import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from rmkit.data.files import is_data, read_rows

ROWS = [{"prompt": "q", "n": 1}, {"prompt": "\u00fc\u2028\u4e2d", "n": 2}]


def read(path):
    return list(read_rows(str(path), path.name))


def lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def array(rows=ROWS):
    return b" \n" + json.dumps(rows, indent=2).encode()


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz", ".jsonl.gz"])
@pytest.mark.parametrize(("content", "unit", "first"), [(lines(), "line", 1), (array(), "index", 0)])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_lines_and_arrays_are_told_apart_by_content(tmp_path, suffix, content, unit, first, bom):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(gzip.compress(bom + content) if suffix.endswith(".gz") else bom + content)
    assert read(file) == [(f"{unit} {first + i}", row) for i, row in enumerate(ROWS)]


def test_gzip_is_told_by_content(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(gzip.compress(lines()))
    assert [row for _, row in read(file)] == ROWS


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    for name in ("a.jsonl", "a.parquet"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(ValueError, match=rf"^{name}: it is a Git LFS pointer.*git lfs pull"):
            read(tmp_path / name)


def test_blank_lines_count_and_are_skipped(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\n{"n": 1}\r\n  \n{"n": 2}')
    assert read(file) == [("line 2", {"n": 1}), ("line 4", {"n": 2})]


def test_parquet_whose_name_looks_like_a_pattern(tmp_path):
    file = tmp_path / "a[1]*.parquet"
    Dataset.from_list([{"m": [{"role": "user", "content": "x"}], "n": None}]).to_parquet(str(file))
    assert read(file) == [("row 0", {"m": [{"role": "user", "content": "x"}], "n": None})]


@pytest.mark.parametrize("cut", [5, 12, 20])
def test_a_line_cut_in_half_is_named(tmp_path, cut):
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines() + b'{"prompt": "qqqqqqqqqqqq", "n": 3}'[:cut])
    with pytest.raises(ValueError, match=r"^a\.jsonl, line 3: found JSON that is cut off"):
        read(file)


@pytest.mark.parametrize("bad", [b'{"a": 1,}', b"{'a': 1}", b"prompt,chosen", b'{"a": 1} {"a": 2}'])
def test_a_line_that_is_no_json_is_named(tmp_path, bad):
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines() + bad + b"\n" + lines())
    with pytest.raises(ValueError, match=r"^a\.jsonl, line 3: found broken JSON"):
        read(file)


def test_an_array_cut_in_half_is_named(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(array()[:-10])
    with pytest.raises(ValueError, match=r"^a\.json, index \d: found JSON that is cut off .* line \d+, column \d+"):
        read(file)


@pytest.mark.parametrize("bad", [b"[" * 100_000, b'{"n": ' + b"1" * 5000 + b"}"])
def test_json_beyond_the_reader_is_refused_in_words(tmp_path, bad):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"n": 1}\n' + bad)
    with pytest.raises(ValueError, match=r"^a\.jsonl, line 2: found"):
        read(file)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines() + '{"prompt": "\u00fc"}'.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"^a\.jsonl, line 3: not UTF-8 .byte 0xfc at offset 12.; save the file as UTF-8"
    ):
        read(file)
    file.write_bytes(b'[\n"x",\n"\xff"]')
    with pytest.raises(ValueError, match=r"^a\.jsonl: not UTF-8 .byte 0xff near offset 8"):
        read(file)
    file.write_bytes('{"n": 1}'.encode("utf-16"))
    with pytest.raises(ValueError, match=r"^a\.jsonl, line 1: not UTF-8"):
        read(file)


@pytest.mark.parametrize("content", [b"", b"\n  \n", b"[]", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^a\.json: the file is empty"):
        read(file)


def test_an_empty_table_is_an_error(tmp_path):
    file = tmp_path / "a.parquet"
    Dataset.from_dict({"prompt": []}).to_parquet(str(file))
    with pytest.raises(ValueError, match=r"^a\.parquet: the file is empty"):
        read(file)


@pytest.mark.parametrize("content", [b"nope", gzip.compress(lines() * 100, mtime=0)[:-30]])
def test_broken_gzip(tmp_path, content):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^a\.jsonl\.gz: broken or cut gzip file"):
        read(file)


def test_broken_parquet(tmp_path):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1 nothing else")
    with pytest.raises(ValueError, match=r"^a\.parquet: not a readable Parquet file"):
        read(file)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "device", "nothing"])
def test_what_is_no_ordinary_file_is_refused_unopened(tmp_path, name, kind):
    """To open a pipe is to wait for somebody who writes."""
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    elif kind == "device":
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"^{name}: it is gone, or no ordinary file"):
        read(tmp_path / name)


def test_gzip_that_unpacks_without_measure_is_refused_in_little_memory(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"prompt": "') + gzip.compress(b"a" * (1 << 20)) * 64)
    with pytest.raises(ValueError, match=r"^a\.jsonl\.gz, line 1: longer than 16 MiB"):
        read(file)


def test_a_date_beyond_pythons_is_refused(tmp_path):
    file = tmp_path / "a.parquet"
    days = pyarrow.array([2**30], pyarrow.int32()).cast(pyarrow.date32())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": days}), file)
    with pytest.raises(ValueError, match=r"^a\.parquet: not a readable Parquet file"):
        read(file)


def test_files_are_known_by_their_names(tmp_path):
    for name in ("a.jsonl", "b.txt", ".c.json", "d.json.gz"):
        (tmp_path / name).touch()
    assert sorted(file.name for file in tmp_path.iterdir() if is_data(file)) == ["a.jsonl", "d.json.gz"]
