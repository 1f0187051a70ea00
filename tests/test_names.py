"""What names of data and of models stand for, and what is said of those that stand for nothing."""

import pytest

from rmkit.config import DEMO_MODEL
from rmkit.data import names
from rmkit.errors import UserError


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("demo", "named"),
        ("demo:test", "named"),
        ("hh_harmless:train", "named"),
        ("rewardbench", "benchmark"),
        ("owner/set", "hub"),
        ("owner/set:validation", "hub"),
        ("{here}", "path"),
        ("{here}/pairs.jsonl", "path"),
        ("rm-bench={here}", "benchmark"),
    ],
)
def test_a_name_stands_for_one_thing(tmp_path, given, kind):
    (tmp_path / "pairs.jsonl").touch()
    assert names.kind_of(given.format(here=tmp_path), "data.train") == kind


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "hh", "rewardbench"):
        assert names.kind_of(name, "data.train") != "path"
        (tmp_path / name).mkdir()
        assert names.kind_of(name, "data.train") == "path"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "--data.train '': no such file or folder"),
        ("demo:valid", "no such file or folder"),
        ("hh_harmles", "did you mean hh_harmless?"),
        ("owner/set.jsonl", "no such file or folder"),
        ("{here}/pair.jsonl", "did you mean {here}/pairs.jsonl?"),
        ("{here}/q.jsonl", "no such file or folder, named set or hub id (named sets"),
        ("{here}/pairs.jsonl:test", "a path takes no :SPLIT"),
        ("rmb={here}/nowhere", "rmb={here}/nowhere: there is no such path"),
    ],
)
def test_a_name_that_is_nothing_is_told_with_the_nearest(tmp_path, given, said):
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(UserError) as told:
        names.kind_of(given.format(here=tmp_path), "data.train")
    assert said.format(here=tmp_path) in str(told.value)
    assert str(told.value).startswith("--data.train ")


@pytest.mark.parametrize("given", ["demo", str(DEMO_MODEL), "gpt2", "meta-llama/Meta-Llama-3-8B", "{here}"])
def test_a_model_may_be_a_folder_or_on_the_hub(tmp_path, given, monkeypatch):
    monkeypatch.setattr(names.hub, "answers", lambda: True)
    names.check_model(given.format(here=tmp_path), "model.name")


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("owner/set", ["owner/set"]),
        ("owner/set:valid", ["owner/set"]),
        ("hh_harmless:test", ["Anthropic/hh-rlhf"]),
        ("judgebench", ["ScalerLab/JudgeBench"]),
        ("judgebench={here}", []),
        ("demo", []),
        ("{here}", []),
    ],
)
def test_what_is_on_a_hub_that_cannot_be_reached_is_told(tmp_path, given, asked, monkeypatch):
    looked = []
    monkeypatch.setattr(names.hub, "absent", lambda kind, name: looked.append(name) or True)
    if not asked:
        names.check_data(given.format(here=tmp_path), "data.train")
        return
    with pytest.raises(UserError, match=f"{asked[0]} cannot be reached and is in no cache; without a network"):
        names.check_data(given.format(here=tmp_path), "data.train")
    assert sorted({*looked}) == asked
    monkeypatch.setattr(names.hub, "absent", lambda kind, name: False)
    names.check_data(given, "data.train")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "--against '': there is no such folder"),
        ("./gpt2", "there is no such folder; a hub id is NAME or OWNER/NAME"),
        ("{here}/runs/rum", "there is no such folder, did you mean {here}/runs/run?"),
        ("{here}/runs/run/FINAL", "there is one in {here}/runs/run/old-run/FINAL; a hub id is NAME or OWNER/NAME"),
    ],
)
def test_a_model_that_is_nowhere_is_told_with_the_nearest(tmp_path, given, said):
    for folder in ("runs/run", "runs/run/old-run/FINAL"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/run/old-run/FINAL/config.json").touch()
    with pytest.raises(UserError) as told:
        names.check_model(given.format(here=tmp_path), "against")
    assert said.format(here=tmp_path) in str(told.value)
