"""Spoiled command lines of train, label and evaluate, up to where the heavy work would begin."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import datasets

from campaigns import fence
from campaigns.mutations import HOSTILE, rows_of
from rmkit import evaluate, label, train
from rmkit.config import TrainConfig
from rmkit.data import demo
from rmkit.evaluation.config import EvaluateConfig
from rmkit.labelling.config import LabelConfig

GOOD = {
    "train": ("--data.train", "pairs.jsonl", "--data.test", "pairs.jsonl", "--exp-name", "r"),
    "label": ("--model", "rm", "samples.jsonl", "f.json"),
    "evaluate": ("--model", "rm", "--data", "pairs.jsonl", "--out", "out"),
}
MAINS = {"train": train.main, "label": label.main, "evaluate": evaluate.main}
VALUES = (
    *("0", "1", "2", "-1", "64", "1e3", "1e-400", "1e400", "nan", "inf", "-inf", "0x10", "1_000", "\u0663", "9" * 5000),
    *(
        str(2**63),
        str(-(2**63)),
        "None",
        "True",
        "False",
        "true",
        "auto",
        "mean",
        "median",
        "",
        " ",
        "-",
        "--",
        "---",
        "=",
    ),
    *(
        "pairs.jsonl",
        "samples.jsonl",
        "folder",
        "absent.jsonl",
        "pairs.jsonl:test",
        "demo:test",
        "demo:absent",
        "absent",
    ),
    *(
        "ultrabin",
        "a/b",
        "a/b:c",
        "a//b",
        "../inside",
        ".",
        "..",
        "folder/..",
        "x" * 300,
        "x/" * 2000,
        "~",
        "$HOME",
        "*",
    ),
    *("[bold]x[/bold]", "[/]", "\x1b[31m", "\udcff", "\x00", "a\nb", "{}", "{'a': 1}", "[1, 2]", "@pairs.jsonl", "%s"),
    *("fsdp", "ddp", "trie", "padded", "fp32", "bf16", "keep-end", "error", "pairwise", "binary", "all", "rewardbench"),
)


def _fields(kind: type, prefix: str = "--") -> Iterator[str]:
    for field in dataclasses.fields(kind):
        inner = field.default_factory
        if dataclasses.is_dataclass(inner):
            yield from _fields(inner, f"{prefix}{field.name}.".replace("_", "-"))
        else:
            yield (prefix + field.name).replace("_", "-")


FLAGS = {
    "train": [flag for flag in _fields(TrainConfig) if flag != "--data.workers"],  # a process each
    "label": [*_fields(LabelConfig), "--reward-model-path", "--feedback-mode"],
    "evaluate": list(_fields(EvaluateConfig)),
}


def prepare(scratch: Path) -> Callable[[random.Random, int], str]:
    """One case: a command line that works, with flags and values added, dropped, doubled and moved."""
    fence.raise_fence(scratch)
    datasets.config.HF_DATASETS_CACHE = scratch / "cache"

    def run(rng: random.Random, n: int) -> str:
        shutil.rmtree(scratch / "case", ignore_errors=True)
        inside = scratch / "case" / "inside"
        inside.mkdir(parents=True)
        os.chdir(inside)
        for name, form in (("pairs.jsonl", "texts"), ("samples.jsonl", "sample")):
            Path(name).write_text("".join(json.dumps({**row, "split": None}) + "\n" for row in rows_of(form)))
        Path("folder").mkdir()
        program = rng.choice(list(MAINS))
        arguments = spoiled(rng, program)
        with _light():
            status, words = fence.told(lambda: MAINS[program](arguments))
        return f"{program} {fence.outcome(status, words)}"

    return run


@contextlib.contextmanager
def _light() -> Iterator[None]:
    """Without a model: train ends where it would be built, the others score by length."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(demo, TRAIN_PROMPTS=8, TEST_PROMPTS=4))
        stack.enter_context(mock.patch("rmkit.training.run.build_model", side_effect=fence.Reached))
        for program in (label, evaluate):
            stack.enter_context(mock.patch.object(program, "load_scorer", return_value=fence.Scorer()))
            stack.enter_context(mock.patch.object(program.demo_model, "prepare"))
        yield


def spoiled(rng: random.Random, program: str) -> list[str]:
    """One to five changes of a command line that works."""
    arguments = list(GOOD[program])
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        at, kind = rng.randrange(len(arguments) + 1), rng.randrange(8)
        flag = rng.choice(FLAGS[program])
        if kind < 3:
            arguments += [flag, *rng.choices([_value(rng) for _ in range(3)], k=rng.choice((0, 1, 1, 1, 2)))]
        elif kind == 3:
            arguments[at:at] = [
                rng.choice((flag, flag[:-1], flag.replace("-", "_"), f"{flag}={_value(rng)}", flag[1:]))
            ]
        elif kind == 4:
            arguments[at:at] = [_value(rng)]
        elif kind == 5:
            del arguments[at : at + rng.choice((1, 1, 2))]
        elif arguments:
            arguments[at % len(arguments)] = _value(rng)
    return [argument for argument in arguments if not argument.startswith("/")]


def _value(rng: random.Random) -> str:
    if rng.random() < 0.15:
        return str(rng.choice([value for value in HOSTILE if isinstance(value, (str, float))]))
    return rng.choice(VALUES)
