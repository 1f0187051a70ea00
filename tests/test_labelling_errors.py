"""Standard errors in what label writes: kept with the scores; those of a pair under the shared error of the head."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rmkit.data import source
from rmkit.label import main
from rmkit.labelling import errors
from rmkit.labelling.partial import PartialScores
from rmkit.scorer import load_scorer
from rmkit.storage.export import write_model
from rmkit.storage.trust import FILE
from support.saved import CONFIG, TOKENIZER, drawn, drawn_trust, small

CPU = torch.device("cpu")
RESPONSES = ("a", "bcd", "efgh", "ij")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    model = small()
    worth = drawn_trust(model)
    write_model(model, TOKENIZER, CONFIG, 77, folder / "rm", None, worth)
    write_model(model, TOKENIZER, CONFIG, 77, folder / "plain", None, replace(worth, posterior=None))
    write_model(model, TOKENIZER, CONFIG, 77, folder / "bare")
    untold = replace(worth, temperature=None, temperature_with_se=None)
    write_model(model, TOKENIZER, CONFIG, 77, folder / "emptied", None, untold)
    (folder / "emptied" / FILE).unlink()
    rows = [{"prompt": f"say {i}", "responses": [f"{r}{i}" for r in RESPONSES]} for i in range(12)]
    (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def labelled(world: Path, out: Path, *more: str, model: str = "rm") -> list[dict]:
    assert main(["--model", str(world / model), str(world / "s.jsonl"), str(out), *more]) == 0
    return list(map(json.loads, out.open()))


def test_differences_come_from_what_a_line_holds(tmp_path):
    rng, made = np.random.default_rng(0), drawn(6)
    features, group = rng.normal(size=(9, 6)).astype(np.float32), np.array([4, 4, 4, 1, 7, 7, 7, 7, 2])
    features[5] = np.nan
    partial = PartialScores(tmp_path / "f.json")
    partial.folder.mkdir()
    order, bounds = np.array([3, 1, 2, 0, 8, 7, 6, 5, 4, 9, 10]), [0, 9, 11]
    with partial.writer(0) as write:
        write({"chunk": 1, "scores": [1.0, 2.0], "skipped": {}, **errors.of_chunk(features[:2], group[:2], made)})
        write({"chunk": 0, "scores": [0.0] * 9, "skipped": {}, **errors.of_chunk(features, group, made)})
    found = errors.Errors(partial, order, bounds)
    np.testing.assert_allclose(found.se[order[:9]], made.reward_se(features), rtol=1e-6)
    places = [7, 4, 6]  # of the second prompt, in any order; the third place is not scored
    wanted = [[made.difference_se(np.float64(features[i] - features[j])[None])[0] for j in places] for i in places]
    np.testing.assert_allclose(found.of_differences(order[places]), wanted, atol=1e-4)
    assert found.of_differences(order[[0, 1]])[0, 1] == pytest.approx(found.of_differences(order[[9, 10]])[0, 1])
    assert found.of_differences(order[[0, 9]]) is None, "they stand in two chunks"


def test_pairs_have_a_probability_and_the_error_of_their_difference(world, tmp_path):
    found = labelled(world, tmp_path / "f.jsonl", "--feedback", "pairwise", "--pairing", "all")
    assert len(found) == 12 * 6
    scorer = load_scorer(world / "rm", device=CPU)
    for row in found[:12]:
        sides = [row[f"output_{side}"][0]["content"] for side in ("AB" if row["label"] else "BA")]
        wanted = scorer.compare(row["prompt"][0]["content"], *sides, with_se=True)
        assert row["difference_se"] == pytest.approx(wanted.difference_se, rel=1e-4)
        assert row["probability"] == pytest.approx(wanted.probability, rel=1e-4)
        assert row["probability"] > 0.5


@pytest.mark.parametrize("form", ["halos", "trl", "openrlhf"])
def test_train_reads_them_in_every_format(world, tmp_path, form):
    found = labelled(world, tmp_path / "f.jsonl", "--feedback", "pairwise", "--format", form)
    assert all({"probability", "difference_se"} <= row.keys() for row in found)
    assert len(source.load((str(tmp_path / "f.jsonl"),), "train", lambda text: None)) == 12
    scalar = labelled(world, tmp_path / "g.jsonl", "--format", form)
    scorer = load_scorer(world / "rm", device=CPU)
    first = scorer.score(prompts=["say 0"], responses=["a0"], with_se=True)[0]
    assert scalar[0]["reward_se"] == pytest.approx(first.se, rel=1e-5)


def test_pairs_that_the_model_cannot_tell_are_left_out_and_counted(world, tmp_path, capsys):
    asked = ("--feedback", "pairwise", "--pairing", "all")
    every = labelled(world, tmp_path / "all.jsonl", *asked)
    limit = float(np.median([row["probability"] for row in every]))
    capsys.readouterr()
    some = labelled(world, tmp_path / "some.jsonl", *asked, "--min-confidence", str(limit))
    assert some == [row for row in every if row["probability"] >= limit]
    told = " ".join(capsys.readouterr().out.split())
    assert f"pairs with a probability under {limit}: left out {len(every) - len(some)}" in told


def test_prompts_with_too_many_samples_are_counted(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(errors, "MANY", 3)
    found = labelled(world, tmp_path / "f.jsonl", "--feedback", "pairwise")
    assert all("probability" in row and "difference_se" not in row for row in found)
    assert f"prompts with more than {errors.MANY} samples: no difference_se 12" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_temperature_alone_gives_probabilities(world, tmp_path):
    asked = ("--feedback", "pairwise", "--pairing", "all")
    found = labelled(world, tmp_path / "f.jsonl", *asked, model="plain")
    assert len(found) == 12 * 6
    for row in found:
        assert "difference_se" not in row
        margin = abs(row["reward_A"] - row["reward_B"])
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(-margin / 2.0)), rel=1e-6)
    assert not any("reward_se" in row for row in labelled(world, tmp_path / "s.jsonl", model="plain"))
    limit = float(np.median([row["probability"] for row in found]))
    some = labelled(world, tmp_path / "g.jsonl", *asked, "--min-confidence", str(limit), model="plain")
    assert some == [row for row in found if row["probability"] >= limit]
    assert 0 < len(some) < len(found)


@pytest.mark.parametrize("model", ["bare", "emptied"])
def test_a_model_with_neither_posterior_nor_temperature(world, tmp_path, capsys, model):
    found = labelled(world, tmp_path / "f.jsonl", "--feedback", "pairwise", model=model)
    assert not {"probability", "difference_se"} & found[0].keys()
    asked = ["--model", str(world / model), str(world / "s.jsonl"), str(tmp_path / "g.jsonl")]
    assert main([*asked, "--feedback", "pairwise", "--min-confidence", "0.7"]) == 2
    told = " ".join(line.strip("\u2502 ") for line in capsys.readouterr().err.splitlines())
    assert "--min-confidence 0.7: the model has no posterior of its head" in told
    assert not (tmp_path / "g.jsonl").exists()


@pytest.mark.parametrize(("flags", "told"), [(["0.4"], "set a probability from 0.5 to below 1"), (["0.7"], "no pairs")])
def test_a_wrong_confidence(world, tmp_path, capsys, flags, told):
    asked = ["--model", str(world / "rm"), str(world / "s.jsonl"), str(tmp_path / "f.jsonl")]
    pairwise = ["--feedback", "pairwise"] if flags == ["0.4"] else []
    with pytest.raises(SystemExit):
        main([*asked, *pairwise, "--min-confidence", *flags])
    assert told in " ".join(line.strip("\u2502 ") for line in capsys.readouterr().err.splitlines())
