"""What a trained model says of its own scores: measured after the last step, saved in FINAL, read by a scorer."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rmkit import BatchConfig, OptimConfig, TrainConfig, fit, load_scorer
from rmkit.config import TrustConfig
from rmkit.data.tokenizer import encode
from rmkit.errors import UserError
from rmkit.model import probability
from rmkit.model.posterior import posterior
from rmkit.pages.verdicts import calibration
from rmkit.storage import trust as storage
from rmkit.train import main
from rmkit.training import trust
from rmkit.training.metrics import CLOCK_KEYS
from support import ranks
from support.page_reader import text_of
from support.pairs_of import tokenised

CPU = torch.device("cpu")


def rows(count: int, seed: int) -> list[dict]:
    """Pairs whose better side is all a, of which one in five is labelled the wrong way round; three on a prompt."""
    rng, made = random.Random(seed), []
    for i in range(count):
        sides = ["a" * rng.randint(2, 5), "b" * rng.randint(2, 5)]
        if rng.random() < 0.2:
            sides.reverse()
        prompt = "".join(random.Random(f"{seed} {i // 3}").sample("cdefghijkl", 5))
        made.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1], "weight": 1.0 + i % 2})
    return made


TRAIN, TEST = rows(60, 0), rows(60, 1)


def config(folder: Path, **more) -> TrainConfig:
    given = {"exp_name": "x", "batch": BatchConfig(pairs=16), "optim": OptimConfig(lr=5e-3, max_steps=8, epochs=2)}
    return TrainConfig(cache_dir=str(folder), **{**given, **more})


@pytest.fixture(scope="module")
def final(tmp_path_factory) -> Path:
    return fit(config(tmp_path_factory.mktemp("runs")), train=TRAIN, test=TEST, quiet=True).final


def held(folder: Path) -> dict:
    return json.loads((folder / "rmkit.json").read_text())["trust"]


def pairs_of(scorer, given: list[dict]):
    """Rows as tokenised pairs, and their features, float64."""
    turns = [
        [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}] for row in given]
        for side in ("chosen", "rejected")
    ]
    texts = [[scorer._rendered(each, 0, None) for each in side] for side in turns]
    ids = [[np.array(each, np.int32) for each in encode(scorer.tokenizer, side)] for side in texts]
    return scorer.features(tokenised(*ids)).astype(np.float64)


def test_it_is_the_posterior_of_all_training_pairs(final):
    scorer = load_scorer(final, device=CPU)
    x, w = pairs_of(scorer, TRAIN), scorer.model.classifier.score.weight[0].detach().double()
    p = 1 / (1 + np.exp(-x @ w.numpy()))
    weight = np.array([row["weight"] for row in TRAIN]) * p * (1 - p)
    brute = posterior(torch.from_numpy((x * weight[:, None]).T @ x), w, torch.zeros(len(w)).double())
    found = scorer.trust.posterior
    assert found.prior == pytest.approx(brute.prior, rel=1e-5)
    np.testing.assert_allclose(found.variance(x), brute.variance(x), rtol=1e-5)
    assert (held(final)["sampled_pairs"], held(final)["training_pairs"]) == (len(TRAIN),) * 2


def test_the_temperatures_are_those_of_the_held_out_pairs(final):
    scorer = load_scorer(final, device=CPU)
    x, w = pairs_of(scorer, TEST), scorer.model.classifier.score.weight[0].detach().double().numpy()
    se = scorer.trust.posterior.difference_se(x)
    assert scorer.trust.temperature == pytest.approx(probability.temperature(x @ w), rel=1e-3)
    assert scorer.trust.temperature_with_se == pytest.approx(probability.temperature(x @ w, 1.0, se), rel=1e-3)
    assert scorer.trust.held_out_pairs == len(TEST)
    found = calibration(x @ w)
    told = f"margin d, ten bins)\n{found['ece']:.4f}, Brier score {found['brier']:.4f} (a coin: 0.25). Divided by"
    assert told in (final / "README.md").read_text()
    size = (final / storage.FILE).stat().st_size
    assert f"`posterior.safetensors` ({size / 1e3:,.1f} kB)" in (final / "README.md").read_text()
    page = text_of((final.parent / "report.html").read_text())
    assert f"temperature {scorer.trust.temperature:.3f} (fitted on {len(TEST)} of these pairs" in page


@pytest.mark.parametrize(
    ("temperature", "whole", "told"),
    [
        (None, False, "X has neither posterior nor temperature: no standard errors, no probabilities"),
        (2.0, False, "X has no posterior: no standard errors, and probabilities are by its temperature alone"),
        (None, True, "X has no temperature: a margin counts as log odds as it is"),
        (2.0, True, ""),
    ],
)
def test_what_a_folder_does_not_tell_is_said(temperature, whole, told, final):
    made = load_scorer(final, device=CPU).trust.posterior if whole else None
    assert storage.missing(storage.Trust(temperature=temperature, posterior=made), "X") == told
    if temperature is None and not whole:
        assert storage.missing(None, "X") == told


def test_what_a_posterior_does_not_tell_is_said():
    made = posterior(torch.eye(8).double(), torch.ones(8).double(), torch.zeros(8).double())
    assert trust._limits(made, 8) == ""
    assert trust._limits(made, 7) == ", fewer than its 8 hidden units: its standard errors are too wide (--trust.pairs)"
    part = replace(made, directions=made.directions[:, :3], precision=made.precision[:3], factor=3.44)
    told = "; 3 of 8 directions are kept, no variance is off by more than 3.4 times"
    assert trust._limits(part, 8) == told


def test_the_classifier_stays_an_ordinary_one(final):
    """A server that takes every .safetensors for weights goes by the index, which does not name the posterior."""
    index = json.loads((final / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index.values()) == {"model.safetensors"}
    assert set(index) == set(load_file(final / "model.safetensors"))
    model = AutoModelForSequenceClassification.from_pretrained(final)
    check = json.loads((final / "rmkit.json").read_text())["self_check"]
    found = [model(torch.tensor([ids])).logits[0, 0].item() for ids in check["ids"]]
    assert found == pytest.approx(check["scores"], abs=1e-5)
    with safe_open(final / storage.FILE, "pt") as opened:
        described = json.loads(opened.metadata()["posterior"])
    assert described["what"].endswith("128 of 128 directions of its precision")
    assert described["factor"] == 1.0


def test_off_leaves_nothing_and_changes_nothing_else(final, tmp_path):
    off = fit(config(tmp_path, trust=TrustConfig(posterior="off")), train=TRAIN, test=TEST, quiet=True).final
    names = {storage.FILE, "model.safetensors.index.json"}
    assert {path.name for path in final.iterdir()} - {path.name for path in off.iterdir()} == names
    assert (off / "model.safetensors").read_bytes() == (final / "model.safetensors").read_bytes()
    assert "trust" not in json.loads((off / "rmkit.json").read_text())

    def lines(folder: Path) -> list[dict]:
        read = map(json.loads, (folder.parent / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if key not in CLOCK_KEYS} for line in read]

    assert lines(off) == lines(final)
    scorer = load_scorer(off, device=CPU)
    with pytest.raises(ValueError, match="the model has no posterior of its head"):
        scorer.score(prompts=["a"], responses=["b"], with_se=True)


def test_a_scorer_gives_standard_errors(final):
    scorer = load_scorer(final, device=CPU)
    asked = {"prompts": ["reverse abc", "reverse abc"], "responses": ["cba", "abc"]}
    rewards = scorer.score(**asked, with_se=True)
    assert [reward.reward for reward in rewards] == scorer.score(**asked)
    assert all(reward.se > 0 for reward in rewards)
    found, plain = (scorer.compare("reverse abc", "cba", "abc", with_se=each) for each in (True, False))
    assert found.margin == pytest.approx(plain.margin, abs=1e-6)
    independent = np.hypot(*(reward.se for reward in rewards))
    assert 0 < found.difference_se < independent, "the two share the error of the head"
    wanted = probability.probability(found.margin, found.difference_se, scorer.trust.temperature_with_se)
    assert found.probability == pytest.approx(wanted)


def test_a_sample_stands_for_all_and_is_drawn_from_the_seed(tmp_path):
    made = [
        fit(config(tmp_path, exp_name=name, trust=TrustConfig(pairs=31)), train=TRAIN, test=TEST, quiet=True).final
        for name in "ab"
    ]
    assert (made[0] / storage.FILE).read_bytes() == (made[1] / storage.FILE).read_bytes()
    assert (held(made[0])["sampled_pairs"], held(made[0])["training_pairs"]) == (31, len(TRAIN))
    assert held(made[0])["held_out_pairs"] == 31


@pytest.mark.parametrize(
    ("seen", "looked_at"), [(1, 128), (8_192, 128), (8_256, 129), (78_016, 1219), (262_144, 4096), (10**7, 4096)]
)
def test_how_many_pairs_are_looked_at(seen, looked_at, tmp_path):
    run, progress = SimpleNamespace(config=config(tmp_path)), SimpleNamespace(examples=seen)
    assert trust.most_pairs(run, progress) == looked_at
    run.config = config(tmp_path, trust=TrustConfig(pairs=31))
    assert trust.most_pairs(run, progress) == 31


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_give_the_posterior_of_one(strategy, final, tmp_path):
    """From weights that are trained already, which stay: another number of ranks would train others in the last bit."""
    for name, given in (("train", TRAIN), ("test", TEST)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    asked = ["--data.train", str(tmp_path / "train.jsonl"), "--data.test", str(tmp_path / "test.jsonl")]
    asked += ["--cache-dir", str(tmp_path), "--batch.pairs", "16", "--optim.lr", "1e-9", "--model.name", str(final)]
    for count in (1, 2):
        given = [*asked, "--exp-name", f"r{count}", "--parallel.strategy", strategy if count > 1 else "auto"]
        ranks.run(count, tmp_path / f"said{count}", main, given)
    one, two = (storage.load(tmp_path / f"r{count}" / "FINAL", 128) for count in (1, 2))
    assert two.posterior.prior == pytest.approx(one.posterior.prior, rel=1e-6)
    x = np.random.default_rng(0).normal(size=(50, 128))
    np.testing.assert_allclose(two.posterior.variance(x), one.posterior.variance(x), rtol=1e-6)
    np.testing.assert_allclose(two.posterior.mean, one.posterior.mean, atol=1e-6)
    assert two.temperature == pytest.approx(one.temperature, rel=1e-4)


CASES = {
    "no held-out pairs": (
        {"test": None},
        "no temperature: there are no held-out pairs to fit it on (give --data.test)",
    ),
    "few held-out pairs": ({"test": TEST[:9]}, "no temperature: 9 held-out pairs are too few, need 30"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_out_is_said(case, tmp_path, capsys):
    given, told = CASES[case]
    folder = fit(config(tmp_path), train=TRAIN, **given).final
    assert told in capsys.readouterr().out
    assert (folder / storage.FILE).is_file()
    assert held(folder)["temperature"] is None
    assert load_scorer(folder, device=CPU).compare("reverse abc", "cba", "abc", with_se=True).difference_se > 0


def test_features_that_are_constant(tmp_path, capsys, monkeypatch):
    inner = trust._ends

    def same(*arguments):
        return ((part, chosen, chosen) for part, chosen, _ in inner(*arguments))

    monkeypatch.setattr(trust, "_ends", same)
    folder = fit(config(tmp_path), train=TRAIN, test=TEST).final
    told = capsys.readouterr().out
    assert "no posterior of the score head: both sides of every pair have the same end state" in told
    assert "no temperature: the scores tell no more of the 60 held-out pairs than a coin does" in told
    assert not (folder / storage.FILE).exists()
    assert load_scorer(folder, device=CPU).trust is None


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("out of something"), "out of something"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "the memory of the GPU is full"),
    ],
)
def test_whatever_fails_after_training_the_model_is_saved(tmp_path, capsys, monkeypatch, error, why):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(trust, "posterior", fails)
    folder = fit(config(tmp_path), train=TRAIN, test=TEST).final
    assert f"no posterior and no temperature: {why}. The model is saved without them" in capsys.readouterr().out
    assert not (folder / storage.FILE).exists()
    load_scorer(folder, device=CPU)


def spoiled(final: Path, folder: Path, change) -> Path:
    shutil.copytree(final, folder)
    change(folder)
    return folder


def other_trust(folder: Path, **values) -> None:
    contract = json.loads((folder / "rmkit.json").read_text())
    contract["trust"] |= values
    (folder / "rmkit.json").write_text(json.dumps(contract))


def cut(folder: Path) -> None:
    file = folder / storage.FILE
    file.write_bytes(file.read_bytes()[:-8])


def garbage(folder: Path) -> None:
    (folder / storage.FILE).write_bytes(b"garbage")
    other_trust(folder, posterior={"sha256": storage.sha256(folder / storage.FILE)})


SPOILT = {
    "cut": (cut, "it is not the one that rmkit.json names (its checksum differs); restore the file, or delete it"),
    "garbage": (garbage, "posterior.safetensors: it cannot be read"),
    "a temperature of text": (lambda folder: other_trust(folder, temperature="warm"), "its trust cannot be read"),
    "below zero": (lambda folder: other_trust(folder, temperature=-1.0), "a temperature is no positive number"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoiled_folder_is_refused_with_what_to_do(case, final, tmp_path):
    change, told = SPOILT[case]
    with pytest.raises(UserError) as caught:
        storage.load(spoiled(final, tmp_path / "m", change), 128)
    assert told in str(caught.value)


def test_one_of_another_size_is_refused(final):
    with pytest.raises(UserError, match="it does not fit a model of 64 hidden units"):
        storage.load(final, 64)


def test_without_the_file_it_scores_as_ever(final, tmp_path):
    folder = spoiled(final, tmp_path / "m", lambda folder: (folder / storage.FILE).unlink())
    scorer = load_scorer(folder, device=CPU)
    assert scorer.trust == replace(load_scorer(final, device=CPU).trust, posterior=None)
    with pytest.raises(ValueError, match="no posterior of its head"):
        scorer.compare("a", "b", "c", with_se=True)
