"""All three commands, as a user types them: train, label the completions, train on the labels, evaluate; real pairs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rmkit.data import demo
from support.oracle import TINY

TULU = Path(__file__).parents[2] / "shared" / "data" / "tulu1_human"


def command(module: str, *arguments: object) -> str:
    """What `python -m rmkit.MODULE` prints; it has to succeed, and to keep standard error clean."""
    done = subprocess.run(
        [sys.executable, "-m", f"rmkit.{module}", *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.skipif(not TULU.is_dir(), reason="the real pairs are not beside this checkout")
def test_train_label_train_on_the_labels_evaluate(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**TINY, "vocab_size": 128, "max_position_embeddings": 4096})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "lm")
    demo.tokenizer().save_pretrained(tmp_path / "lm")
    common = ["--cache-dir", tmp_path, "--data.max-length", "1500", "--optim.lr", "1e-3"]
    common += ["--optim.max-steps", "16", "--save.every", "0"]

    first = ["--exp-name", "first", "--model.name", tmp_path / "lm", *common]
    command("train", *first, "--data.train", TULU, "--data.test", TULU)
    feedback = tmp_path / "feedback.json"
    told = command("label", "--model", tmp_path / "first/FINAL", "--feedback", "pairwise", TULU, feedback)
    assert "completions" in told
    records = json.loads(feedback.read_text())
    assert len(records) > 100
    assert {record["type"] for record in records} == {"pairwise_feedback"}

    second = ["--exp-name", "second", "--model.name", tmp_path / "lm", *common]
    out = command("train", *second, "--data.train", feedback, "--data.test", TULU)
    assert "pairwise_feedback" in out
    model, out_folder = tmp_path / "second/FINAL", tmp_path / "eval"
    command("evaluate", "--model", model, "--data", TULU, "--out", out_folder, "--max-length", "1500")
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text())
    last = json.loads((tmp_path / "second/metrics.jsonl").read_text().splitlines()[-1])
    # The command and the training loop measure the same set with the same model.
    assert metrics["overall"]["accuracy"] == pytest.approx(last["rewards_eval/accuracies"], abs=1e-9)
    assert metrics["overall"]["loss"] == pytest.approx(last["loss/eval"], rel=1e-5)
    assert (tmp_path / "eval/report.html").read_text().startswith("<!DOCTYPE html>")
