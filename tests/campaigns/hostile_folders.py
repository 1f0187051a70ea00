"""Spoiled folders: models as label, evaluate and train load them, runs as train --resume goes on with them."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import datasets
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from campaigns import fence
from campaigns.spoiled_folders import spoil
from rmkit import train
from rmkit.data import demo
from rmkit.evaluation.config import EvaluateConfig
from rmkit.scorer import load_scorer
from rmkit.storage import checksums
from support.oracle import TINY

MARKER = "marker"


def prepare(scratch: Path) -> Callable[[random.Random, int], str]:
    """One case: a folder that works is copied, spoiled and given to a program."""
    datasets.config.HF_DATASETS_CACHE = scratch / "cache"
    whole = _templates(scratch / "whole")
    seen = fence.raise_fence(scratch)

    def run(rng: random.Random, n: int) -> str:
        shutil.rmtree(scratch / "case", ignore_errors=True)
        work = scratch / "case" / "work"
        work.mkdir(parents=True)
        os.chdir(work)
        outside = scratch / "case" / "outside"
        shutil.copytree(whole / "lm", outside)
        which = rng.choice(("FINAL", "sharded", "lm", "runs"))
        folder = work / f"{which}{n}"
        shutil.copytree(whole / which, folder)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            spoil(rng, folder, work / MARKER)
        if which == "runs" and rng.random() < 0.5:
            _summed(folder)
        before, kept = listing(outside), listing(folder)
        seen.clear()
        status, words = fence.told(_loading(rng, which, folder, whole))
        if (work / MARKER).exists():
            raise fence.Fault(f"code of the folder was run: {words[-500:]}")
        if seen:
            raise fence.Fault(f"beyond the fence: {seen[:3]}")
        if listing(outside) != before or (which != "runs" and listing(folder) != kept):
            raise fence.Fault("files were changed that are only read")
        if extra := {path.name for path in work.iterdir()} - {folder.name, "out"}:
            raise fence.Fault(f"written beside the folder: {extra}")
        needle = "" if "no pair is left" in words else f"{which}{n}"
        return f"{which} {fence.outcome(status, words, needle)}"

    return run


def _loading(rng: random.Random, which: str, folder: Path, whole: Path) -> Callable[[], int]:
    """What a program does with the folder, up to where it would train or score."""
    if which == "runs":
        again = ["--cache-dir", str(folder), *_flags(whole), "--resume"]
        return lambda: _up_to_training(again)
    if which == "lm":
        flags = ["--cache-dir", "out", *_flags(whole), "--model.name", str(folder)]
        return lambda: _up_to_training(flags)
    if rng.random() < 0.1:
        config = EvaluateConfig(model="m", data=("d",), out="out/e", against=str(folder))
        return fence.run(lambda console: config.check() or 0)
    return fence.run(lambda console: _loaded(str(folder), console.print))


def _loaded(name: str, say: Callable[..., None]) -> int:
    load_scorer(name, device=torch.device("cpu"), say=lambda text: say(text, markup=False))
    return 0


def _up_to_training(flags: list[str]) -> int:
    with mock.patch.object(train, "train_step", side_effect=fence.Reached):
        return train.main(flags)


def _flags(whole: Path) -> list[str]:
    flags = ["--model.name", str(whole / "lm"), "--data.train", str(whole / "pairs.jsonl"), "--exp-name", "r"]
    return [*flags, "--batch.pairs", "4", "--optim.epochs", "2", "--save.every", "1", "--save.keep", "0"]


def _templates(whole: Path) -> Path:
    """lm/ (a causal LM), FINAL/ and runs/ (a run of two of its four steps, stopped), sharded/ (FINAL in two files)."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**TINY, "vocab_size": 128, "num_hidden_layers": 2})
    AutoModelForCausalLM.from_config(config).save_pretrained(whole / "lm")
    demo.tokenizer().save_pretrained(whole / "lm")
    rows = [row for _, row in zip(range(8), demo.preferences("test"), strict=False)]
    (whole / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, words = fence.told(lambda: train.main(["--cache-dir", str(whole / "runs"), *_flags(whole)]))
    assert status == 0, words
    shutil.move(whole / "runs" / "r" / "FINAL", whole / "FINAL")
    for step in ("step-3", "step-4"):
        shutil.rmtree(whole / "runs" / "r" / "checkpoints" / step)
    shutil.copytree(whole / "FINAL", whole / "sharded")
    (whole / "sharded" / "model.safetensors").unlink()
    classifier = AutoModelForSequenceClassification.from_pretrained(whole / "FINAL")
    classifier.save_pretrained(whole / "sharded", max_shard_size="40KB")
    for name in ("config.json", "rmkit.json"):
        shutil.copy(whole / "FINAL" / name, whole / "sharded" / name)
    return whole


def listing(folder: Path) -> dict[str, str]:
    """What stands below a folder: names, and the digests of ordinary files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        ordinary = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if ordinary else ""
    return found


def _summed(run: Path) -> None:
    """Checksums that fit what the checkpoints hold now: whoever spoils a folder can write them too."""
    for listed in run.rglob(checksums.NAME):
        files = [path for path in listed.parent.rglob("*") if path.is_file() and path.name != checksums.NAME]
        ordinary = [path for path in files if not path.is_symlink()]
        if listed.is_file():
            checksums.write_checksums(listed.parent, [checksums.checksums(listed.parent, ordinary)])
