"""rmkit from Python: training, scoring, HALOs' interface, and what a researcher adds from outside."""

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate.tracking import GeneralTracker
from datasets import Dataset

import rmkit
from rmkit import (
    BatchConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    fit,
    load_scorer,
)
from rmkit.data.forms import LABELS, Label
from rmkit.model.head import HEADS, Head
from rmkit.model.loss import LOSSES
from rmkit.training.trackers import TRACKERS
from rmkit.training.validation import means
from support.pairs_of import batches_of, random_tokenised

ROOT = Path(__file__).parents[1]
WORDS = ("abc", "bcd", "cde", "def", "abd", "ace", "fgh", "ghi")
ROWS = [{"prompt": f"reverse {word}", "chosen": word[::-1], "rejected": word} for word in WORDS]
RATED = [
    {"prompt": f"reverse {word}", "response": answer, "ratings": {"right": right, "short": 3.0 if right else None}}
    for word in WORDS
    for answer, right in ((word[::-1], 1.0), (word, 0.0))
]


def config(folder: Path, **more) -> TrainConfig:
    given = {"exp_name": "x", "batch": BatchConfig(pairs=4), "optim": OptimConfig(lr=2e-3, max_steps=4, epochs=2)}
    return TrainConfig(cache_dir=str(folder), **{**given, **more})


def lines(result) -> list[dict]:
    return [json.loads(line) for line in (result.final.parent / "metrics.jsonl").read_text().splitlines()]


def conversation(word: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": f"reverse {word}"}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fit(config(tmp_path_factory.mktemp("api")), train=ROWS, test=ROWS[:3], quiet=True)


def test_fit_leaves_what_the_program_leaves(trained):
    assert trained.progress.step == 4
    assert trained.stopped is None
    assert trained.metrics["pairs"] == 3
    assert 0.0 <= trained.metrics["rewards_eval/accuracies"] <= 1.0
    assert [row["counters/updates"] for row in lines(trained)] == [0, 1, 2, 3, 4, 4]
    assert (trained.final / "model.safetensors").is_file()


def test_fit_changes_nothing_of_the_process_and_can_be_called_again(tmp_path):
    torch.manual_seed(5)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = fit(config(tmp_path), train=ROWS, quiet=True)
    second = fit(config(tmp_path, exp_name="y"), train=Dataset.from_list(ROWS), quiet=True)
    assert (first.final / "model.safetensors").read_bytes() == (second.final / "model.safetensors").read_bytes()
    assert second.metrics == {}
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("ahead", "checkpoint"))]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_rows_in_memory_are_those_of_a_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    of_file = fit(config(tmp_path, data=DataConfig(train=(str(file),))), quiet=True)
    of_memory = fit(config(tmp_path, exp_name="y"), train=ROWS, quiet=True)
    assert (of_file.final / "model.safetensors").read_bytes() == (of_memory.final / "model.safetensors").read_bytes()


def test_a_scorer_scores_conversations_and_compares(trained):
    rm = load_scorer(trained.final)
    one = conversation("abc", "cba")
    both = rm.score([one, conversation("abc", "abc")])
    assert rm.score(one) == pytest.approx(both[0], rel=1e-5)
    assert rm.score(prompts=["reverse abc"] * 2, responses=["cba", "abc"]) == pytest.approx(both, rel=1e-5)
    found = rm.compare("reverse abc", "cba", "abc")
    assert found.margin == pytest.approx(both[0] - both[1], abs=1e-5)
    assert found.probability == pytest.approx(torch.sigmoid(torch.tensor(found.margin)).item())


BAD = [
    (lambda rm: rm.score([]), r"the list is empty"),
    (lambda rm: rm.score([{"role": "user", "content": "x"}]), r"conversation 0: it ends in a turn of user"),
    (lambda rm: rm.score([{"role": "assistant", "content": "x"}]), r"conversation 0: it is one message"),
    (lambda rm: rm.score([conversation("a", "b"), []]), r"conversation 1: it is empty"),
    (
        lambda rm: rm.score([[{"role": "system", "content": "s"}, {"role": "assistant", "content": "x"}]]),
        r"^conversation 0: the conversation has no user turn .*'system'",
    ),
    (lambda rm: rm.score(["text"]), r"conversation 0: found a text"),
    (lambda rm: rm.score(prompts=["a"], responses=[]), r"as many responses as prompts"),
    (lambda rm: rm.score(prompts=["a"]), r"give conversations, or prompts and responses"),
    (lambda rm: rm.score(conversation("a" * 300, "b")), r"conversation 0: it has \d+ tokens, need 1 to 256"),
]


@pytest.mark.parametrize(("asked", "told"), BAD)
def test_what_cannot_be_scored_is_named(trained, asked, told):
    with pytest.raises(ValueError, match=told):
        asked(load_scorer(trained.final))


def test_what_cannot_be_trained_is_named(trained, tmp_path):
    with pytest.raises(ValueError, match=r"holds FINAL, checkpoints, metrics\.jsonl of an earlier run"):
        fit(config(trained.final.parents[1]), train=ROWS, quiet=True)
    with pytest.raises(ValueError, match=r"loss\.name ipo: there is no such loss"):
        fit(config(tmp_path, loss=LossConfig(name="ipo")), train=ROWS, quiet=True)
    with pytest.raises(ValueError, match=r"train rows"):
        fit(config(tmp_path), train=[], quiet=True)
    with pytest.raises(ValueError, match=r"train rows, row 0: found the fields prompt, better"):
        fit(config(tmp_path), train=[{"prompt": "a", "better": "b"}], quiet=True)
    multi = ModelConfig(head="multi", objectives=("kind",))
    with pytest.raises(ValueError, match=r"model\.objectives kind: no row of the training data has ratings of any"):
        fit(config(tmp_path, model=multi), train=ROWS, quiet=True)
    with pytest.raises(ValueError, match=r"is a rated response, compared with nothing; set --model\.head multi"):
        fit(config(tmp_path), train=RATED, quiet=True)


@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
@pytest.mark.parametrize("rows", [RATED, [*RATED, *ROWS]], ids=["alone", "beside pairs"])
def test_a_multi_head_learns_its_objectives(tmp_path, rows, layout):
    multi = ModelConfig(head="multi", objectives=("right=0.9", "short=0.1"))
    batch = BatchConfig(pairs=12, layout=layout)
    optim = OptimConfig(lr=5e-3, epochs=12, schedule="constant")
    data = DataConfig(train=written(tmp_path, rows), test=written(tmp_path, rows))
    result = fit(config(tmp_path, model=multi, batch=batch, optim=optim, data=data), quiet=True)
    steps = [row for row in lines(result) if "loss/train" in row]
    assert result.metrics["squared_error_eval/short"] < 1.0
    assert steps[-1]["squared_error_train/right"] < 0.5 * steps[0]["squared_error_train/right"]
    assert ("rewards_train/accuracies" in steps[0]) == (len(rows) > len(RATED))
    saved = json.loads((result.final / "config.json").read_text())
    assert saved["id2label"] == {"0": "right", "1": "short"}
    rm = load_scorer(result.final)
    assert rm.model.head == Head(labels=("right", "short"), reward=(0.9, 0.1), rated=True)
    assert rm.compare("reverse abc", "cba", "abc").margin > 0


def written(folder: Path, rows: list[dict]) -> tuple[str, ...]:
    """A file for the rated responses and one for the pairs."""
    files = []
    for name, some in (("rated", [r for r in rows if "ratings" in r]), ("pairs", [r for r in rows if "chosen" in r])):
        if some:
            files.append(str(folder / f"{name}.jsonl"))
            Path(files[-1]).write_text("".join(json.dumps(row) + "\n" for row in some))
    return tuple(files)


def test_halos_interface():
    """HALOs' forward, loss and get_batch_metrics, from its formulas and from rmkit's calls."""
    pairs, n = random_tokenised(6), 6
    from rmkit.model.reward_model import RewardModel
    from support.oracle import reward_model, tiny_classifier

    model: RewardModel = reward_model(tiny_classifier("llama", num_labels=2), "trie")
    for name, value in (("margin", 0.0), ("weight", 1.0), ("target", float("nan"))):
        pairs.labels[name][:] = value
    batch = batches_of(pairs).pack(torch.arange(n).numpy())
    scores = model(batch)
    chosen_logits, rejected_logits = scores[batch.chosen], scores[batch.rejected]
    assert chosen_logits.shape == rejected_logits.shape == (n, 2)

    chosen_scores, rejected_scores = chosen_logits[:, 1], rejected_logits[:, 1]
    wanted = F.binary_cross_entropy_with_logits(chosen_scores - rejected_scores, torch.ones(n), reduction="none")
    found = LOSSES["bt"](chosen_scores, rejected_scores, batch.labels, LossConfig())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)

    comparison = model(batch, LossConfig(), normalizer=n)
    torch.testing.assert_close(comparison.loss, wanted.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(comparison.rewards[batch.chosen], chosen_scores.detach(), rtol=1e-5, atol=1e-6)
    assert means(comparison.sums.as_dict(), n, "eval") == pytest.approx(
        {
            "loss/eval": wanted.mean().item(),
            "rewards_eval/chosen": chosen_scores.mean().item(),
            "rewards_eval/rejected": rejected_scores.mean().item(),
            "rewards_eval/margins": (chosen_scores - rejected_scores).mean().item(),
            "rewards_eval/accuracies": (chosen_scores > rejected_scores).float().mean().item(),
        },
        rel=1e-4,
        abs=1e-5,
    )


def test_a_loss_a_column_a_head_and_a_tracker_from_outside(tmp_path, monkeypatch):
    """As CONTRIBUTING says: one line in one place each."""
    seen = []

    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "mine", False, None

        def log(self, values, step):
            seen.append((step, values["loss/train"]))

        def finish(self):
            seen.append("finished")

    def exponential(chosen, rejected, labels, config):
        return labels["difficulty"] * torch.exp(rejected - chosen)

    monkeypatch.setitem(LABELS, "difficulty", Label(default=1.0, low=0.0))
    monkeypatch.setitem(LOSSES, "exponential", exponential)
    monkeypatch.setitem(HEADS, "difference", lambda config: Head(labels=("for", "against"), reward=(1.0, -1.0)))
    monkeypatch.setitem(TRACKERS, "mine", lambda name, folder, config, step: Tracker(_blank=True))
    rows = [{**row, "difficulty": 1 + i % 3} for i, row in enumerate(ROWS)]
    given = {"model": ModelConfig(head="difference"), "loss": LossConfig(name="exponential")}
    result = fit(config(tmp_path, log=LogConfig(to=("mine",)), **given), train=rows, quiet=True)
    steps = lines(result)
    assert seen == [*((i + 1, row["loss/train"]) for i, row in enumerate(steps)), "finished"]
    weighted = fit(config(tmp_path, exp_name="plain", **given), train=ROWS, quiet=True)
    assert lines(weighted)[0]["loss/train"] < steps[0]["loss/train"], "the column reached the loss"
    rm = load_scorer(result.final)
    assert rm.model.head.labels == ("for", "against")
    scores = rm.model.classifier.score.weight
    assert scores.shape[0] == 2
    with pytest.raises(ValueError, match=r"field 'difficulty': found -1, need a finite number of at least 0"):
        fit(config(tmp_path, exp_name="bad"), train=[{**ROWS[0], "difficulty": -1}], quiet=True)


def test_the_public_names_are_there_and_the_import_is_light():
    code = "import sys, time; t = time.perf_counter(); import rmkit; spent = time.perf_counter() - t\n"
    code += "assert spent < 0.1, spent\nassert 'torch' not in sys.modules\nrmkit.TrainConfig()\n"
    code += "assert 'torch' not in sys.modules\nassert set(rmkit.__all__) <= set(dir(rmkit))"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in rmkit.__all__:
        assert getattr(rmkit, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = rmkit.absent


def test_the_readmes_python_runs_as_it_stands(tmp_path):
    """In a process that has loaded nothing else."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
