"""The command, as a user runs it: a run and what it leaves, repeat, resume, interruption, and every bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.write import FILE
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from campaigns.invariance import LIMITS, compared
from rmkit import terminal
from rmkit.config_json import from_dict
from rmkit.data import demo
from rmkit.storage import checkpoint, export
from rmkit.train import main
from rmkit_kernels._backend import triton_on_cpu
from support import ranks
from support.oracle import scores_one_by_one
from support.true_rows import call
from support.victim import FINISHED, lines, save_lm, write_rows

PAIRS, TEST_PAIRS = 22, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a tiny causal LM (lm/) and real little files of preferences."""
    folder = tmp_path_factory.mktemp("world")
    save_lm(folder / "lm")
    rows = [row for _, row in zip(range(PAIRS + TEST_PAIRS), demo.preferences("train"), strict=False)]
    for i, row in enumerate(rows):
        # Responses of different lengths, several pairs a prompt, and every optional field.
        row["chosen"][0]["content"] += " and so on" * (i % 3)
        row |= {"margin": 0.1 * (i % 2), "weight": 1.0 + i % 3, "target": 0.5 if i % 7 == 0 else None}
    write_rows(folder / "train.jsonl", rows[:PAIRS])
    write_rows(folder / "test.jsonl", rows[PAIRS:])
    return folder


def flags(world: Path, cache: Path, *more: str) -> list[str]:
    """A run of three steps an epoch, two epochs."""
    out = ["--exp-name", "r", "--cache-dir", str(cache), "--model.name", str(world / "lm")]
    out += ["--data.train", str(world / "train.jsonl"), "--data.test", str(world / "test.jsonl")]
    return [*out, "--batch.pairs", "8", "--optim.epochs", "2", "--optim.lr", "1e-3", "--eval.every", "2", *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> Path:
    """The run folder of an uninterrupted run."""
    cache = tmp_path_factory.mktemp("undisturbed")
    assert main(flags(world, cache, "--save.every", "2")) == 0
    return cache / "r"


def test_help_is_the_golden_text(tmp_path):
    told = ranks.run(1, tmp_path, main, ["--help"], NO_COLOR=1, TERM="dumb").out(0)
    assert told == FILE.read_text(), "flags changed? python tests/golden/write.py, and read the diff"


def test_metrics_have_a_line_a_step_with_the_names_of_halos(undisturbed):
    rows = lines(undisturbed)
    steps = [row for row in rows if "loss/train" in row]
    assert [row["counters/updates"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["counters/examples"] for row in steps] == [8, 16, 22, 30, 38, 44]
    wanted = {"loss/train", "grad_norm", "tokens/flat", "tokens/computed"}
    wanted |= {f"rewards_train/{name}" for name in ("chosen", "rejected", "accuracies", "margins")}
    wanted |= {"counters/examples", "counters/updates", "counters/lr"}
    assert set(steps[0]) == wanted
    full = json.loads((undisturbed / "metrics.jsonl").read_text().splitlines()[1])
    assert {"examples_per_second", "tokens_per_second"} <= set(full)
    assert all(row["tokens/computed"] < row["tokens/flat"] for row in steps)
    evaluations = [row for row in rows if "loss/eval" in row]
    assert [row["counters/updates"] for row in evaluations] == [0, 2, 4, 6]
    assert all(row["pairs"] == TEST_PAIRS for row in evaluations)


def test_run_folder_reloads(undisturbed):
    config = from_dict(json.loads((undisturbed / "config.json").read_text()))
    assert config.batch.pairs == 8
    assert json.loads((undisturbed / "env.json").read_text())["versions"]["torch"] == torch.__version__
    assert len(checkpoint.steps_saved(undisturbed)) <= 3


def test_final_scores_the_same_in_transformers_alone(undisturbed):
    """Rung 5: a padded batch through AutoModelForSequenceClassification."""
    final = undisturbed / "FINAL"
    check = json.loads((final / "rmkit.json").read_text())["self_check"]
    model = AutoModelForSequenceClassification.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    batch = tokenizer(check["texts"], add_special_tokens=False, padding=True, return_tensors="pt")
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1, "the batch must have padding in it"
    with torch.no_grad():
        padded = model(**batch).logits[:, 0]
        alone = scores_one_by_one(
            model, [np.array(ids) for ids in tokenizer(check["texts"], add_special_tokens=False)["input_ids"]]
        )
    expected = torch.tensor(check["scores"])
    assert torch.allclose(padded, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(alone, expected, rtol=1e-5, atol=1e-5)
    assert model.config.architectures == ["LlamaForSequenceClassification"]


def test_same_seed_and_flags_repeat_bit_for_bit(world, undisturbed, tmp_path):
    assert main(flags(world, tmp_path, "--save.every", "2")) == 0
    assert lines(tmp_path / "r") == lines(undisturbed)
    assert same(weights(tmp_path / "r" / "FINAL"), weights(undisturbed / "FINAL"))


def test_another_seed_draws_another_head_and_order(world, undisturbed, tmp_path):
    assert main(flags(world, tmp_path, "--seed", "1", "--optim.max-steps", "1")) == 0
    assert lines(tmp_path / "r")[0] != lines(undisturbed)[0]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_layouts_give_the_same_run(world, undisturbed, tmp_path, layout):
    assert main(flags(world, tmp_path, "--batch.layout", layout)) == 0
    assert_close_runs(tmp_path / "r", undisturbed)


def test_microbatches_give_the_same_run(world, undisturbed, tmp_path):
    assert main(flags(world, tmp_path, "--batch.max-tokens", "100")) == 0
    assert_close_runs(tmp_path / "r", undisturbed)


def test_reference_kernels_give_the_same_run(world, undisturbed, tmp_path):
    assert main(flags(world, tmp_path, "--model.kernels", "reference")) == 0
    assert_close_runs(tmp_path / "r", undisturbed)


def test_triton_kernels_give_the_same_run(world, undisturbed, tmp_path):
    """The loop with its Triton kernels: on a CPU through the interpreter."""
    if torch.cuda.is_available():
        pytest.skip("on a GPU the undisturbed run has used them already")
    with triton_on_cpu():
        assert main(flags(world, tmp_path, "--optim.max-steps", "2", "--optim.schedule", "constant")) == 0
    assert main(flags(world, tmp_path / "b", "--optim.max-steps", "2", "--optim.schedule", "constant")) == 0
    assert_close_runs(tmp_path / "r", tmp_path / "b" / "r")


def test_gradient_checkpointing_gives_the_same_run(world, undisturbed, tmp_path):
    assert main(flags(world, tmp_path, "--model.gradient-checkpointing", "on")) == 0
    assert_close_runs(tmp_path / "r", undisturbed)


def assert_close_runs(run: Path, other: Path) -> None:
    """Losses and gradient norms agree to 1e-5 relative over the whole run."""
    for key in ("loss/train", "grad_norm"):
        found, wanted = ([row[key] for row in lines(r) if key in row] for r in (run, other))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_give_the_same_run(world, undisturbed, tmp_path, strategy):
    arguments = flags(world, tmp_path, "--parallel.strategy", strategy, "--save.every", "2")
    ranks.run(2, tmp_path / "said", main, arguments)
    differences = compared(tmp_path / "r", undisturbed)
    assert {key: value for key, value in differences.items() if value > LIMITS[key]} == {}
    # A checkpoint of two ranks goes on in one process.
    run = tmp_path / "r"
    shutil.rmtree(run / "FINAL")
    shutil.rmtree(run / "checkpoints" / "step-6", ignore_errors=True)
    assert main(flags(world, tmp_path, "--save.every", "2", "--resume")) == 0
    assert_close_runs(run, undisturbed)


def disturb(monkeypatch, step: int, what) -> None:
    """Let something happen right after a step was recorded."""
    shown = terminal.Progress.show

    def interrupted(self, done, text):
        shown(self, done, text)
        if done == step:
            what()

    monkeypatch.setattr(terminal.Progress, "show", interrupted)


class Crash(BaseException):
    """The process dies here: nothing may catch it."""


def test_resume_after_a_crash_is_the_uninterrupted_run(world, undisturbed, tmp_path, monkeypatch):
    arguments = flags(world, tmp_path, "--save.every", "2")
    with monkeypatch.context() as patch:

        def crash():
            raise Crash

        disturb(patch, 5, crash)
        with pytest.raises(Crash):
            main(arguments)
    assert len([row for row in lines(tmp_path / "r") if "loss/train" in row]) == 5  # one more than the checkpoint has
    assert main([*arguments, "--resume"]) == 0
    assert lines(tmp_path / "r") == lines(undisturbed)
    assert same(weights(tmp_path / "r" / "FINAL"), weights(undisturbed / "FINAL"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_writes_a_checkpoint_and_resume_goes_on(world, undisturbed, tmp_path, monkeypatch, number):
    arguments = flags(world, tmp_path, "--save.every", "2")
    with monkeypatch.context() as patch:
        disturb(patch, 3, lambda: os.kill(os.getpid(), number))
        assert main(arguments) == 128 + number
    assert 3 in checkpoint.steps_saved(tmp_path / "r")
    assert not (tmp_path / "r" / "FINAL").exists()
    assert main([*arguments, "--resume"]) == 0
    assert lines(tmp_path / "r") == lines(undisturbed)
    assert same(weights(tmp_path / "r" / "FINAL"), weights(undisturbed / "FINAL"))


def test_crash_while_saving_keeps_the_checkpoint_before(world, tmp_path, monkeypatch, capsys):
    arguments = flags(world, tmp_path, "--save.every", "2", "--eval.every", "0")
    saved = export.save_file

    def dies(tensors, file, **more):
        if "step-4" in str(file):
            saved(dict(list(tensors.items())[:1]), file, **more)
            raise Crash
        saved(tensors, file, **more)

    with monkeypatch.context() as patch:
        patch.setattr(export, "save_file", dies)
        with pytest.raises(Crash):
            main(arguments)
    assert checkpoint.steps_saved(tmp_path / "r") == [2]
    assert main([*arguments, "--resume"]) == 0
    assert "resumed at step 2" in capsys.readouterr().out


def test_resume_of_a_finished_run_does_nothing_new(world, undisturbed, tmp_path, capsys):
    arguments = flags(world, tmp_path, "--save.every", "2")
    assert main(arguments) == 0
    before = lines(tmp_path / "r")
    assert main([*arguments, "--resume"]) == 0
    assert lines(tmp_path / "r") == before == lines(undisturbed)
    assert same(weights(tmp_path / "r" / "FINAL"), weights(undisturbed / "FINAL"))


def test_best_checkpoint_has_the_lowest_held_out_loss(undisturbed):
    losses = {
        r["counters/updates"]: r["loss/eval"]
        for r in lines(undisturbed)
        if r.get("loss/eval") and r["counters/updates"]
    }
    best = min(losses, key=losses.get)
    assert best in checkpoint.steps_saved(undisturbed)


def test_goes_on_from_a_folder_that_rmkit_wrote(world, undisturbed, tmp_path, capsys):
    arguments = flags(world, tmp_path, "--optim.max-steps", "1")
    arguments[arguments.index("--model.name") + 1] = str(undisturbed / "FINAL")
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "self-check" in out
    assert "it is kept" in out
    last = [row for row in lines(undisturbed) if "loss/eval" in row][-1]
    assert lines(tmp_path / "r")[0]["loss/eval"] == pytest.approx(last["loss/eval"], rel=1e-5)


def test_a_binary_head_is_trained_whole_and_saved_folded_or_with_two_labels(world, tmp_path):
    saved = {}
    for kept in ("fold", "keep"):
        given = ("--model.head", "binary", "--optim.max-steps", "2", "--save.every", "1", "--save.binary-head", kept)
        assert main(flags(world, tmp_path / kept, *given)) == 0
        assert (
            load_file(tmp_path / kept / "r" / "checkpoints" / "step-1" / "model.safetensors")["score.weight"].shape[0]
            == 2
        )
        saved[kept] = AutoModelForSequenceClassification.from_pretrained(tmp_path / kept / "r" / "FINAL")
    assert saved["keep"].score.weight.shape[0] == saved["keep"].config.num_labels == 2
    assert saved["fold"].score.weight.shape[0] == saved["fold"].config.num_labels == 1
    assert torch.equal(saved["fold"].score.weight, saved["keep"].score.weight[1:])
    # The full head is what a run goes on from.
    (tmp_path / "fold" / "r" / "FINAL").rename(tmp_path / "before")
    shutil.rmtree(tmp_path / "fold" / "r" / "checkpoints" / "step-2")
    assert main(flags(world, tmp_path / "fold", *given[:-1], "fold", "--resume")) == 0
    again = load_file(tmp_path / "fold" / "r" / "FINAL" / "model.safetensors")
    whole = load_file(tmp_path / "before" / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def refusal(capsys, arguments: list[str]) -> str:
    """What the user is told, on one line; the status must say that it was the input."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "\u256d" in err, "the sentence stands in a box"
    return " ".join(line.strip("\u2502 ") for line in err.splitlines() if line.startswith("\u2502"))


GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}
BAD_FILES = {
    "empty": (b"", "empty"),
    "wrong field": (b'{"prompt": "a", "better": "b", "worse": "c"}\n', "better"),
    "not UTF-8": (b'{"prompt": "\xff\xfe", "chosen": "b", "rejected": "c"}\n', "UTF-8"),
    "half a line": (json.dumps(GOOD).encode() + b"\n" + b'{"prompt": "a", "cho', "line 2"),
    "NaN margin": (json.dumps({**GOOD, "margin": float("nan")}).encode(), "margin"),
    "target": (json.dumps({**GOOD, "target": 1.5}).encode(), "target"),
}


def test_pairs_that_the_chat_template_refuses_are_left_out_where_bad_rows_are(world, tmp_path, capsys):
    """Of train and test; the run ended, with --data.bad-rows drop too."""
    lines = (world / "train.jsonl").read_text() + json.dumps({**GOOD, "chosen": [call("Ulm")]}) + "\n"
    (tmp_path / "calls.jsonl").write_text(lines)
    given = flags(world, tmp_path, "--data.test", str(tmp_path / "calls.jsonl"), "--optim.max-steps", "1")
    given[given.index("--data.train") + 1] = str(tmp_path / "calls.jsonl")
    told = refusal(capsys, given)
    assert f"calls.jsonl:{PAIRS + 1}:thechattemplaterefusesthisconversation:" in told.replace(" ", "")
    assert "--data.bad-rowsdropleavessuchpairsout" in told.replace(" ", "")
    assert main([*given, "--data.bad-rows", "drop"]) == 0
    said = capsys.readouterr().out
    assert said.count(f"dropped 1 of {PAIRS + 1} pairs: refused by the chat template") == 2
    assert said.count("the chat template refuses this conversation") == 2


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_named(world, tmp_path, capsys, name):
    content, word = BAD_FILES[name]
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    arguments = flags(world, tmp_path)
    arguments[arguments.index("--data.train") + 1] = str(file)
    told = refusal(capsys, arguments).replace(" ", "")
    assert "bad.jsonl" in told
    assert word.replace(" ", "") in told


BAD_FLAGS = {
    "missing file": (("--data.train", "nowhere.jsonl"), "nowhere.jsonl"),
    "hub id without a network": (("--data.train", "someone/pairs"), "network"),
    "named set without a network": (("--data.train", "ultrabin"), "ultrafeedback_binarized"),
    "model that is not there": (("--model.name", "someone/model"), "--model.name someone/model"),
    "pair over the budget": (("--batch.max-tokens", "20", "--data.max-length", "20"), "--data.max-length"),
    "longer than the context": (("--data.max-length", "4096"), "--data.max-length 4096"),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_flag_is_named(world, tmp_path, capsys, name):
    given, words = BAD_FLAGS[name]
    assert words in refusal(capsys, flags(world, tmp_path, *given))


def test_pair_over_the_token_budget(world, tmp_path, capsys):
    told = refusal(capsys, flags(world, tmp_path, "--batch.max-tokens", "40", "--data.max-length", "40"))
    assert "--batch.max-tokens 40" in told
    assert "step" not in told, "before the weights are read, not at the step it is in"


def test_encoder_is_refused(world, tmp_path, capsys):
    BertConfig().save_pretrained(tmp_path / "bert")
    told = refusal(capsys, flags(world, tmp_path, "--model.name", str(tmp_path / "bert")))
    assert "it is a bert model. BertForSequenceClassification" in told
    assert "Any decoder runs that has a classifier" in told


def test_finished_run_is_not_overwritten(world, undisturbed, capsys):
    told = refusal(capsys, flags(world, undisturbed.parent))
    assert "--resume" in told
    assert "--overwrite" in told


def test_overwrite_starts_anew(world, tmp_path, undisturbed, capsys):
    (tmp_path / "r" / "FINAL").mkdir(parents=True)
    assert main(flags(world, tmp_path, "--overwrite", "--save.every", "2")) == 0
    assert "moved FINAL of an earlier run to" in capsys.readouterr().out
    assert lines(tmp_path / "r") == lines(undisturbed)
    assert {path.name for path in (tmp_path / "r").iterdir()} == {*FINISHED}, "the earlier run is gone"
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_resume_with_other_data_is_refused(world, undisturbed, capsys):
    told = refusal(capsys, flags(world, undisturbed.parent, "--resume", "--batch.pairs", "4"))
    assert "--batch.pairs 4" in told


def test_non_finite_loss_is_refused_before_the_weights_move(world, tmp_path, capsys):
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    rows[3]["margin"] = 1e300  # finite as JSON, infinite in float32
    write_rows(tmp_path / "big.jsonl", rows)
    arguments = flags(world, tmp_path, "--data.no-shuffle")
    arguments[arguments.index("--data.train") + 1] = str(tmp_path / "big.jsonl")
    told = refusal(capsys, arguments)
    assert "step 1" in told
    assert "big.jsonl:4" in told.replace(" ", "")  # a long path is broken at the edge of the box
    assert not (tmp_path / "r" / "FINAL").exists()


def test_base_model_gets_a_template_and_a_pad_token(world, tmp_path, capsys):
    """As Llama-3-8B comes: no chat template, no pad token. And as many peers leave it: pad = EOS."""
    for pad in (None, "</s>"):
        folder = tmp_path / f"base-{pad is None}"
        AutoModelForCausalLM.from_pretrained(world / "lm").save_pretrained(folder)
        tokenizer = demo.tokenizer()
        tokenizer.chat_template, tokenizer.pad_token = None, pad
        tokenizer.save_pretrained(folder)
        arguments = flags(world, tmp_path, "--exp-name", f"of-{folder.name}", "--optim.max-steps", "1")
        arguments[arguments.index("--model.name") + 1] = str(folder)
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert "no chat template" in out
        assert "as pad token" in out if pad else "no pad token" in out
        saved = AutoTokenizer.from_pretrained(tmp_path / f"of-{folder.name}" / "FINAL")
        assert saved.pad_token_id not in (None, saved.eos_token_id)
        assert saved.chat_template


def test_the_card_tells_all_that_was_dropped(world, tmp_path):
    """Rows that cannot be read, flaws, and what is too long, of both splits."""
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()[:8]]
    rows[1] |= {"rejected": rows[1]["chosen"]}
    rows[2]["chosen"][0]["content"] = "a b c " * 90
    del rows[3]["rejected"]
    write_rows(tmp_path / "train.jsonl", rows)
    rows[4]["chosen"][0]["content"] = ""
    write_rows(tmp_path / "test.jsonl", rows[3:])
    arguments = flags(world, tmp_path, "--data.bad-rows", "drop", "--data.max-length", "60")
    for split in ("train", "test"):
        arguments[arguments.index(f"--data.{split}") + 1] = str(tmp_path / f"{split}.jsonl")
    assert main(arguments) == 0
    card = (tmp_path / "r" / "FINAL" / "README.md").read_text()
    told = {why: count for count, why in re.findall(r"\| dropped \| (\d+) \| (.+?) \|", card)}
    over_long = "over-long (more than 60 tokens)"
    assert told == {"bad rows": "2", "identical chosen and rejected": "1", "empty response": "1", over_long: "1"}


def test_pairs_in_both_train_and_test_are_said(world, tmp_path, capsys):
    arguments = flags(world, tmp_path, "--optim.max-steps", "1")
    arguments[arguments.index("--data.test") + 1] = str(world / "train.jsonl")
    assert main(arguments) == 0
    assert f"{PAIRS} of {PAIRS} held-out pairs" in capsys.readouterr().out


def test_embedded_default_in_a_process_of_its_own(tmp_path):
    """The README's command, cut to a few steps: no network, no GPU, plain lines in a log."""
    command = [sys.executable, "-m", "rmkit.train", "--cache-dir", str(tmp_path), "--optim.max-steps", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "step 5/5" in done.stdout
    assert "python -m rmkit.train --model.name" in done.stdout
    assert (tmp_path / "demo" / "FINAL" / "model.safetensors").is_file()


def test_user_error_in_a_process_of_its_own(tmp_path):
    with ranks.started(1, tmp_path / "said", main, ["--cache-dir", str(tmp_path), "--optim.lr", "0"]) as alone:
        assert alone.wait(120) == [2]
    assert "--optim.lr 0" in alone.err(0) + alone.out(0)
    assert "Traceback" not in alone.err(0)
