"""Judge a reward model on held-out preference pairs; with no flag, the demo model on the embedded set.

Leaves OUT/ with metrics.json, scores.jsonl (a line per pair) and report.html, one file that opens without a network.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from datasets import Dataset
from rich.console import Console

from rmkit import cli, demo_model, errors, runtime, terminal
from rmkit.config import DEMO
from rmkit.data import source
from rmkit.demo_model import DEMO_MODEL
from rmkit.distributed import launch
from rmkit.evaluation.benchmarks import write_rewardbench
from rmkit.evaluation.scores import Scored, score_pairs, with_a_preferred_side
from rmkit.model.pretrained import load_config, saved_head
from rmkit.scorer import load_scorer
from rmkit.storage.atomic import written_folder

RESULTS = ("metrics.json", "report.html", "scores.jsonl")

OWN_FLAGS = {
    "--model.name": "--model",
    "--data.test": "--data",
    "--data.max-length": "--max-length",
    " or set --data.overlong keep-end": "",
    "--batch.max-tokens": "--max-tokens",
}
"""What the sentences of the parts that training shares call our flags -> what they are called here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    model: str | None = None
    """Folder or hub id of a reward model: what rmkit.train leaves in FINAL/, or anyone's sequence classifier.
    By default runs/demo/FINAL, which is trained first if it is not there."""
    data: tuple[str, ...] = ()
    """Held-out preferences: named sets, hub ids (NAME or NAME:SPLIT) or paths, mixed.
    By default the embedded set for the demo model."""
    against: str | None = None
    """A second reward model, compared on the same pairs by McNemar's test."""
    out: str | None = None
    """Folder for the results; by default runs/eval-MODEL."""
    overwrite: bool = False
    """Replace the results of an earlier evaluation."""
    export: tuple[Literal["rewardbench"], str] | None = None
    """Also write the pairs to a file, in the form that RewardBench reads offline: --export rewardbench FILE."""
    max_length: int | None = None
    """Longest conversation (prompt + response) in tokens; by default the model's context, at most 16384.
    Pairs with a longer side are left out, and counted."""
    max_tokens: int | None = None
    """Tokens that one process runs at once, by default up to 4096 on a CPU and 16384 on a GPU."""
    layout: Literal["trie", "packed", "padded"] = "trie"
    """trie: shared prefixes computed once. packed: padding-free without sharing. padded: the usual rectangle."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the backbone; scores are float32 always. auto: bf16 on a GPU, fp32 on a CPU."""

    def __post_init__(self) -> None:
        for flag, value in (("--max-length", self.max_length), ("--max-tokens", self.max_tokens)):
            if value is not None and value < 2:
                raise ValueError(f"{flag} {value}: set at least 2 tokens")

    def resolved(self) -> "EvaluateConfig":
        """The same with every default filled in; ValueError where there is none."""
        if self.model is not None and not self.data:
            raise ValueError("--data: name the preferences to judge the model on (a path, a hub id or a named set)")
        model = Path(self.model or DEMO_MODEL)
        name = model.parent.name if model.name == "FINAL" else model.name
        out = self.out or str(Path("runs") / f"eval-{name}")
        return dataclasses.replace(self, model=self.model or str(DEMO_MODEL), data=self.data or (DEMO,), out=out)


def check(config: EvaluateConfig) -> None:
    """What can be known before anything is loaded: ValueError where the run would fail in the end."""
    folder = Path(config.out)
    held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if foreign := [name for name in held if name not in RESULTS]:
        raise ValueError(f"--out {folder}: it holds {foreign[0]}, which no evaluation wrote; give another folder")
    if held and not config.overwrite:
        raise ValueError(f"--out {folder}: it holds results; give --overwrite to replace them, or another --out")
    files = [(f"--out {folder}", folder.parent)]
    if config.export:
        file = Path(config.export[1])
        if file.exists() and not config.overwrite:
            raise ValueError(f"--export rewardbench {file}: it is there already; give --overwrite to replace it")
        files.append((f"--export rewardbench {file}", file.parent))
    for flag, parent in files:
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{flag}: the folder cannot be made ({error.strerror})") from error
        if not os.access(parent, os.W_OK):
            raise ValueError(f"{flag}: {parent} cannot be written to")
    if config.against is not None:
        # The first model shows its faults when it is loaded, which is next; this one would hours later.
        try:
            head = saved_head(load_config(config.against), config.against)
        except ValueError as error:
            raise ValueError(str(error).replace("--model.name", "--against")) from error
        if head is None:
            raise ValueError(f"--against {config.against}: it is a causal LM, which has no score head")


def score(
    flag: str, name: str, preferences: Dataset, config: EvaluateConfig, accelerator: Accelerator, say: Callable
) -> Scored:
    """Load the model that `flag` names, score, and let go of it."""
    try:
        scorer = load_scorer(
            name,
            device=accelerator.device,
            layout=config.layout,
            precision=config.precision,
            max_tokens=config.max_tokens,
            max_length=config.max_length,
            say=say,
        )
    except ValueError as error:
        raise ValueError(str(error).replace("--model", flag)) from error
    return score_pairs(preferences, scorer, f"{flag} {name}", accelerator, say)


def evaluate(config: EvaluateConfig, console: Console) -> int:
    """Evaluate as `config` says; the exit status. Raises ValueError with a sentence for the user."""
    try:
        from rmkit.evaluation import metrics, report
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; evaluation needs: pip install 'rmkit[report]'") from error

    main = int(os.environ.get("RANK", "0")) == 0
    notes: list[str] = []

    def say(text: str) -> None:
        if main:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    def note(text: str) -> None:
        notes.append(text)
        say(text)

    check(config)
    if config.model == str(DEMO_MODEL):
        demo_model.prepare(say)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # as training does: too small to gain from a second core
    accelerator = launch.start(launch.PATIENCE)
    began = time.perf_counter()

    def load() -> tuple[Dataset, dict[str, int]]:
        return with_a_preferred_side(source.load(config.data, "test", note), note)

    preferences, undecided = launch.first_then_others(load)
    scored, other = score("--model", config.model, preferences, config, accelerator, note), None
    if config.against is not None:
        other = score("--against", config.against, preferences, config, accelerator, note)
        both = np.intersect1d(scored.rows, other.rows)
        if len(both) == 0:
            raise ValueError(f"--against {config.against}: the two models have no pair in common that fits both")
        if len(both) < max(len(scored.rows), len(other.rows)):
            note(f"{len(both)} pairs fit both models; the numbers are of these")
        scored, other = scored.only(both), other.only(both)
    if main:
        found = metrics.columns(preferences, scored, other)
        measured = metrics.measure(preferences, scored, found)
        measured["dropped"] = {**undecided, **measured["dropped"]}
        described = {
            "model": config.model,
            "data": list(config.data),
            "against_model": config.against,
            **measured,
            "notes": notes,
            "seconds": time.perf_counter() - began,
            "environment": runtime.environment(accelerator.device, accelerator.num_processes),
        }
        page = report.page(described, found, metrics.quoted(preferences, scored, found))
        write(config, described, found, page)
        if config.export:
            write_rewardbench(Path(config.export[1]), preferences.select(scored.rows), say)
        terminal.closing(console, [*metrics.key_figures(described), ("report", f"{config.out}/report.html")], say)
    launch.end(accelerator)
    return 0


def write(config: EvaluateConfig, described: dict, found: dict[str, np.ndarray], page: str) -> None:
    """Write all three results or none."""
    folder = Path(config.out)
    try:
        with written_folder(folder) as partial:
            (partial / "metrics.json").write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")
            with (partial / "scores.jsonl").open("w", encoding="utf-8") as opened:
                for values in zip(*(column.tolist() for column in found.values()), strict=True):
                    opened.write(json.dumps(dict(zip(found, values, strict=True)), allow_nan=False) + "\n")
            (partial / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out {folder}: the results could not be written ({error.strerror})") from error


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags and evaluate; 2 with a boxed sentence on a user's error, 130 on Ctrl-C."""

    def work(console: Console) -> int:
        config = tyro.cli(EvaluateConfig, args=arguments, prog="python -m rmkit.evaluate", description=__doc__)
        try:
            return evaluate(config.resolved(), console)
        except ValueError as error:
            sentence = str(error)
            for theirs, ours in OWN_FLAGS.items():
                sentence = sentence.replace(theirs, ours)
            kind = errors.AgreedError if isinstance(error, errors.AgreedError) else ValueError
            raise kind(sentence) from error

    return cli.run(work, "stopped: nothing was written")


if __name__ == "__main__":
    sys.exit(main())
