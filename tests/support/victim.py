"""A small training run for the fault campaign: its data, its process, and what it must leave in the end."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rmkit.data import demo
from rmkit.training.metrics import CLOCK_KEYS
from support.oracle import TINY

STEPS, PAIRS, TEST_PAIRS, PAIRS_A_STEP = 40, 76, 6, 8
STRATEGIES = {"one-process": None, "ddp": "ddp", "fsdp": "fsdp", "lora": None, "low-bit": None}
"""Ways to run it; those with a strategy on two ranks."""
MORE = {
    "lora": {"lora.rank": 4, "lora.keep": "both"},
    "low-bit": {"model.weights": "bf16", "optim.states": "8bit"},
}
"""Flags besides"""
POISONED_ROW = 3
FINISHED = ("config.json", "env.json", "metrics.jsonl", "heldout.jsonl", "report.html", "checkpoints", "FINAL")
"""All that a run folder holds when its run has ended."""
PATIENCE = 120.0
"""Seconds after which a process hangs: it needs 20 where others load the machine."""


def make_world(folder: Path) -> Path:
    """`folder` with a tiny causal LM (lm/), train.jsonl and test.jsonl: several pairs a prompt, many lengths."""
    folder.mkdir(parents=True)
    save_lm(folder / "lm")
    rows = [row for _, row in zip(range(PAIRS + TEST_PAIRS), demo.preferences("train"), strict=False)]
    for i, row in enumerate(rows):
        row["chosen"][0]["content"] += " and so on" * (i % 3)
        row |= {"margin": 0.1 * (i % 2), "weight": 1.0 + i % 3}
    write_rows(folder / "train.jsonl", rows[:PAIRS])
    write_rows(folder / "test.jsonl", rows[PAIRS:])
    return folder


def save_lm(folder: Path) -> None:
    """A tiny causal LM without a head, with the demo's tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**TINY, "vocab_size": 128, "initializer_range": 0.1})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    demo.tokenizer().save_pretrained(folder)


def write_rows(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def poison(file: Path, values: dict) -> str:
    """Give one preference of a file other values; file:line of it."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[POISONED_ROW] |= values
    write_rows(file, rows)
    return f"{file.name}:{POISONED_ROW + 1}"


def command(world: Path, run: Path, way: str) -> list[str]:
    """What starts the run in the folder `run`, or goes on with it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if STRATEGIES[way] else []
    given = {
        "exp-name": run.name,
        "cache-dir": run.parent,
        "model.name": world / "lm",
        "data.train": world / "train.jsonl",
        "data.test": world / "test.jsonl",
        "batch.pairs": PAIRS_A_STEP,
        "parallel.strategy": STRATEGIES[way] or "auto",
        "optim.lr": 1e-3,
        "optim.epochs": STEPS,
        "optim.max-steps": STEPS,
        "eval.every": 5,
        "save.every": 2,
        **MORE.get(way, {}),
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [sys.executable, *launcher, "-m", "rmkit.train", *flags, "--resume"]


class Process:
    """The run in processes of its own, started or gone on with. What it prints goes to `log`, outside of the run."""

    def __init__(self, world: Path, run: Path, way: str, log: Path) -> None:
        self.run, self.log, self.world_size = run, log, 2 if STRATEGIES[way] else 1
        log.parent.mkdir(parents=True, exist_ok=True)
        self._metrics_before = self._metrics()
        self.started, self.hung = time.time(), False
        with log.open("w") as file:
            self.popen = subprocess.Popen(
                command(world, run, way),
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
            )

    def trains(self) -> bool:
        """Whether it has opened metrics.jsonl: steps come next."""
        return self._metrics() != self._metrics_before

    def _metrics(self) -> tuple[int, int] | None:
        try:
            found = (self.run / "metrics.jsonl").stat()
            return found.st_mtime_ns, found.st_size
        except FileNotFoundError:
            return None

    def writes(self, folder: Path) -> bool:
        """Whether a folder inside `folder` is half written by this process: its name begins with a dot."""
        try:
            return any(path.is_dir() and path.stat().st_mtime >= self.started for path in folder.glob(".*"))
        except FileNotFoundError:  # renamed to its place while we looked
            return False

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait until it happened, or the process has ended. One that hangs is ended."""
        while self.popen.poll() is None and not happened():
            if time.time() - self.started > PATIENCE:
                self.hung = True
                self.kill()
            time.sleep(0.001)

    def wait(self) -> int:
        """The status with which it ends."""
        self.wait_for(lambda: False)
        return self.popen.wait()

    def ranks(self) -> dict[int, psutil.Process]:
        """The process of each rank; fewer where they are still being started, none where all has ended."""
        if self.popen.poll() is not None:
            return {}
        if self.world_size == 1:
            return {0: psutil.Process(self.popen.pid)}
        found = {}
        for process in psutil.Process(self.popen.pid).children():
            try:
                found[int(process.environ()["RANK"])] = process
            except (psutil.Error, KeyError):
                continue
        return found

    def kill(self) -> None:
        """End all of it at once."""
        if self.popen.poll() is None:
            for below in psutil.Process(self.popen.pid).children(recursive=True):
                below.kill()
            self.popen.kill()
            self.popen.wait()

    def printed(self) -> str:
        """What it printed, a box as one line: COLUMNS is wide enough."""
        return re.sub(" {2,}|\u2500+", " ", self.log.read_text(errors="replace"))


def lines(run: Path) -> list[dict]:
    """metrics.jsonl without what the clock decides."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK_KEYS} for row in rows]


def differences(run: Path, undisturbed: Path) -> list[str]:
    """In what an ended run differs from the undisturbed one."""
    if missing := [name for name in FINISHED if not (run / name).exists()]:
        return [f"{name} is missing" for name in missing]
    mine, other = _contents(run / "FINAL"), _contents(undisturbed / "FINAL")
    found = [f"FINAL/{name} differs" for name in sorted({*mine, *other}) if mine.get(name) != other.get(name)]
    if lines(run) != lines(undisturbed):
        found.append("metrics.jsonl differs")
    if _held_out(run) != _held_out(undisturbed):
        found.append("heldout.jsonl differs")
    for folder in ("", "checkpoints"):
        held, wanted = ({path.name for path in (each / folder).iterdir()} for each in (run, undisturbed))
        if held != wanted:
            found.append(f"{folder or 'the run folder'} holds {sorted(held)}, not {sorted(wanted)}")
    return found


def _held_out(run: Path) -> list[dict]:
    """heldout.jsonl; of where a pair comes from the file and line, because its folder may be a copy."""
    rows = [json.loads(line) for line in (run / "heldout.jsonl").read_text().splitlines()]
    return [row | {"source": Path(row["source"]).name} if "source" in row else row for row in rows]


def _contents(folder: Path) -> dict[str, Any]:
    """What each file holds; of JSON the values, because a tokenizer that was loaded again writes its keys in another
    order."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(folder)): json.loads(file.read_text()) if file.suffix == ".json" else file.read_bytes()
        for file in files
    }
