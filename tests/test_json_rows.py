"""Rows one at a time: lines and arrays, the bytes they stand in, blocks that cut anywhere, and every broken file."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmkit.data import json_rows as rows_module
from rmkit.data.json_rows import rows, unit

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def read(file):
    with file.open("rb") as opened:
        return list(rows(opened, file.name))


def unit_of(file):
    with file.open("rb") as opened:
        return unit(opened)


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("kind", ["objects", "wrapped", "wrapped and printed"])
def test_objects_over_several_lines_and_a_list_in_an_object(tmp_path, monkeypatch, block, kind):
    """As jq and json.dump(indent=2) print them; each row stands where it is said to stand."""
    monkeypatch.setattr(rows_module, "BLOCK", block)
    values = [{"prompt": "\u00fc", "n": [1, {"a": 2}]}, {"prompt": "b"}, {}]
    if kind == "objects":
        text = "\n".join(json.dumps(value, indent=2, ensure_ascii=False) for value in values if value) + "\n"
        values = values[:2]
    else:
        text = json.dumps({"data": values}, indent=2 if "printed" in kind else None, ensure_ascii=False)
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8")
    assert unit_of(file) == "index"
    found = read(file)
    assert [(row.number, row.value) for row in found] == list(enumerate(values))
    raw = file.read_bytes()
    assert [json.loads(raw[row.offset : row.offset + row.length]) for row in found] == values


def test_more_beside_a_list_in_an_object_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"data": [{"a": 1}], "version": 2}')
    with pytest.raises(ValueError, match="where the end of the object around the list should stand"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("ascii_only", [True, False])
@settings(max_examples=15, deadline=None)
@given(values=st.lists(VALUES, min_size=1, max_size=5), indent=st.sampled_from([None, 2]))
def test_an_array_is_read_as_json_reads_it(tmp_path_factory, bom, block, ascii_only, values, indent):
    """However its bytes fall into blocks; each row stands where it is said to stand."""
    file = tmp_path_factory.mktemp("a") / "a.json"
    raw = bom + b"\n " + json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:  # half a surrogate pair, which is no UTF-8
        return
    file.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BLOCK", block)
        found = read(file)
    assert [row.value for row in found] == values
    assert [row.number for row in found] == list(range(len(values)))
    assert [json.loads(raw[row.offset : row.offset + row.length]) for row in found] == values
    assert unit_of(file) == "index"


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_lines_know_their_bytes(tmp_path, bom):
    file = tmp_path / "a.jsonl"
    raw = bom + '{"a": "\u00fc\u2028"}\r\n\n  \n{"a": 2}'.encode()
    file.write_bytes(raw)
    found = read(file)
    assert [row.number for row in found] == [1, 4]
    assert [json.loads(raw[row.offset : row.offset + row.length]) for row in found] == [{"a": "\u00fc\u2028"}, {"a": 2}]
    assert unit_of(file) == "line"


WHOLE = b'[{"a": "one"}, {"a": "two"}, {"a": "three"}]'


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_an_array_cut_anywhere_is_refused(tmp_path, monkeypatch, cut, block):
    monkeypatch.setattr(rows_module, "BLOCK", block)
    file = tmp_path / "half.json"
    file.write_bytes(WHOLE[:cut])
    with pytest.raises(ValueError, match=r"^half\.json, index \d: found JSON that is cut off"):
        read(file)


BROKEN = {
    "no comma": (b'[{"a": 1} {"a": 2}]', "index 0: found broken JSON .*comma"),
    "comma at the end": (b'[{"a": 1},]', "index 0: found broken JSON .*another element"),
    "something behind": (b'[{"a": 1}] {"a": 2}', "found broken JSON .*nothing behind"),
    "single quotes": (b"[{'a': 1}, " + b'{"a": 1},' * 9 + b"]", "index 0: found broken JSON"),
    "not UTF-8": (b'[{"a": "\xff"}]', "not UTF-8 .*offset 8"),
    "cut inside a character": (b'[{"a": "\xc3', "not UTF-8"),
    "empty": (b"", "empty"),
    "blanks": (b" \n\n", "empty"),
    "no element": (b"[ ]", "empty"),
    "half a line": (b'{"a": 1}\n{"a": ', "line 2: found JSON that is cut off"),
    "thousands of digits": (b'[{"a": ' + b"1" * 5000 + b"}]", "index 0: found JSON that cannot be read"),
    "thousands of brackets": (b"[" * 100_000, "cannot be read|cut off"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(tmp_path, name):
    raw, words = BROKEN[name]
    file = tmp_path / "bad.json"
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=rf"^bad\.json.*({words})"):
        read(file)


def test_a_broken_element_is_found_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "BLOCK", 64)
    file = tmp_path / "bad.json"
    file.write_bytes(b'[{"a" 1}, ' + b'{"a": 1}, ' * 1000 + b"1]")
    reads = []
    grow = rows_module._Window.grow
    monkeypatch.setattr(rows_module._Window, "grow", lambda self: reads.append(1) or grow(self))
    with pytest.raises(ValueError, match="index 0: found broken JSON"):
        read(file)
    assert len(reads) < 4


LONG = {
    "a line": b'{"a": 1}\n{"a": "' + b"x" * 300 + b'"}\n',
    "an element": b'[{"a": 1}, {"a": "' + b"x" * 300 + b'"}]',
    "a text without an end": b'[{"a": 1}, {"a": "' + b"x" * 5000,
    "a list without an end": b'[{"a": 1}, [' + b"[], " * 5000,
}


@pytest.mark.parametrize("name", LONG)
def test_a_row_without_measure_is_refused_unread(tmp_path, monkeypatch, name):
    monkeypatch.setattr(rows_module, "LONGEST", 200)
    monkeypatch.setattr(rows_module, "BLOCK", 64)
    file = tmp_path / "long.json"
    file.write_bytes(LONG[name])
    with pytest.raises(ValueError, match=r"^long\.json, (line 2|index 1): longer than 0 MiB"):
        read(file)


def test_blank_lines_without_an_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "BLANKS", 100)
    file = tmp_path / "blank.jsonl"
    file.write_bytes(b'{"a": 1}\n' + b"\n" * 90 + b'{"a": 2}\n' + b"\n" * 90 + b'{"a": 3}')
    assert [row.number for row in read(file)] == [1, 92, 183]
    file.write_bytes(b'{"a": 1}\n' + b"\n" * 101)
    with pytest.raises(ValueError, match=r"^blank\.jsonl, line 102: found nothing but blanks"):
        read(file)


@pytest.mark.parametrize("array", [True, False])
def test_what_is_too_deep_to_be_written_again_is_refused(tmp_path, array):
    """json.dumps with an indent calls itself once a level, and ended a labelling after all was scored."""
    file = tmp_path / "deep.json"
    deepest = rows_module.DEEPEST

    def row(levels):
        return b'{"a": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    file.write_bytes(b"[" + row(deepest) + b"]" if array else row(deepest))
    assert len(read(file)) == 1
    file.write_bytes(b"[" + row(deepest + 1) + b"]" if array else row(deepest + 1))
    with pytest.raises(ValueError, match=r"deep\.json, (index 0|line 1): found lists and objects more than 100 deep"):
        read(file)
    file.write_bytes(b'[{"a": "' + b"[" * 500 + b'"}]')
    assert len(read(file)) == 1, "brackets within a text are none"
