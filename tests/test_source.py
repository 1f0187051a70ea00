import json
import os
import sys
import types
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from rmkit.data.cache import features
from rmkit.data.counts import Counts
from rmkit.data.source import load, overlap
from support.true_rows import true_rows

BAD = {"role": "assistant", "content": "bad"}
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def row(i, **more):
    return {"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}", **more}


def write(path, *rows):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def read(*names, split="train"):
    said = []
    return load(names, split, said.append), said


def prompts(found):
    return [prompt[0]["content"] for prompt in found["prompt"]]


def hub_of(monkeypatch, **splits):
    """`load_dataset` for any hub id, answered by the real one from local files; returns what was asked."""
    real, asked = datasets.load_dataset, []
    files = {}
    for split, rows in splits.items():
        Dataset.from_list(rows).to_parquet(f"hub/{split}.parquet")
        files[split] = f"hub/{split}.parquet"

    def load_dataset(path, **options):
        asked.append((path, options))
        return real("parquet", data_files=files, split=options["split"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_columns_and_sources_in_order():
    a = write("a.jsonl", row(1, margin=2, target=0.5, id=7), row(2))
    Path("b.json").write_text(json.dumps([row(3)]))
    found, said = read("b.json", a)
    assert found.features == features()
    assert found["source"][:] == ["b.json:0", "a.jsonl:1", "a.jsonl:2"]
    assert found[1] == {
        "prompt": [{"role": "user", "content": "q1"}],
        "chosen": [{"role": "assistant", "content": "good 1"}],
        "rejected": [{"role": "assistant", "content": "bad 1"}],
        "more": None,
        "margin": 2.0,
        "weight": 1.0,
        "target": 0.5,
        "ratings": None,
        "compared": 1.0,
        "subset": "",
        "id": "7",
        "source": "a.jsonl:1",
    }
    assert found[2]["target"] is None
    assert said == [
        "b.json: explicit prompt; 1 rows, 1 preferences",
        "a.jsonl: explicit prompt; 2 rows, 2 preferences",
    ]


def test_what_is_dropped_is_counted_by_reason_again_from_the_cache():
    file = write(
        "a.jsonl",
        row(1),
        row(2, rejected="good 2"),
        row(3, chosen=" \n"),
        row(4, rejected=[]),
        row(5, split="test"),
    )
    for _ in range(2):
        found, said = read(file)
        assert prompts(found) == ["q1"]
        assert said == [
            "a.jsonl: explicit prompt; 5 rows, 1 preferences; "
            "dropped: 2 empty response, 1 identical chosen and rejected, 1 other split"
        ]


def test_ranked_rows_without_a_difference_are_counted():
    ranked = {"prompt": "q", "responses": ["a", "b"]}
    _, said = read(write("a.jsonl", {**ranked, "ranks": [1, 1]}, {**ranked, "ranks": [2, 1]}))
    assert said == ["a.jsonl: ranked responses; 2 rows, 1 preferences; dropped: 1 no responses of different rank"]


def test_a_row_of_its_own_split_and_one_for_every_split():
    file = write("a.jsonl", row(1, split="train"), row(2, split="test"), row(3))
    assert prompts(read(file)[0]) == ["q1", "q3"]
    assert prompts(read(file, split="test")[0]) == ["q2", "q3"]


def test_nothing_left_says_what_was_read():
    with pytest.raises(
        ValueError, match=r"--data.train: no preference is left .*2 rows, 0 preferences; dropped: 2 ident"
    ):
        read(write("a.jsonl", row(1, chosen="x", rejected="x"), row(2, chosen="x", rejected="x")))
    with pytest.raises(ValueError, match="no row of this split; 1 rows"):
        read(write("b.jsonl", row(1, split="test")))
    with pytest.raises(ValueError, match="no source was given"):
        read()


def test_two_files_with_the_same_prompt_ids_keep_all_their_pairs():
    """HALOs merges by `prompt_id` and loses the second file's pairs."""
    pair = {"type": "pairwise_feedback", "prompt_id": 0, "output_A": "a", "output_B": "b", "label": 0}
    Path("a.json").write_text(json.dumps([{**pair, "prompt": "one"}, {**pair, "prompt": "two"}]))
    Path("b.json").write_text(json.dumps([{**pair, "prompt": "three"}]))
    found, _ = read("a.json", "b.json")
    assert prompts(found) == ["one", "two", "three"]
    assert found["id"][:] == ["0", "0", "0"]


def test_a_prompt_in_two_sources_keeps_all_its_pairs():
    write("a.jsonl", row(1))
    write("b.jsonl", row(1, rejected="another"))
    assert prompts(read("a.jsonl", "b.jsonl")[0]) == ["q1", "q1"]


def test_a_changed_file_is_read_anew():
    file = write("a.jsonl", row(1))
    assert prompts(read(file)[0]) == ["q1"]
    mtime = os.stat(file).st_mtime_ns
    write("a.jsonl", row(2))  # the same size
    os.utime(file, ns=(mtime + 1_000_000, mtime + 1_000_000))
    assert prompts(read(file)[0]) == ["q2"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1), row(2, margin=float("nan"))], r"a.jsonl, line 2: field 'margin': found nan, need a finite number"),
        ([row(1), row(2, target=1.5)], r"a.jsonl, line 2: field 'target': found 1.5, need .* in \[0, 1\]"),
        ([row(1, chosen=3)], "a.jsonl, line 1: field 'chosen': found 3"),
        ([row(1), row(2, split=3)], "a.jsonl, line 2: field 'split': found 3"),
        ([row(1), 3], "a.jsonl, line 2: found 3, need explicit prompt"),
        ([{"text": "x"}], "a.jsonl, line 1: found the fields text, which fit no form"),
        (
            [row(1), {"prompt": "q", "chosen": "a"}],
            r"a.jsonl, line 2: found the fields prompt, chosen \(no known form\), need explicit prompt .*rejected",
        ),
        (
            [row(1), {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}],
            r"a.jsonl, line 2: found the fields prompt, responses, ranks \(ranked responses\), need explicit prompt",
        ),
    ],
)
def test_a_bad_row_names_file_line_and_field(rows, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        read(write("a.jsonl", *rows))
    assert caught.value.__suppress_context__
    assert "\n" not in str(caught.value)


def test_a_broken_file_names_the_line():
    write("a.jsonl", row(1))
    with open("a.jsonl", "a") as file:
        file.write('{"prompt": "q2", "chos')
    with pytest.raises(ValueError, match=r"^a.jsonl, line 2: found JSON that is cut off"):
        read("a.jsonl")
    with pytest.raises(ValueError, match=r"^empty.jsonl: the file is empty"):
        read(write("empty.jsonl"))
    Path("latin.jsonl").write_bytes(b'{"prompt": "\xfc"}')
    with pytest.raises(ValueError, match=r"^latin.jsonl, line 1: not UTF-8"):
        read("latin.jsonl")


def test_a_folder_in_sorted_order_with_each_form_said():
    write("d/b.jsonl", {"chosen": "\n\nHuman: q2\n\nAssistant: a", "rejected": "\n\nHuman: q2\n\nAssistant: b"})
    Dataset.from_list([row(1)]).to_parquet("d/a.parquet")
    write("d/.hidden.jsonl", row(9))
    found, said = read("d")
    assert prompts(found) == ["q1", "q2"]
    assert found["source"][:] == ["d/a.parquet:0", "d/b.jsonl:1"]
    assert [line.split(";")[0] for line in said] == ["d/a.parquet: explicit prompt", "d/b.jsonl: HH text"]


def test_files_of_a_folder_named_for_another_split_are_not_read():
    for name in ("train-0.jsonl", "test.jsonl", "more.jsonl", "tests.jsonl"):
        write(f"d/{name}", row(name))
    found, said = read("d")
    assert prompts(found) == ["qmore.jsonl", "qtests.jsonl", "qtrain-0.jsonl"]
    assert said[0] == "d: test.jsonl not read: named for another split than train"
    assert prompts(read("d", split="test")[0]) == ["qmore.jsonl", "qtest.jsonl", "qtests.jsonl"]
    assert prompts(read("d/test.jsonl")[0]) == ["qtest.jsonl"]
    write("e/test.jsonl", row(1))
    with pytest.raises(ValueError, match=r"^e: all files are named for another split \(test.jsonl\)"):
        read("e")


def test_a_cloned_set_of_the_hub_is_read():
    """Files in folders below, hidden ones left out; a folder may be named for its split."""
    for name in ("data/train-0.jsonl", "data/test-0.jsonl", "validation/0.jsonl", "part/train/0.jsonl", ".git/x.jsonl"):
        write(f"d/{name}", row(name))
    write("d/dataset_infos.json", {"default": {}})
    found, said = read("d")
    assert prompts(found) == ["qdata/train-0.jsonl", "qpart/train/0.jsonl"]
    assert said[0] == "d: data/test-0.jsonl, validation/0.jsonl not read: named for another split than train"
    assert prompts(read("d", split="test")[0]) == ["qdata/test-0.jsonl"]


def test_bad_rows_are_counted_and_listed_where_that_is_asked_for():
    Path("a.jsonl").write_text('{"prompt": 1, "chosen": "a", "rejected": "b"}\n{"prompt"\n' + json.dumps(row(1)) + "\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: field 'prompt'"):
        read("a.jsonl")
    said, counts = [], Counts()
    found = load(("a.jsonl",), "train", said.append, bad_rows="drop", counts=counts)
    assert prompts(found) == ["q1"]
    assert said[0].endswith("3 rows, 1 preferences; dropped: 2 bad rows")
    assert [line.split(":")[0] for line in said[1:]] == ["dropped a.jsonl, line 1", "dropped a.jsonl, line 2"]
    assert (counts.rows, counts.pairs, dict(counts.rows_dropped)) == (3, 1, {"bad rows": 2})


def test_rows_of_another_split_alone_are_said():
    write("a.jsonl", row(1, split="test"))
    with pytest.raises(ValueError, match=r"whose field 'split' names another split than train are not read"):
        read("a.jsonl")


def test_a_folder_without_data():
    Path("d").mkdir()
    with pytest.raises(ValueError, match=r"^d: the folder holds no \.jsonl"):
        read("d")


def test_save_to_disk_folders():
    Dataset.from_list([row(1, split=None), row(2, split="test")]).save_to_disk("one")
    found, said = read("one")
    assert prompts(found) == ["q1"]
    assert found["source"][:] == ["one:0"]
    assert said == ["one: explicit prompt; 2 rows, 1 preferences; dropped: 1 other split"]
    parts = {"train": Dataset.from_list([row(1)]), "validation": Dataset.from_list([row(2)])}
    DatasetDict(parts).save_to_disk("both")
    assert prompts(read("both")[0]) == ["q1"]
    with pytest.raises(ValueError, match=r"^both: found no split 'test'; there are train, validation"):
        read("both", split="test")
    Dataset.from_dict({"prompt": []}).save_to_disk("none")
    with pytest.raises(ValueError, match=r"^none: an empty or unreadable save_to_disk folder"):
        read("none")


@pytest.mark.parametrize("raw", [b"{}", b"[]", b'{"_data_files": [{"filename": 1}]}', b'{"_data_files": 3}', b"\xff"])
def test_a_damaged_save_to_disk_folder_is_named(raw):
    Dataset.from_list([row(1)]).save_to_disk("set")
    Path("set/state.json").write_bytes(raw)
    with pytest.raises(ValueError, match=r"^set: an empty or unreadable save_to_disk folder"):
        read("set")


def test_a_pipe_is_refused_and_not_waited_for():
    os.mkfifo("a.jsonl")
    with pytest.raises(ValueError, match=r"^a\.jsonl: it is gone, or no ordinary file"):
        read("a.jsonl")


def test_a_name_that_is_no_text_is_shown_by_its_escapes():
    name = os.fsdecode(b"a\xff.jsonl")
    Path(name).write_text(json.dumps(row(1)) + "\n")
    found, said = read(name)
    assert found["source"][:] == ["a\\udcff.jsonl:1"]
    assert said[0].startswith("a\\udcff.jsonl: explicit prompt")


def test_a_named_set_takes_the_split_of_the_flag_or_of_its_name(monkeypatch):
    hh = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    asked = hub_of(monkeypatch, train=[hh, {**hh, "rejected": hh["chosen"]}], test=[hh])
    found, said = read("hh_helpful")
    assert said == ["hh_helpful: named set; 2 rows, 1 preferences; dropped: 1 identical chosen and rejected"]
    assert found["source"][:] == ["hh_helpful:0"]
    read("hh", split="test")
    read("hh:test")
    train = {"data_dir": "helpful-base", "split": "train"}
    test = {"data_dir": None, "split": "test"}
    assert asked == [("Anthropic/hh-rlhf", options) for options in (train, test, test)]


def test_the_split_names_of_a_named_set(monkeypatch):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pair = {"prompt": "q", "prompt_id": "h", "chosen": turns, "rejected": [turns[0], {**turns[1], "content": "b"}]}
    asked = hub_of(monkeypatch, train_prefs=[pair], test_prefs=[pair], train_gen=[pair])
    read("ultrabin")
    read("ultrabin", split="test")
    read("ultrabin:test")
    read("ultrabin:train_gen", split="test")
    assert [options["split"] for _, options in asked] == ["train_prefs", "test_prefs", "test_prefs", "train_gen"]


def test_a_hub_id_has_its_form_detected_and_ignores_the_rows_own_split(monkeypatch):
    hub_of(monkeypatch, train=[row(1, split="test")], test=[row(2)])
    found, said = read("owner/name", "owner/name:test")
    assert prompts(found) == ["q1", "q2"]
    assert found["source"][:] == ["owner/name:0", "owner/name:test:0"]
    assert said[0] == "owner/name: explicit prompt; 1 rows, 1 preferences"


def test_a_split_that_a_hub_set_lacks_lists_those_there_are(monkeypatch):
    hub_of(monkeypatch, train=[row(1)], validation=[row(2)])
    with pytest.raises(ValueError, match=r"^owner/name: split 'test' of owner/name .*'train'.*'validation'"):
        read("owner/name", split="test")


def test_a_changed_schema_of_a_named_set_is_one_sentence(monkeypatch):
    hub_of(monkeypatch, train=[{"text": "x"}])
    with pytest.raises(ValueError, match=r"^shp: found no field '\w+'; the set's schema has changed"):
        read("shp")
    with pytest.raises(ValueError, match=r"^hh, row 0: .*schema has changed"):
        read("hh")


@pytest.mark.parametrize(
    ("name", "similar"), [("shp", "prompt, chosen, rejected"), ("owner/name", "JSONL"), ("hh", "Human")]
)
def test_without_a_network_the_error_names_the_set_and_a_local_file(name, similar):
    with pytest.raises(
        ValueError, match=rf"^{name}: .*could not be reached.*local file instead: .*{similar}"
    ) as caught:
        read(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "--data.train missing.jsonl: no such file or folder"),
        ("some/missing.jsonl", "--data.train some/missing.jsonl: no such file or folder"),
        ("./a/b", "--data.train ./a/b: no such file or folder"),
        ("/a/b", "--data.train /a/b: no such file or folder"),
        ("", "--data.train '': no such file or folder"),
        ("ultrabim", "--data.train ultrabim: .*did you mean ultrabin"),
        ("prefs.json", r"--data.train prefs.json: .*did you mean prefs.jsonl\?"),
        ("demo:dev", "--data.train demo:dev: no such file or folder"),
        ("prefs.jsonl:test", "--data.train prefs.jsonl:test: a path takes no :SPLIT"),
        ("notes.txt", r"notes.txt: unknown kind of file; need one of \.jsonl"),
    ],
)
def test_a_name_that_is_nothing(name, message):
    write("prefs.jsonl", row(1))
    Path("notes.txt").touch()
    with pytest.raises(ValueError, match=f"^{message}"):
        read(name)


def test_a_path_goes_before_a_named_set():
    write("hh/a.jsonl", row(1))
    assert prompts(read("hh")[0]) == ["q1"]


def test_the_embedded_set(monkeypatch):
    def preferences(split):
        for content in (split, " "):
            sides = {"prompt": [], "chosen": [{"role": "assistant", "content": content}], "rejected": [BAD]}
            labels = {"margin": 0.0, "weight": 1.0, "target": None, "ratings": None, "compared": 1.0}
            yield {**sides, **labels, "subset": "", "id": ""}

    demo = types.ModuleType("rmkit.data.demo")
    demo.preferences = preferences
    monkeypatch.setitem(sys.modules, "rmkit.data.demo", demo)
    monkeypatch.setattr(sys.modules["rmkit.data"], "demo", demo, raising=False)
    assert read("demo")[1] == ["demo: named set; 2 rows, 1 preferences; dropped: 1 empty response"]
    assert read("demo", split="test")[0][0]["chosen"][0]["content"] == "test"
    assert read("demo:test")[0][0]["chosen"][0]["content"] == "test"


def test_overlap_counts_test_preferences_that_stand_in_train():
    write("a.jsonl", row(1), row(2), row(2), row(3))
    write("b.jsonl", row(2), row(4), row(2, margin=1, id="other"), row(3, rejected="another"))
    train, test = read("a.jsonl")[0], read("b.jsonl", split="test")[0]
    assert overlap(train, test) == 2
    assert overlap(test, train) == 2
    assert overlap(train, train) == 4


def test_overlap_is_not_misled_by_where_one_text_ends():
    write("a.jsonl", {"prompt": "q", "chosen": "ab", "rejected": "c"})
    write("b.jsonl", {"prompt": "q", "chosen": "a", "rejected": "bc"})
    assert overlap(read("a.jsonl")[0], read("b.jsonl")[0]) == 0


def test_progress_bars_are_left_as_they_were():
    assert not datasets.are_progress_bars_disabled()
    read(write("a.jsonl", row(1)))
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder is absent")
@pytest.mark.parametrize(("name", "count"), [("hh_harmless", 510), ("tulu1_human", 107), ("dpo_zh_demo", 60)])
def test_real_pairs(name, count):
    found, said = read(str(SHARED / name / "test.jsonl"), split="test")
    assert len(found) == count
    assert "explicit prompt" in said[0]
    assert all(prompt[-1]["role"] == "user" for prompt in found["prompt"])


def test_fields_that_are_not_read_are_said_once_a_file():
    write("a.jsonl", {**row(1), "source": "x"}, {**row(2), "score_a": 3})
    assert read("a.jsonl")[1] == [
        "a.jsonl: explicit prompt; 2 rows, 2 preferences; not used: score_a, source",
    ]


def test_the_system_prompts_of_ultrafeedback_are_said_once_a_file():
    write("a.jsonl", *[true_rows()["UltraFeedback"][1]] * 2)
    found, said = read("a.jsonl")
    assert found["prompt"] == [[{"role": "user", "content": "ask"}]] * 2
    assert " ".join(said).count("completions[].custom_system_prompt") == 1


def test_speakers_within_a_prompt_are_said():
    write("a.jsonl", {**row(1), "prompt": "Go on:\n\nHuman: q"}, row(2))
    assert read("a.jsonl")[1][0].endswith(
        '; 1 prompts hold "Human:" or "<extra_id_1>" turns and are read as one user\'s text'
    )


@pytest.mark.parametrize("field", ["question", "instruction", "query", "input"])
def test_speakers_are_said_of_a_prompt_in_any_field(field):
    """Only those in `prompt` were."""
    pair = {"chosen": "a", "rejected": "b"}
    write("a.jsonl", {field: "\n\nHuman: hello\n\nAssistant:", **pair}, {field: "q", **pair})
    assert '; 1 prompts hold "Human:" or "<extra_id_1>" turns and are read' in read("a.jsonl")[1][0]


def test_speakers_that_are_read_as_turns_are_not_said():
    write("a.jsonl", {**row(1), "prompt": "\n\nHuman: q\n\nAssistant:"})
    write("b.jsonl", {"prompt": "Human: q\n\nAssistant:", "responses": ["a", "b"], "ranks": [1, 2]})
    for name in ("a.jsonl", "b.jsonl"):
        found, said = read(name)
        assert found["prompt"] == [[{"role": "user", "content": "q"}]]
        assert "Human:" not in said[0]


def test_columns_are_said_and_a_name_that_no_file_has_is_refused():
    write("a.jsonl", {"question": "q", "best": "a", "worst": "b"})
    write("b.jsonl", row(1))
    said = []
    columns = ("prompt=question", "chosen=best", "rejected=worst")
    found = load(("a.jsonl", "b.jsonl"), "train", said.append, columns=columns)
    assert [turns[0]["content"] for turns in found["prompt"]] == ["q", "q1"]
    assert said[0].endswith("1 preferences; read as prompt=question, chosen=best, rejected=worst")
    assert "read as" not in said[1]
    with pytest.raises(ValueError, match=r"^--data.columns prompt=qestion: no row has such a field"):
        load(("b.jsonl",), "train", said.append, columns=("prompt=qestion",))


def test_rows_in_memory_of_different_fields_lose_none():
    """A table made of them would have the fields of the first row, and one type for each."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": i}}} for i in (1, "a")]
    rows = [row(1), row(2) | {"tools": tools}, row(3) | {"prompt": [{"role": "user", "content": "q"}]}]
    found = load((), "train", print, rows)
    assert [more is None for more in found["more"]] == [True, False, True]
    assert json.loads(found["more"][1])["options"]["tools"] == tools
    assert found["source"][2] == "train rows:2"
