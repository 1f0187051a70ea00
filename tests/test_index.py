"""The index: where samples stand, duplicates of preferences, prompts put together."""

import itertools
import json

import numpy as np
import pytest

from rmkit.labelling import index
from rmkit.labelling.index import SampleFile, build_index, by_prompt, tell

NONE = {"speakers": 0, "bad": 0, "listed": [], "kept": [], "unused": []}


def written(folder, rows, array=False):
    file = folder / "s.json"
    file.write_text(json.dumps(rows, indent=1) if array else "".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("array", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 1 << 16])
def test_samples_are_looked_up_in_any_order(tmp_path, monkeypatch, array, batch):
    monkeypatch.setattr(index, "BATCH", batch)
    rows = [{"prompt": f"\u00fc{i}", "responses": [f"{i}-{j}" for j in range(1 + i % 3)]} for i in range(9)]
    file = written(tmp_path, rows, array)
    counts = build_index(file, "s.json", tmp_path)
    samples = SampleFile(file, "s.json", tmp_path)
    wanted = [(row["prompt"], response) for row in rows for response in row["responses"]]
    assert counts == {"rows": 9, "samples": len(wanted), "duplicates": 0} | NONE
    for i in [*range(len(samples)), *reversed(range(len(samples)))]:
        found = samples[i]
        assert (found.prompt[0]["content"], found.response[0]["content"]) == wanted[i]
    assert samples.where(3) == ("s.json, index 2" if array else "s.json, line 3")
    assert json.loads((tmp_path / "index.json").read_text()) == counts


def test_a_side_in_several_preferences_is_one_sample_but_equal_samples_stay(tmp_path):
    pairs = [{"prompt": "q", "chosen": a, "rejected": b} for a, b in ("ab", "bc", "ca")]
    equal = [{"prompt": "q", "output": "a", "sample_id": i} for i in range(2)]
    file = written(tmp_path, [*pairs, *equal])
    assert build_index(file, "s", tmp_path) == {"rows": 5, "samples": 5, "duplicates": 3} | NONE
    samples = SampleFile(file, "s", tmp_path)
    assert [samples[i].response[0]["content"] for i in range(5)] == ["a", "b", "c", "a", "a"]
    assert len(by_prompt(samples.index["group"])[1]) == 2


def test_rows_whose_prompt_holds_turns_as_text_are_counted(tmp_path):
    literal = {"prompt": "Go on:\n\nHuman: q", "responses": ["a", "b"]}
    marked = {"prompt": "q\n<extra_id_1>Assistant\na\n<extra_id_1>User\nr", "output": "b"}
    read = {"prompt": "\n\nHuman: q\n\nAssistant:", "output": "b"}
    assert build_index(written(tmp_path, [literal, marked, read]), "s", tmp_path)["speakers"] == 2


def test_a_bad_row_is_named_and_no_index_is_left(tmp_path):
    file = written(tmp_path, [{"prompt": "q", "output": "a"}, {"output": "a"}])
    with pytest.raises(ValueError, match=r"^s\.json, line 2: field 'prompt': found nothing"):
        build_index(file, "s.json", tmp_path)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("array", [True, False])
def test_bad_rows_are_left_out_counted_and_listed(tmp_path, array):
    good = [{"prompt": "q", "output": "a"}, {"prompt": "r", "responses": ["b", "c"]}]
    file = written(tmp_path, [*({"output": i} for i in range(25)), good[0], ["no row"], good[1]], array)
    counts = build_index(file, "s", tmp_path, (), "drop")
    assert (counts["rows"], counts["samples"], counts["bad"], len(counts["listed"])) == (2, 3, 26, 20)
    assert counts["listed"][0].startswith("s, index 0: " if array else "s, line 1: ")
    samples = SampleFile(file, "s", tmp_path)
    assert [samples[i].response[0]["content"] for i in range(3)] == ["a", "b", "c"]
    assert samples.where(0) == ("s, index 25" if array else "s, line 26")


def test_a_row_that_would_be_scored_without_its_passage_is_a_bad_row(tmp_path):
    rows = [{"prompt": "q", "context": None, "output": "a"}, {"prompt": "q", "context": "p", "output": "a"}]
    file = written(tmp_path, rows)
    with pytest.raises(ValueError, match=r"^s, line 2: field 'context': found the text 'p' beside a prompt"):
        build_index(file, "s", tmp_path)
    counts = build_index(file, "s", tmp_path, (), "drop")
    assert (counts["samples"], counts["bad"]) == (1, 1)
    assert build_index(file, "s", tmp_path, ("context=",))["samples"] == 2


def test_fields_that_are_not_scored_are_said_once_a_file(tmp_path):
    halos = {"prompt": "q", "output": "a", "generator": "m", "dataset": "d", "prompt_id": 0, "sample_id": 1}
    rows = [halos, {**halos, "source": "x"}, {**halos, "responses": ["b"], "source": "y"}]
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "documents": ["d"]}
    said = []
    for given in ([halos], [*rows, pair]):
        counts = build_index(written(tmp_path, given), "s", tmp_path)
        for keeps in (True, False):
            tell(counts, "s", said.append, keeps)
    assert said[:2] == ["s: 1 completions in 1 rows"] * 2
    start = "s: 5 completions in 4 rows; not used: "
    assert said[2:] == [
        f"{start}documents, responses; kept in the records, not scored: source",
        f"{start}documents, responses, source",
    ]


def test_a_line_that_is_no_json_is_a_bad_row(tmp_path):
    file = tmp_path / "s"
    file.write_text('{"prompt": \n{"question": "q", "answer": "a"}\n')
    counts = build_index(file, "s", tmp_path, ("prompt=question", "output=answer"), "drop")
    assert (counts["samples"], counts["bad"]) == (1, 1)
    assert SampleFile(file, "s", tmp_path)[0].prompt == [{"role": "user", "content": "q"}]


def test_where_all_rows_are_bad_nothing_is_indexed(tmp_path):
    file = written(tmp_path, [{"output": "a"}, {"output": "b"}])
    with pytest.raises(
        ValueError, match=r"^s: no completion is left \(2 rows cannot be read; the first is s, line 1: "
    ):
        build_index(file, "s", tmp_path, (), "drop")
    file = written(tmp_path, [{"prompt": "q", "chosen": [], "rejected": []}])
    with pytest.raises(ValueError, match=r"^s: no completion is left$"):
        build_index(file, "s", tmp_path)


@pytest.mark.parametrize("now", [b"", b'{"prompt": "p", "output": "x"}\n', b'{"prompt": 1}\n', b"\xff" * 30, b"[" * 30])
def test_a_file_that_has_changed_gives_no_other_sample(tmp_path, now):
    """The score of a text that stands elsewhere by now would be written beside this one."""
    file = written(tmp_path, [{"prompt": "q", "output": "a"}])
    build_index(file, "s.json", tmp_path)
    samples = SampleFile(file, "s.json", tmp_path)
    assert samples[0].response[0]["content"] == "a"
    file.write_bytes(now)
    with pytest.raises(ValueError, match=r"^s\.json, (line|index) 1: it has changed since the file was read first"):
        SampleFile(file, "s.json", tmp_path)[0]


def test_by_prompt():
    order, starts = by_prompt(np.array([7, -3, 7, 5, -3, 7]))
    assert order.tolist() == [0, 2, 5, 1, 4, 3]
    assert starts.tolist() == [0, 3, 5, 6]


def test_by_prompt_of_random_groups():
    rng = np.random.default_rng(0)
    group = rng.integers(-50, 50, 400)
    order, starts = by_prompt(group)
    parts = [order[a:b].tolist() for a, b in itertools.pairwise(starts)]
    seen = {}
    for i, g in enumerate(group.tolist()):
        seen.setdefault(g, []).append(i)
    assert parts == list(seen.values())
