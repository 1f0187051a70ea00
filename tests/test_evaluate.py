"""The command, as a user runs it: its numbers against plain transformers, what it leaves, and every bad input."""

import errno
import json
import os
import random
import re
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from golden.write import file_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import rmkit.evaluation
from rmkit import train
from rmkit.data import demo
from rmkit.evaluate import main
from rmkit.evaluation.config import RESULTS
from rmkit.scorer import Scorer
from support import ranks
from support.oracle import TINY, scores_one_by_one
from support.ranks import started
from support.true_rows import benchmark_rows, call

PAIRS = 40


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with two tiny reward models (a/, b/: foreign ones), a causal LM (lm/) and files of pairs."""
    folder = tmp_path_factory.mktemp("world")
    config = AutoConfig.for_model("llama", **{**TINY, "vocab_size": 128, "max_position_embeddings": 160})
    for seed, name in enumerate(("a", "b", "lm")):
        torch.manual_seed(seed)
        kind = AutoModelForCausalLM if name == "lm" else AutoModelForSequenceClassification
        kind.from_config(config).save_pretrained(folder / name)
        demo.tokenizer().save_pretrained(folder / name)
    rng = random.Random(0)
    text = lambda: "".join(rng.choices("abc ", k=rng.randint(5, 40))) + "."  # noqa: E731
    prompts = [text() for _ in range(PAIRS // 2)]
    rows = [{"prompt": p, "chosen": text(), "rejected": text(), "subset": rng.choice("xy")} for p in prompts * 2]
    rows[1] |= {"margin": 0.5, "weight": 2.0, "target": 0.9}
    rows[3] |= {"chosen": rows[3 + PAIRS // 2]["chosen"]}  # the same conversation in two pairs
    write(folder / "pairs.jsonl", rows)
    lists = [{"id": i, "prompt": text(), "domain": rng.choice(["chat", "code"])} for i in range(12)]
    write(folder / "styles.jsonl", [r | {s: [text() for _ in "123"] for s in ("chosen", "rejected")} for r in lists])
    best = [
        r | {"chosen": [text() for _ in "12"[i % 2 :]], "rejected": [text() for _ in "12"]} for i, r in enumerate(lists)
    ]
    write(folder / "best.jsonl", best)
    return folder


@pytest.fixture(autouse=True)
def progress_bars():
    """The command turns them off for its process, which here is that of every other test."""
    yield
    datasets.enable_progress_bars()


def write(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def flags(world: Path, out: Path, *more: str, model: str = "a", data: str = "pairs.jsonl") -> list[str]:
    return ["--model", str(world / model), "--data", str(world / data), "--out", str(out / "out"), *more]


def evaluated(world: Path, out: Path, *more: str, **which: str) -> dict:
    """metrics.json of a run that must succeed."""
    assert main(flags(world, out, *more, **which)) == 0
    assert sorted(entry.name for entry in (out / "out").iterdir()) == sorted(RESULTS)
    return json.loads((out / "out" / "metrics.json").read_text())


def plain(model: Path, prompt: str, responses: list[str]) -> np.ndarray:
    """Scores by transformers alone, one conversation at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model)
    turns = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": text}] for text in responses]
    texts = tokenizer.apply_chat_template(turns, tokenize=False)
    with torch.no_grad():
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return scores_one_by_one(classifier, [np.array(i) for i in ids]).numpy()


@pytest.fixture(scope="module")
def expected(world) -> np.ndarray:
    """Scores of pairs.jsonl, float32 [N, 2]."""
    return np.array(
        [plain(world / "a", r["prompt"], [r["chosen"], r["rejected"]]) for r in read(world / "pairs.jsonl")]
    )


def scores(out: Path) -> np.ndarray:
    return np.array([[row["score_chosen"], row["score_rejected"]] for row in read(out / "out" / "scores.jsonl")])


def test_help_is_the_golden_text(tmp_path):
    told = ranks.run(1, tmp_path, main, ["--help"], NO_COLOR=1, TERM="dumb").out(0)
    assert told == file_of("evaluate").read_text(), "flags changed? python tests/golden/write.py"


@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
def test_numbers_are_those_of_plain_transformers(world, tmp_path, expected, layout, capsys):
    m = evaluated(world, tmp_path, "--layout", layout, "--max-tokens", "300")
    np.testing.assert_allclose(scores(tmp_path), expected, rtol=1e-5, atol=1e-5)
    d = expected[:, 0].astype(float) - expected[:, 1]
    assert m["overall"]["accuracy"] == np.mean(d > 0)
    assert m["overall"]["pairs"] == m["pairs"] == PAIRS
    loss = np.log1p(np.exp(-d))
    loss[1] = 2.0 * (0.9 * np.log1p(np.exp(0.5 - d[1])) + 0.1 * np.log1p(np.exp(d[1] - 0.5)))
    assert m["overall"]["loss"] == pytest.approx(loss.mean(), rel=1e-5)
    subset = np.array([row["subset"] for row in read(world / "pairs.jsonl")])
    assert set(m["subsets"]) == {"x", "y"}
    assert m["subsets"]["x"]["accuracy"] == np.mean(d[subset == "x"] > 0)
    shown = capsys.readouterr().out
    assert f"{m['overall']['accuracy']:.4f}" in shown
    assert "report.html" in shown


KEYS = {
    "counts",
    "model",
    "data",
    "against_model",
    "pairs",
    "conversations",
    "dropped",
    "overall",
    "subsets",
    "calibration",
}
KEYS |= {
    "benchmarks",
    "length_bias",
    "styles",
    "best_of_n",
    "list_rows_left_out",
    "rewardbench",
    "against",
    "notes",
    "seconds",
    "trust",
}
SUMMARY = {"pairs", "correct", "accuracy", "accuracy_low", "accuracy_high", "ties", "loss", "margin_mean", "margin_std"}
SUMMARY |= {"chosen_mean", "chosen_std", "rejected_mean", "rejected_std", "brier", "ece"}


def test_metrics_and_scores_have_their_keys(world, tmp_path):
    m = evaluated(world, tmp_path)
    assert set(m) == KEYS | {"environment"}
    assert set(m["overall"]) == set(m["subsets"]["x"]) == SUMMARY
    assert m["environment"]["versions"]["torch"] == torch.__version__
    row = read(tmp_path / "out" / "scores.jsonl")[4]
    assert row["source"] == f"{world / 'pairs.jsonl'}:5"
    assert row["correct"] == (row["score_chosen"] > row["score_rejected"])
    given = read(world / "pairs.jsonl")[4]
    assert row["characters_chosen"] == len(given["chosen"])
    assert row["tokens_rejected"] == len("<s><user><assistant></s>".replace("><", "> <").split()) + len(
        given["prompt"] + given["rejected"]
    )


def test_each_conversation_is_scored_once(world, tmp_path, monkeypatch):
    seen = []
    plainly = Scorer.score_tokens
    monkeypatch.setattr(
        Scorer, "score_tokens", lambda self, some, group: seen.extend(some) or plainly(self, some, group)
    )
    m = evaluated(world, tmp_path)
    rows = read(world / "pairs.jsonl")
    count = len({(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")})
    assert count == 2 * PAIRS - 1
    assert len(seen) == len({s.tobytes() for s in seen}) == m["conversations"] == count


def test_two_processes_give_the_same_numbers(world, tmp_path, expected):
    ranks.run(2, tmp_path / "said", main, flags(world, tmp_path, "--against", str(world / "b")))
    np.testing.assert_allclose(scores(tmp_path), expected, rtol=1e-5, atol=1e-5)
    two = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert two["environment"]["ranks"] == 2
    (tmp_path / "alone").mkdir()
    one = evaluated(world, tmp_path / "alone", "--against", str(world / "b"))
    assert two["overall"]["accuracy"] == one["overall"]["accuracy"]
    assert two["against"]["mcnemar"] == one["against"]["mcnemar"]
    assert two["overall"]["loss"] == pytest.approx(one["overall"]["loss"], rel=1e-5)


def test_against_another_model(world, tmp_path, expected):
    m = evaluated(world, tmp_path, "--against", str(world / "b"))
    rows = read(world / "pairs.jsonl")
    other = np.array([plain(world / "b", r["prompt"], [r["chosen"], r["rejected"]]) for r in rows])
    right, right_other = expected[:, 0] > expected[:, 1], other[:, 0] > other[:, 1]
    test = m["against"]["mcnemar"]
    assert test["only_first_right"] == (right & ~right_other).sum() > 0
    assert test["only_second_right"] == (~right & right_other).sum() > 0
    assert m["against"]["overall"]["accuracy"] == right_other.mean()
    saved = read(tmp_path / "out" / "scores.jsonl")
    np.testing.assert_allclose([row["against_score_chosen"] for row in saved], other[:, 0], rtol=1e-5, atol=1e-5)


def test_the_other_model_has_every_figure_that_it_has_alone(world, tmp_path, capsys):
    """Of lists in styles, of several responses, and of RewardBench's sections; in the terminal too."""
    rows = [row | {"subset": "hep-go"} for row in read(world / "pairs.jsonl")]
    data = [world / "styles.jsonl", world / "best.jsonl", write(tmp_path / "rb.jsonl", rows)]
    given = ["--data", *map(str, data), "--out", str(tmp_path / "out"), "--model"]

    def measured(*models: str) -> tuple[dict, str]:
        assert main([*given, *models]) == 0
        return json.loads((tmp_path / "out" / "metrics.json").read_text()), " ".join(capsys.readouterr().out.split())

    alone, told = measured(str(world / "b"))
    m, both = measured(str(world / "a"), "--against", str(world / "b"), "--overwrite")
    of_the_run = KEYS - {"length_bias", "styles", "best_of_n", "rewardbench", "benchmarks", "trust"}
    of_the_run -= {"overall", "subsets", "calibration"}
    del m["against"]["mcnemar"]
    assert m["against"] == {name: value for name, value in alone.items() if name not in of_the_run | {"environment"}}
    for name in ("easy / normal / hard", "best of n", "RewardBench Reasoning"):
        line = re.search(rf"{name} [\d./ ]+ \(.*?\)", told)[0]
        assert f"the other: {line}" in both
        assert both.count(f" {name} ") == 2


def test_against_itself_there_is_no_difference(world, tmp_path):
    test = evaluated(world, tmp_path, "--against", str(world / "a"))["against"]["mcnemar"]
    assert (test["p_value"], test["only_first_right"], test["only_second_right"]) == (1, 0, 0)


def test_rows_in_styles(world, tmp_path):
    m = evaluated(world, tmp_path, data="styles.jsonl")
    rows = read(world / "styles.jsonl")
    found = np.array([plain(world / "a", r["prompt"], r["chosen"] + r["rejected"]) for r in rows])
    matrix = (found[:, :3, None] > found[:, None, 3:]).mean(0)
    (style,) = m["styles"]
    np.testing.assert_allclose(style["matrix"], matrix)
    assert style["hard"] == pytest.approx((matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3)
    assert {name: part["rows"] for name, part in style["subsets"].items()} == {
        name: sum(row["domain"] == name for row in rows) for name in ("chat", "code")
    }
    assert m["overall"]["accuracy"] == pytest.approx(matrix.mean())
    assert m["best_of_n"] is None


def test_rows_of_best_of_n(world, tmp_path):
    m = evaluated(world, tmp_path, data="best.jsonl")
    rows = read(world / "best.jsonl")
    sides = [[plain(world / "a", row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in rows]
    right = [chosen.min() > rejected.max() for chosen, rejected in sides]
    assert right != [chosen.max() > rejected.max() for chosen, rejected in sides], "else nothing is shown"
    assert m["best_of_n"]["correct"] == sum(right) > 0
    assert m["best_of_n"]["rows"] == len(rows)
    assert m["styles"] == []


def test_over_long_pairs_are_counted_and_their_rows_left_out(world, tmp_path, capsys):
    m = evaluated(world, tmp_path, "--max-length", "60", data="styles.jsonl")
    (count,) = m["dropped"].values()
    assert 0 < count < 108
    assert m["pairs"] == 108 - count
    assert m["list_rows_left_out"] > 0
    assert sum(style["rows"] for style in m["styles"]) == 12 - m["list_rows_left_out"]
    assert f"dropped {count} of 108 pairs: over-long (more than 60 tokens)" in capsys.readouterr().out
    assert any("over-long" in note for note in m["notes"])
    assert sum(style["left_out"] for style in m["styles"]) == m["list_rows_left_out"]
    assert f"{m['list_rows_left_out']} left out" in (tmp_path / "out" / "report.html").read_text()


def test_benchmarks_are_scored_by_their_rules_from_their_own_files(world, tmp_path):
    """RewardBench 1 and 2 and the human preferences of PPE, in their schemas, against transformers alone."""
    rows = benchmark_rows()
    text = iter(random.Random(1).sample("abcdefghijklmnopqrstuvwxyz", 26))
    one = [
        {**rows["rewardbench"]["filtered.jsonl"], "subset": name, "id": i, "chosen": next(text), "rejected": next(text)}
        for i, name in enumerate(("hep-go", "hep-go", "alpacaeval-easy"))
    ]
    two = [
        {
            **rows["rewardbench2"]["test.jsonl"],
            "id": str(i),
            "chosen": [next(text)],
            "rejected": [next(text), "x", "yz"],
        }
        for i in range(3)
    ]
    votes = [
        {**rows["ppe-preference"]["test.jsonl"], "response_1": next(text), "response_2": next(text), "winner": winner}
        for winner in ("model_b", "model_a", "tie")
    ]
    data = []
    for name, some in {"rewardbench": one, "rewardbench2": two, "ppe-preference": votes}.items():
        data.append(f"{name}={write(tmp_path / f'{name}.jsonl', some)}")
    assert main(["--model", str(world / "a"), "--out", str(tmp_path / "out"), "--data", *data]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["benchmarks"]

    def right(better: str, *others: str) -> bool:
        score, *rest = plain(world / "a", "ask", [better, *others])
        return bool(score > max(rest))

    of_one = [right(row["chosen"], row["rejected"]) for row in one]
    sections = {"Chat": of_one[2], "Reasoning": np.mean(of_one[:2])}
    assert {name: part["score"] for name, part in found["rewardbench"]["parts"].items()} == sections
    assert found["rewardbench"]["score"] == pytest.approx(np.mean(list(sections.values())))
    of_two = [right(row["chosen"][0], *row["rejected"]) for row in two]
    assert found["rewardbench2"]["score"] == pytest.approx(np.mean(of_two))
    sides = [(votes[0]["response_2"], votes[0]["response_1"]), (votes[1]["response_1"], votes[1]["response_2"])]
    of_votes = [right(*pair) for pair in sides]
    assert found["ppe-preference"]["score"] == pytest.approx(np.mean(of_votes))
    verdicts = of_one + of_two + of_votes
    assert 0 < sum(verdicts) < len(verdicts), "else nothing is shown"


def test_a_benchmark_tells_what_it_lost_where_its_score_stands(world, tmp_path, capsys):
    """Two rows of RM-Bench, one with an over-long answer, beside the same as a plain file."""
    rows = [
        {"id": i, "prompt": "ab", "domain": "chat", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
        for i in range(2)
    ]
    rows[1]["chosen"] = ["a", "b", "c " * 90]
    (tmp_path / "rm.json").write_text(json.dumps(rows))
    file = str(tmp_path / "rm.json")
    given = ["--model", str(world / "a"), "--against", str(world / "b"), "--out", str(tmp_path / "out"), "--data"]
    assert main([*given, f"rm-bench={file}"]) == 0
    m = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for found in (m, m["against"]):
        assert found["benchmarks"]["rm-bench"]["left_out"] == {"rows": 0, "pairs": 3, "lists": 1}
    told = " ".join(capsys.readouterr().out.split())
    lost = "(only 1 rows); left out: 3 dropped pairs, 1 list that lacks one of them)"
    assert told.count(lost) == 2, "of either model"
    assert "(1 rows, 1 left out: a pair of theirs was dropped)" in told
    assert lost in " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert main([*given, f"rm-bench={file}", file, "--overwrite"]) == 0
    m = json.loads((tmp_path / "out" / "metrics.json").read_text())
    of_rm_bench = m["benchmarks"]["rm-bench"]["left_out"]
    assert of_rm_bench == {"rows": 0, "pairs": 3, "lists": 1}, "those of the plain file are not its"
    assert [(style["rows"], style["left_out"]) for style in m["styles"]] == [(2, 2)], "of both files"
    assert main([*given, str(write(tmp_path / "lost.jsonl", rows[1:])), file, "--overwrite"]) == 0
    m = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [(style["rows"], style["left_out"]) for style in m["styles"]] == [(1, 2)], "also of a file without others"


def test_a_benchmark_tells_its_bad_rows_where_its_score_stands(world, tmp_path, capsys):
    row = benchmark_rows()["rewardbench"]["filtered.jsonl"]
    file = write(tmp_path / "one.jsonl", [row, {**row, "chosen": 3}, {**row, "prompt": None}])
    bad = write(tmp_path / "plain.jsonl", [{"prompt": "ab", "chosen": "a", "rejected": "b"}, {"prompt": "ab"}])
    given = ["--model", str(world / "a"), "--out", str(tmp_path / "out"), "--bad-rows", "drop"]
    assert main([*given, "--data", f"rewardbench={file}", str(bad)]) == 0
    m = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert m["counts"]["rows_dropped"] == {"bad rows": 3}
    left_out = m["benchmarks"]["rewardbench"]["left_out"]
    assert left_out == {"rows": 2, "pairs": 0, "lists": 0}, "the third is of no benchmark"
    for text in (capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()):
        assert "left out: 2 bad rows" in " ".join(text.split())


def test_lists_of_which_none_is_left_are_told(world, tmp_path, capsys):
    rows = [{"prompt": "ab", "chosen": ["a", "b" * 200], "rejected": ["c", "d"]}]
    m = evaluated(world, tmp_path, data=str(write(tmp_path / "lost.jsonl", rows)))
    assert (m["styles"], m["best_of_n"], m["list_rows_left_out"]) == ([], None, 1)
    assert "1 more left out: a pair was dropped" in " ".join(capsys.readouterr().out.split())


def test_every_row_is_accounted_for(world, tmp_path, capsys):
    """In the terminal, in metrics.json and on the page: bad rows, another split, ties, pairs without a better side."""
    lines = (world / "pairs.jsonl").read_text().splitlines()[:8]
    rows = [json.loads(line) for line in lines]
    rows[0] |= {"rejected": rows[0]["chosen"]}  # identical
    rows[1] |= {"chosen": ""}
    rows[2] |= {"split": "train"}
    rows[3] |= {"target": 0.5}
    rows[4] |= {"chosen": "a b c " * 60}  # beyond the model's context
    del rows[5]["rejected"]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": \n')
    assert "line 6" in refusal(capsys, flags(world, tmp_path, data=str(file)))
    m = evaluated(world, tmp_path, "--bad-rows", "drop", data=str(file))
    assert m["counts"] == {
        "rows": 9,
        "rows_read": 6,
        "rows_dropped": {"bad rows": 2, "other split": 1},
        "pairs": 6,
        "pairs_kept": 4,
        "pairs_dropped": m["dropped"],
    }
    assert list(m["dropped"].values()) == [1, 1]
    assert m["pairs"] == 4
    assert m["overall"]["ties"] == 1
    told = " ".join(capsys.readouterr().out.split())
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    for text in (told, page):
        assert "9, of which 3 dropped (2 bad rows; 1 other split)" in text
        assert "6, of which 2 dropped" in text
    assert "mixed.jsonl, line 6" in told
    assert "mixed.jsonl, line 9" in told


def test_pairs_that_the_chat_template_refuses_are_left_out_where_bad_rows_are(world, tmp_path, capsys):
    """The run ended, with --bad-rows drop too."""
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()[:4]]
    rows[1] |= {"chosen": [call("Ulm")], "rejected": [call("Aalen")]}
    rows[2] |= {"rejected": [call("Ulm")]}
    file = write(tmp_path / "calls.jsonl", rows)
    told = refusal(capsys, flags(world, tmp_path, data=str(file)))
    assert "calls.jsonl:2:thechattemplaterefusesthisconversation:" in "".join(told.split()), "a long path is broken"
    assert "--bad-rows drop leaves such pairs out" in told
    m = evaluated(world, tmp_path, "--bad-rows", "drop", data=str(file))
    assert m["dropped"] == m["counts"]["pairs_dropped"] == {"refused by the chat template": 2}
    assert (m["counts"]["pairs"], m["counts"]["pairs_kept"], m["pairs"]) == (4, 2, 2)
    for text in (capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()):
        text = " ".join(text.split())
        assert "4, of which 2 dropped (2 refused by the chat template)" in text
        for line in (2, 3):
            assert f"calls.jsonl:{line}: the chat template refuses this conversation" in text


def test_pairs_that_one_of_two_models_does_not_take_are_counted(world, tmp_path):
    short = shutil.copytree(world / "b", tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 60}))
    m = evaluated(world, tmp_path, "--against", str(short))
    (count,) = (n for why, n in m["dropped"].items() if why.startswith("does not fit --against"))
    assert 0 < count == m["counts"]["pairs"] - m["pairs"]
    assert m["counts"]["rows"] == m["counts"]["pairs"] == PAIRS


def test_pairs_without_a_preferred_side_are_counted_not_judged(world, tmp_path):
    rows = read(world / "pairs.jsonl")[4:10]
    rows[0]["target"], rows[1]["target"], rows[2]["target"] = 0.5, 0.1, 0.6
    write(tmp_path / "tie.jsonl", rows)
    m = evaluated(world, tmp_path, data=str(tmp_path / "tie.jsonl"))
    assert m["pairs"] == 4
    assert list(m["dropped"].values()) == [2]


def test_equal_scores_are_ties_and_wrong(world, tmp_path):
    """With a head of zeros every pair is a tie."""
    model = AutoModelForSequenceClassification.from_pretrained(world / "a")
    model.score.weight.data.zero_()
    model.save_pretrained(tmp_path / "zero")
    demo.tokenizer().save_pretrained(tmp_path / "zero")
    m = evaluated(world, tmp_path, model=str(tmp_path / "zero"))
    assert (m["overall"]["ties"], m["overall"]["accuracy"]) == (PAIRS, 0)
    assert m["overall"]["loss"] > np.log(2)  # the pair with weight 2
    assert (m["calibration"]["ece"], m["overall"]["brier"]) == (0, 0.25)


def test_sections_by_the_names_of_the_subsets(world, tmp_path):
    rows = read(world / "pairs.jsonl")
    for row in rows:
        row["subset"] = {"x": "hep-go", "y": "math-prm"}[row["subset"]]
    write(tmp_path / "rb.jsonl", rows)
    m = evaluated(world, tmp_path, data=str(tmp_path / "rb.jsonl"))
    by = {name: values["accuracy"] for name, values in m["subsets"].items()}
    expected = (by["hep-go"] * 164 + by["math-prm"] * 984) / (164 + 984)
    assert m["rewardbench"]["sections"]["Reasoning"]["score"] == pytest.approx(expected)


def test_export_reads_back_to_the_same_scores(world, tmp_path, capsys):
    file = tmp_path / "rb.jsonl"
    first = evaluated(world, tmp_path, "--export", "rewardbench", str(file))
    assert "rewardbench --model" in capsys.readouterr().out
    rows = read(file)
    assert all(set(row) == {"chosen", "rejected"} for row in rows)
    given = read(world / "pairs.jsonl")
    assert [row["chosen"][-1]["content"] for row in rows] == [row["chosen"] for row in given]
    before = scores(tmp_path)
    again = evaluated(world, tmp_path, "--overwrite", data=str(file))
    np.testing.assert_allclose(scores(tmp_path), before, rtol=1e-5, atol=1e-6)
    assert again["overall"]["accuracy"] == first["overall"]["accuracy"]


def test_default_is_the_demo_model_trained_first(world, tmp_path, monkeypatch, capsys):
    """Training itself, which takes minutes, is stood in for by a model that is there already."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def trains(arguments):
        asked.append(arguments)
        (tmp_path / "runs" / "demo").mkdir(parents=True)
        shutil.copytree(world / "a", "runs/demo/FINAL")
        return 0

    monkeypatch.setattr(train, "main", trains)
    assert main([]) == 0
    assert asked == [["--resume"]]
    assert "trained first" in capsys.readouterr().out
    m = json.loads(Path("runs/eval-demo/metrics.json").read_text())
    assert m["pairs"] == demo.TEST_PROMPTS * demo.WRONG_ANSWERS
    assert set(m["subsets"]) == {"4 letters", "5 letters", "6 letters"}
    assert main(["--overwrite"]) == 0
    assert len(asked) == 1


def test_demo_that_cannot_be_trained_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "main", lambda arguments: 130)
    assert "not trained to its end" in refusal(capsys, [])
    assert "python -m rmkit.train" in refused_by_two(tmp_path / "said", [])


def refused_by_two(folder: Path, arguments: list[str]) -> str:
    """What two ranks say of an error, once."""
    with started(2, folder, main, arguments) as ranks:
        assert ranks.wait(120) == [2, 2]
    assert ranks.err(0).count("\u256d") == 1, "one box"
    assert ranks.err(1) == "", "it is said once"
    assert "connection" not in ranks.told(0)
    return ranks.told(0)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("bad file", "{tmp}/bad.jsonl, line 1: "),
        ("no file", "--data nowhere.jsonl: no such file"),
        ("full folder", "--out {tmp}/out: it holds notes.txt"),
        ("no model", "--model nowhere: no model configuration"),
        ("no head", "--model {world}/lm: it is a LlamaForCausalLM, which has no score head; train one with"),
        ("no other model", "--against nowhere: no model configuration"),
        ("too long", "--max-length 161: the model's context is 160"),
        ("none fits", "no pair is left of 40 (40 over-long (more than 2 tokens)); raise --max-length"),
    ],
)
def test_an_error_on_two_ranks_is_one_sentence(world, tmp_path, case, words):
    arguments = flags(world, tmp_path)
    if case == "bad file":
        arguments = flags(world, tmp_path, data=str(write(tmp_path / "bad.jsonl", [{"prompt": 3}])))
    elif case == "no file":
        arguments[3] = "nowhere.jsonl"
    elif case == "full folder":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").touch()
    elif case in ("no model", "no head"):
        arguments[1] = "nowhere" if case == "no model" else str(world / "lm")
    elif case == "no other model":
        arguments += ["--against", "nowhere"]
    else:
        arguments += ["--max-length", "161" if case == "too long" else "2"]
    told = refused_by_two(tmp_path / "said", arguments)
    assert told.replace(" ", "").startswith(words.format(tmp=tmp_path, world=world).replace(" ", "")), told
    assert "overlong" not in told, "evaluate has no such flag"


def refusal(capsys, arguments: list[str]) -> str:
    """What the user is told, on one line; the status must say that it was the input."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "\u256d" in err, "the sentence stands in a box"
    return " ".join(line.strip("\u2502 ") for line in err.splitlines() if line.startswith("\u2502"))


BAD = {
    "no such model": ({"model": "nowhere"}, (), "--model "),
    "causal LM": ({"model": "lm"}, (), "no score head"),
    "no such data": ({"data": "nowhere.jsonl"}, (), "--data "),
    "other model not there": ({}, ("--against", "nowhere/model"), "--against nowhere/model"),
    "too long for the context": ({}, ("--max-length", "4096"), "--max-length 4096"),
    "too long for the budget": ({}, ("--max-tokens", "100", "--max-length", "150"), "--max-tokens 100"),
    "nothing fits": ({}, ("--max-length", "4"), "raise --max-length"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_flag_is_named(world, tmp_path, capsys, name):
    which, more, words = BAD[name]
    told = refusal(capsys, flags(world, tmp_path, *more, **which))
    assert words in told
    # Within a command it is the flag of training.
    assert "--model.name" not in told.replace("python -m rmkit.train --model.name", "")
    assert "--data.test" not in told
    assert not (tmp_path / "out").exists()


def test_value_out_of_range_is_named(world, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags(world, tmp_path, "--max-length", "1"))
    assert stopped.value.code == 2
    assert "--max-length 1: set at least 2" in capsys.readouterr().err


def test_causal_lm_against_is_refused_before_the_first_model_is_scored(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Scorer, "score_tokens", lambda *_: pytest.fail("scored before the flags were checked"))
    told = refusal(capsys, flags(world, tmp_path, "--against", str(world / "lm")))
    assert "--against" in told
    assert "no score head" in told


def test_model_without_data_is_refused(world, capsys):
    assert "--data" in refusal(capsys, ["--model", str(world / "a")])


def test_results_and_foreign_files_are_not_overwritten(world, tmp_path, capsys):
    evaluated(world, tmp_path)
    capsys.readouterr()
    assert "--overwrite" in refusal(capsys, flags(world, tmp_path))
    export = write(tmp_path / "rb.jsonl", [{"mine": 1}])
    told = refusal(capsys, [*flags(world, tmp_path / "new"), "--export", "rewardbench", str(export)])
    assert "--export rewardbench" in told
    for read_here in (world / "pairs.jsonl", world / "a" / "new.jsonl"):
        asked = [*flags(world, tmp_path / "new"), "--overwrite", "--export", "rewardbench", str(read_here)]
        assert "it is what is read here" in refusal(capsys, asked)
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refusal(capsys, flags(world, tmp_path, "--overwrite"))
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    assert read(export) == [{"mine": 1}]


def test_out_that_cannot_be_made(world, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    told = refusal(capsys, flags(world, tmp_path / "file"))
    assert "--out" in told


def test_full_disk_leaves_nothing_half_written(world, tmp_path, capsys, monkeypatch):
    written = Path.write_text

    def fails(self, text, **more):
        if self.name == "report.html":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(self, text, **more)

    monkeypatch.setattr(Path, "write_text", fails)
    assert "No space left" in refusal(capsys, flags(world, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_not_finite_are_refused_with_the_pair(world, tmp_path, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(world / "a")
    model.score.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    demo.tokenizer().save_pretrained(tmp_path / "nan")
    told = refusal(capsys, flags(world, tmp_path, model=str(tmp_path / "nan")))
    assert "pairs.jsonl:1" in told.replace(" ", "")
    assert f"{PAIRS} such pairs" in told


def test_without_matplotlib_the_extra_is_named(world, tmp_path, capsys, monkeypatch):
    for name in ("plots", "report"):
        monkeypatch.delitem(sys.modules, f"rmkit.evaluation.{name}", raising=False)
        monkeypatch.delattr(rmkit.evaluation, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'rmkit[report]'" in refusal(capsys, flags(world, tmp_path))


def test_report_quotes_the_data_as_text(world, tmp_path):
    rows = read(world / "pairs.jsonl")[:6]
    for row in rows:
        row["prompt"] += "<script>alert(1)</script>"
    write(tmp_path / "evil.jsonl", rows)
    evaluated(world, tmp_path, data=str(tmp_path / "evil.jsonl"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
