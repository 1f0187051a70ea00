"""The page of a run, while it trains: it appears, it is never in the way, and heldout.jsonl is what was computed."""

import json

import numpy as np
import pytest
from datasets import Dataset

import rmkit.training.page as of_training
from rmkit import BatchConfig, EvalConfig, OptimConfig, SaveConfig, TrainConfig, fit, load_scorer
from rmkit.data.cache import features
from rmkit.pages import heldout
from rmkit.training.record import process_gib
from support.page_reader import EVIL, read, text_of
from support.pairs_of import tokenised
from support.victim import lines

WORDS = ("abc", "bcd", "cde", "def", "abd", "ace", "fgh", "ghi")
ROWS = [{"prompt": f"reverse {word}", "chosen": word[::-1], "rejected": word} for word in WORDS]
TEST = [{"prompt": "reverse xyz", "chosen": "xyz", "rejected": "zyx"}, *ROWS[:4]]
"""The first is labelled the wrong way round"""


def config(cache, **more) -> TrainConfig:
    given = {"exp_name": "r", "batch": BatchConfig(pairs=4), "eval": EvalConfig(every=2), "save": SaveConfig(every=2)}
    given["optim"] = OptimConfig(lr=2e-3, max_steps=4, epochs=2)
    return TrainConfig(cache_dir=str(cache), **given | more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps and three evaluations, and the page as it was each time it was written."""
    seen, write = [], of_training.run_page.write

    def watched(run):
        write(run)
        seen.append((run.state, text_of((run.path / "report.html").read_text())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_training.run_page, "write", watched)
        result = fit(config(tmp_path_factory.mktemp("page")), train=ROWS, test=TEST, quiet=True)
    return result, seen


def test_page_is_there_while_it_trains_and_at_the_end(trained):
    result, seen = trained
    states = [state for state, _ in seen]
    assert states[-1] == "finished"
    assert set(states[:-1]) == {"running"}, "there is a page before the end"
    assert "It is being trained: step 0 of 4" in seen[0][1]
    assert "Finished after 4 steps" in seen[-1][1]
    page = (result.final.parent / "report.html").read_text()
    assert read(page).tags.count("svg") == 11
    assert "rows in memory" in page
    assert "8" in page


def test_heldout_is_what_the_model_says_of_the_pairs(trained):
    result, _ = trained
    held, scorer = heldout.read(result.final.parent), load_scorer(result.final)
    assert held.step == 4
    margins = [scorer.compare(row["prompt"], row["chosen"], row["rejected"])[0] for row in TEST]
    np.testing.assert_allclose(held.margin, margins, rtol=1e-4, atol=1e-5)
    last = lines(result.final.parent)[-1]
    assert (held.margin > 0).mean() == last["rewards_eval/accuracies"]
    assert held.margin.mean() == pytest.approx(last["rewards_eval/margins"], rel=1e-5)
    assert set(held.worst) == {i for i in range(len(TEST)) if held.margin[i] < 0}


def test_env_says_what_was_read_and_how_many_steps_there_are(trained):
    env = json.loads((trained[0].final.parent / "env.json").read_text())
    assert env["steps"] == 4
    assert {name: of_set["pairs"] for name, of_set in env["data"].items()} == {"train": 8, "test": 5}


def test_on_a_cpu_memory_is_that_of_the_process(trained):
    written = (trained[0].final.parent / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, written) if "loss/train" in line]
    held = [line["memory/process_gib"] for line in steps]
    assert 0.01 < held[0] <= held[-1]
    assert held[-1] <= process_gib() < 1024
    assert not any("memory/peak_gib" in line for line in steps)
    page = text_of((trained[0].final.parent / "report.html").read_text())
    assert f"peak memory {held[-1]:.1f} GiB of the first rank's process" in page
    assert "Memory of the process" in page


def test_resume_goes_on_with_the_same_page(trained, tmp_path):
    short = OptimConfig(lr=2e-3, max_steps=2, epochs=2)
    first = fit(config(tmp_path, optim=short), train=ROWS, test=TEST, quiet=True).final.parent
    assert "Finished after 2 steps" in text_of((first / "report.html").read_text())
    run = fit(config(tmp_path, resume=True), train=ROWS, test=TEST, quiet=True).final.parent
    text = text_of((run / "report.html").read_text())
    assert "Finished after 4 steps" in text
    assert "16 pairs seen" in text
    assert heldout.read(run).step == 4


@pytest.mark.parametrize("what", ["run_page", "heldout"])
def test_a_page_that_cannot_be_written_stops_nothing_and_is_said_once(trained, tmp_path, monkeypatch, capsys, what):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(getattr(of_training, what), "write", full)
    result = fit(config(tmp_path), train=ROWS, test=TEST)
    assert (result.final / "model.safetensors").read_bytes() == (trained[0].final / "model.safetensors").read_bytes()
    assert lines(tmp_path / "r") == lines(trained[0].final.parent)
    said = capsys.readouterr().out
    assert said.count("report.html could not be written, training goes on without it") == 1
    assert "No space left on device" in said


def test_without_held_out_pairs_there_is_a_page_of_the_steps(tmp_path):
    run = fit(config(tmp_path), train=ROWS, quiet=True).final.parent
    assert "no held-out pairs were evaluated" in text_of((run / "report.html").read_text())
    assert not (run / "heldout.jsonl").exists()


class Column(list):
    """A column of sequences that stand in the rows of a table in their own order."""

    @property
    def rows(self) -> np.ndarray:
        return np.arange(len(self))


def known(target, compared) -> of_training.Known:
    """Four pairs whose texts are long and hostile."""
    long = EVIL + "x" * 5000
    turns = {"prompt": ("user", long), "chosen": ("assistant", "yes"), "rejected": ("assistant", long)}
    sides = {name: [{"role": role, "content": text}] for name, (role, text) in turns.items()}
    rest = {"more": None, "margin": 0.0, "weight": 1.0, "target": None, "ratings": None, "compared": 1.0}
    rest |= {"subset": None, "id": None}
    rows = [{**sides, **rest, "source": f"f:{i}"} for i in range(4)]
    pairs = tokenised(Column(np.arange(3, 6 + i) for i in range(4)), Column([np.arange(3, 6)] * 4))
    pairs.labels.columns["target"] = np.array(target)
    pairs.labels.columns["compared"] = np.array(compared)
    return of_training.Known.of(Dataset.from_list(rows, features=features()), pairs)


def test_worst_pairs_are_wrong_ones_that_the_label_decides():
    nan = np.nan
    of = known([nan, 0.5, nan, 0.9], [1.0, 1.0, 1.0, 1.0])
    held = of.judged(3, np.array([[0, 1], [0, 9], [2, 1], [0, 3]], np.float32))
    assert held.worst == [3, 0]
    assert held.tokens.tolist() == [[3, 3], [4, 3], [5, 3], [6, 3]]
    texts = held.texts[3]
    assert texts["prompt"].startswith("[...] ")
    assert texts["rejected"].endswith(" [...]")
    assert max(map(len, texts.values())) < of_training.QUOTE + 10


def test_ratings_alone_and_scores_that_are_no_numbers_are_left_out():
    of = known([np.nan] * 4, [1.0, 0.0, 1.0, 1.0])
    held = of.judged(3, np.array([[0, 1], [0, 9], [np.nan, 1], [0.1, 3]], np.float32))
    assert [source[-1] for source in held.source] == ["0", "3"]
    assert held.scores.tolist() == [[0.0, 1.0], [0.1, 3.0]]
    assert len(of.judged(3, np.full((4, 2), np.inf, np.float32)).pair) == 0
