"""The command, as a user runs it: what it finds, what it leaves, and every bad input."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.write import file_of, help_text
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rmkit.data import demo
from rmkit.inspect import main
from rmkit.inspection.config import RESULTS
from rmkit.scorer import Scorer
from support.oracle import TINY
from support.page_reader import EVIL, read
from support.planted import row, written
from support.true_rows import call

RNG = random.Random(0)


def some() -> str:
    return "".join(RNG.choices("abcdef ", k=RNG.randint(6, 20)))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    rows = [row(f"{some()} {i}", some() + " x", some() + " y", subset="ab"[i % 2]) for i in range(60)]
    rows += [rows[0], row(rows[1]["prompt"], rows[1]["rejected"], rows[1]["chosen"])]
    rows += [row("q", EVIL, "b"), row("q", "b", "c"), row("q", "c", EVIL), row("empty", "a", "")]
    written(folder / "pairs.jsonl", rows)
    written(folder / "held.jsonl", [rows[3], row("other", "a", "b")])
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**TINY, "vocab_size": 128, "max_position_embeddings": 160})
    for name, kind in (("rm", AutoModelForSequenceClassification), ("lm", AutoModelForCausalLM)):
        config.num_labels = 1
        kind.from_config(config).save_pretrained(folder / name)
        demo.tokenizer().save_pretrained(folder / name)
    return folder


def run(world: Path, out: Path, *flags: str) -> dict:
    assert main([str(world / "pairs.jsonl"), "--out", str(out), *flags]) == 0
    return json.loads((out / "inspect.json").read_text())


def told(capsys) -> str:
    return " ".join(
        "".join(c for c in capsys.readouterr().err if c not in "\u2502\u256d\u256e\u2570\u256f\u2500").split()
    )


def test_without_a_model_everything_planted_is_counted(world, tmp_path, capsys):
    found = run(world, tmp_path / "out", "--test", str(world / "held.jsonl"))
    counts, duplicates = found["counts"], found["duplicates"]
    assert (counts["rows"], counts["pairs"], counts["pairs_dropped"]) == (66, 66, {"empty response": 1})
    assert found["pairs"] == 65
    assert [duplicates[kind]["pairs"] for kind in ("repeated", "contradictory", "cycles")] == [1, 2, 3]
    assert duplicates["repeated"]["examples"][0].endswith("pairs.jsonl:61 repeats " + f"{world}/pairs.jsonl:1")
    assert (found["shared"]["pairs"], found["shared"]["test_pairs"], found["shared"]["prompts"]) == (1, 2, 1)
    assert found["floors"]["bag of words"]["accuracy"] > 0.85  # x against y
    tokens = found["tokens"]
    assert tokens["trie"] < tokens["flat"] < tokens["padded"]
    assert {part["name"]: part["pairs"] for part in found["subsets"]} == {"a": 31, "b": 30, "(none)": 4}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["inspect.html", "inspect.json"]
    out = capsys.readouterr().out
    assert "test is not held out: 1 of its 2 pairs" in out
    assert "pairs on a cycle (A > B > C > A): 3" in out
    assert "1 of 2 prompts; near: 0 prompts, 0 answers" in " ".join(out.split())
    assert "Scripts alone are told apart" in (tmp_path / "out" / "inspect.html").read_text()


def test_a_causal_lm_without_a_head_gives_suspects_and_a_file_to_train_on(world, tmp_path):
    found = run(world, tmp_path / "out", "--model", str(world / "lm"), "--suspects", "7")
    suspects = [json.loads(line) for line in (tmp_path / "out" / "suspects.jsonl").open()]
    kept = [json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").open()]
    assert (len(suspects), len(kept), found["suspects"]["pairs"]) == (7, 58, 65)
    assert [row["probability"] for row in suspects] == sorted(row["probability"] for row in suspects)
    texts = {(r["prompt"][0]["content"], r["chosen"][0]["content"]) for r in kept}
    assert (
        len({(r["prompt"][0]["content"], r["chosen"][0]["content"]) for r in suspects} & texts) <= 1
    )  # the repeated one
    again = tmp_path / "again"
    assert main([str(tmp_path / "out" / "kept.jsonl"), "--out", str(again)]) == 0
    assert json.loads((again / "inspect.json").read_text())["pairs"] == 58
    assert [place for name in RESULTS for place in [tmp_path / "out" / name] if not place.exists()] == []


def test_the_token_before_the_pad_token_is_read_where_it_is_asked_for(world, tmp_path, monkeypatch):
    """Someone else's classifier, whose pad token ends every conversation: its margins are those of transformers."""
    theirs = shutil.copytree(world / "rm", tmp_path / "theirs")
    for name, pad in (("config.json", {"pad_token_id": 2}), ("tokenizer_config.json", {"pad_token": "</s>"})):
        (theirs / name).write_text(json.dumps(json.loads((theirs / name).read_text()) | pad))
    plain = AutoModelForSequenceClassification.from_pretrained(theirs)
    tokenizer, seen = AutoTokenizer.from_pretrained(theirs), []
    read_features = Scorer.features
    monkeypatch.setattr(Scorer, "features", lambda *given: seen.append(read_features(*given)) or seen[-1])

    def score(prompt: str, response: str) -> float:
        talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        with torch.no_grad():
            return plain(**tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)).logits.item()

    given = ["--model", str(theirs), "--suspects", "5"]
    found = run(world, tmp_path / "out", *given)
    assert any("--end-token before-pad" in note for note in found["notes"])
    found = run(world, tmp_path / "other", *given, "--end-token", "before-pad")
    assert any("Here the one before is scored" in note for note in found["notes"])
    last, early = (features @ plain.score.weight[0].detach().numpy() for features in seen)
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()[:20]]
    wanted = [score(row["prompt"], row["chosen"]) - score(row["prompt"], row["rejected"]) for row in rows]
    np.testing.assert_allclose(early[:20], wanted, atol=1e-5)
    assert np.abs(last[:20] - wanted).max() > 0.01


@pytest.mark.parametrize("write", ["weight", "target"])
def test_suspects_may_be_kept_with_the_probability_of_their_label(world, tmp_path, write):
    run(world, tmp_path, "--overwrite", "--model", str(world / "rm"), "--suspects", "5", "--write", write)
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").open()]
    marked = [row[write] for row in kept if write in row]
    suspects = [json.loads(line)["label_is_right"] for line in (tmp_path / "suspects.jsonl").open()]
    assert len(kept) == 65
    assert sorted(marked) == sorted(suspects)


def test_a_sample_judges_some_and_keeps_the_others(world, tmp_path):
    found = run(world, tmp_path / "out", "--model", str(world / "rm"), "--pairs", "30", "--suspects", "4")
    assert 20 <= found["sampled_pairs"] <= 30
    assert len((tmp_path / "out" / "kept.jsonl").read_text().splitlines()) == 61


def test_pairs_that_the_chat_template_refuses_are_left_out(world, tmp_path, capsys):
    rows = [row("q", [call("Ulm")], "b"), row("r", "a", "b")]
    file = written(tmp_path / "calls.jsonl", rows)
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert (found["pairs"], found["tokens"]["sampled_pairs"]) == (2, 1)
    assert any("calls.jsonl:1: the chat template refuses" in note for note in found["notes"])
    assert "dropped 1 of 2 pairs: refused by the chat template" in found["notes"]
    assert main([str(file), "--out", str(tmp_path / "other"), "--bad-rows", "stop"]) == 2
    assert "--bad-rows drop leaves such pairs out" in told(capsys)


def test_the_page_is_whole_and_takes_no_text_for_html(world, tmp_path):
    run(world, tmp_path / "out", "--model", str(world / "rm"), "--suspects", "60")
    page = read((tmp_path / "out" / "inspect.html").read_text())
    assert page.addresses == []
    assert "script" not in page.tags
    assert page.tags.count("article") == 60
    assert "mark" in page.tags
    assert "".join(page.words).count(EVIL[:20])


def test_every_pair_a_suspect_is_refused_and_nothing_is_left(world, tmp_path, capsys):
    flags = ["--model", str(world / "rm"), "--suspects", "100", "--out", str(tmp_path / "out")]
    assert main([str(world / "pairs.jsonl"), *flags]) == 2
    assert "every pair is a suspect" in told(capsys)
    assert list(tmp_path.iterdir()) == []


def test_results_are_replaced_only_when_asked_and_foreign_files_never(world, tmp_path, capsys):
    out = tmp_path / "out"
    run(world, out)
    assert main([str(world / "pairs.jsonl"), "--out", str(out)]) == 2
    assert "it holds results; give --overwrite" in told(capsys)
    run(world, out, "--overwrite")
    (out / "mine.txt").write_text("x")
    assert main([str(world / "pairs.jsonl"), "--out", str(out), "--overwrite"]) == 2
    assert "it holds mine.txt, which no inspection wrote" in told(capsys)


def test_what_is_read_is_not_overwritten(world, tmp_path, capsys):
    kept = written(tmp_path / "kept.jsonl", [row("p", "a", "b")])
    assert main([str(kept), "--out", str(tmp_path), "--overwrite"]) == 2
    assert "it holds kept.jsonl, which is read here" in told(capsys)
    assert kept.exists()


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        ([], [], "the file is empty"),
        ([row("p", "a", "a")], [], "no pair is left to look at"),
        ([{"text": "a"}], [], "no pair is left to look at"),
        ([row("p", "a", "b")], ["--model", "{world}"], "no model configuration was found"),
        ([row("p", "a", "b")], ["--tokenizer", "{world}"], "--tokenizer"),
        ([row("p", "a", "b")], ["--test", "{file}"], "nothing is held out"),
        ([row("p", "a", "b")], ["--test", "absent.jsonl"], "--test absent.jsonl: no such file"),
        ([row("p", "a", "b")], ["--columns", "prompt=nowhere"], "--columns prompt=nowhere: no row has such a field"),
    ],
)
def test_bad_input_is_a_sentence(world, tmp_path, capsys, rows, flags, said):
    file = written(tmp_path / "bad.jsonl", rows)
    flags = [flag.format(world=world, file=file) for flag in flags]
    assert main([str(file), "--out", str(tmp_path / "out"), *flags]) == 2
    assert said in told(capsys)
    assert not (tmp_path / "out").exists()


def test_one_pair_alone_is_told_of(tmp_path):
    file = written(tmp_path / "one.jsonl", [row("p", "a", "b")])
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert found["pairs"] == 1
    assert found["floors"]["bag of words"] is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("p", "a", "b")], "1 pairs with a preferred side, on 1 prompts, are too few"),
        (
            [row(f"p{i}", "a", "b", target=0.5) for i in range(30)],
            "0 pairs with a preferred side, on 0 prompts, are too few",
        ),
    ],
)
def test_too_few_pairs_for_a_model_keep_the_tables_without_one(world, tmp_path, capsys, rows, said):
    file = written(tmp_path / "few.jsonl", rows)
    assert main([str(file), "--model", str(world / "rm"), "--out", str(tmp_path / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{said} to judge one another; need 20 on at least 5 prompts; suspects.jsonl and kept.jsonl are" in printed
    assert ("longer wins no pair has a preferred side" in printed) == (len(rows) > 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["inspect.html", "inspect.json"]
    found = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert (found["pairs"], found["suspects"]) == (len(rows), None)
    page = " ".join(read((tmp_path / "out" / "inspect.html").read_text()).words)
    assert "not judged" in page
    assert "Suspects" not in page


@pytest.mark.parametrize(
    "flags",
    [
        ["--suspects", "3"],
        ["--write", "weight"],
        ["--end-token", "before-pad"],
        ["--pairs", "3"],
        ["--max-length", "1"],
    ],
)
def test_flags_that_mean_nothing_are_refused_before_anything_is_read(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2
    assert "Unrecognized" not in told(capsys), "it is a flag"


def test_near_duplicates_are_not_looked_for_without_datasketch(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    found = run(world, tmp_path / "out", "--test", str(world / "held.jsonl"))
    assert found["shared"]["near"] is None
    assert "pip install 'rmkit[inspect]'" in capsys.readouterr().out


def test_help_is_golden():
    assert help_text("inspect") == file_of("inspect").read_text()
