"""Mistakes with --overwrite and --resume, after each of which the earlier run must be whole: every file of it, by
checksum, in its place, or where it is said to stand (old-run/).

    python tests/campaigns/mistakes.py     # two minutes; the count goes to bench/results/mistakes.json

Each mistake is a command line of train, label or evaluate, run in this process on a copy of one finished run.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).parents[1]))  # support/ and this folder, as a package
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from safetensors.torch import save_file
from transformers import BertConfig

from campaigns import fence
from rmkit import evaluate, label, train
from rmkit.data import demo
from rmkit.runtime import environment
from rmkit.storage import export, replaced, run_folder
from rmkit.training import run as starting
from support.listing import listing
from support.victim import save_lm, write_rows

RUN = ("FINAL", "checkpoints", "metrics.jsonl", "config.json", "env.json")
"""What a finished run is"""


@dataclass(frozen=True)
class Mistake:
    """A command line that should not cost the earlier run; the flags come behind those of the run itself."""

    flags: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda work: None
    """Makes the files that the flags name, in the working folder"""
    accident: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    """What happens while it runs"""
    program: str = "train"
    kept: str = ""
    """Where the run stands afterwards, below its folder: in its place, or kept"""
    then: tuple[str, ...] | None = None
    """Flags of a second start, after which the run is looked at"""


def over(*flags: str, **more: object) -> Mistake:
    return Mistake(("--overwrite", *flags), **more)


def again(*flags: str, **more: object) -> Mistake:
    return Mistake(("--resume", *flags), **more)


def rows(name: str, *given: dict) -> Callable[[Path], object]:
    """Write a file of rows."""
    return lambda work: write_rows(work / name, list(given))


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda work: (work / name).write_text(content)


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda work: (work / name).symlink_to(work / target)


def broken_model(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A copy of the causal LM in m/, changed."""
    return lambda work: change(Path(shutil.copytree(work / "lm", work / "m")))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def linked_files(work: Path) -> None:
    (work / "m").mkdir()
    for file in (work / "runs" / "r" / "FINAL").iterdir():
        (work / "m" / file.name).symlink_to(file)


def adapter_of_final(work: Path) -> None:
    described = {"peft_type": "LORA", "base_model_name_or_path": str(work / "runs" / "r" / "FINAL"), "r": 2}
    described |= {"task_type": "SEQ_CLS", "target_modules": ["q_proj"]}
    (work / "m").mkdir()
    save_file({"base_model.model.score.weight": torch.zeros(1, 8)}, work / "m" / "adapter_model.safetensors")
    (work / "m" / "adapter_config.json").write_text(json.dumps(described))


def raising(where: object, name: str, error: BaseException) -> Callable[[], contextlib.AbstractContextManager]:
    return lambda: mock.patch.object(where, name, side_effect=error)


@contextlib.contextmanager
def ctrl_c():
    """At the first step, which then ends and writes a checkpoint."""
    real = train.train_step

    def step(*given):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    with mock.patch.object(train, "train_step", step):
        yield


@contextlib.contextmanager
def killed():
    """kill -9 in the first step: nothing is put back by the process itself."""
    before = run_folder._settle
    calls = iter(range(9))
    with (
        mock.patch.object(train, "train_step", side_effect=fence.Reached),
        mock.patch.object(run_folder, "_settle", lambda *given: before(*given) if next(calls) == 0 else None),
    ):
        yield


PAIR = {"prompt": "reverse abc", "chosen": "cba", "rejected": "abc"}
DATA, MODEL = "--data.train", "--model.name"

MISTAKES: dict[str, Mistake] = {
    "no word on the earlier run": Mistake(()),
    "both": Mistake(("--overwrite", "--resume")),
    "a mistyped flag": over("--modle.name", "x"),
    "a senseless value": over("--optim.lr", "0"),
    "a word for a number": over("--batch.pairs", "eight"),
    "mistyped data": over(DATA, "trian.jsonl"),
    "a mistyped named set": over(DATA, "ultrabn"),
    "a set of the hub, offline": over(DATA, "owner/set"),
    "data of another kind": over(DATA, "a.csv", prepare=text("a.csv", "a,b")),
    "empty data": over(DATA, "a.jsonl", prepare=text("a.jsonl", "")),
    "broken data": over(DATA, "a.jsonl", prepare=text("a.jsonl", '{"prompt": ')),
    "a pointer of Git LFS for data": over(DATA, "a.jsonl", prepare=text("a.jsonl", "version https://git-lfs.x")),
    "a misspelt column": over(DATA, "a.jsonl", prepare=rows("a.jsonl", {"prompt": "q", "choosen": "a"})),
    "pairs that are the same": over(DATA, "a.jsonl", prepare=rows("a.jsonl", PAIR | {"chosen": "abc"})),
    "rows of another split": over(DATA, "a.jsonl", prepare=rows("a.jsonl", PAIR | {"split": "test"})),
    "an empty folder of data": over(DATA, "d", prepare=lambda work: (work / "d").mkdir()),
    "mistyped held-out data": over("--data.test", "tset.jsonl"),
    "broken held-out data": over("--data.test", "a.parquet", prepare=text("a.parquet", "PAR1")),
    "all pairs too long": over("--data.max-length", "3"),
    "beyond the context": over("--data.max-length", "9999", "--batch.max-tokens", "99999"),
    "no room for a pair": over("--batch.max-tokens", "8"),
    "objectives that nothing rates": over("--model.head", "multi", "--model.objectives", "helpful"),
    "a mistyped model": over(MODEL, "lmm"),
    "a model of the hub, offline": over(MODEL, "owner/model"),
    "its own FINAL": over(MODEL, "runs/r/FINAL"),
    "its own FINAL, another way round": over(MODEL, "lm/../runs/./r/FINAL/"),
    "its own checkpoint": over(MODEL, "runs/r/checkpoints/step-2"),
    "its own folder": over(MODEL, "runs/r"),
    "its own FINAL by a link": over(MODEL, "l", prepare=link("l", "runs/r/FINAL")),
    "its own FINAL by a link above": over(MODEL, "l/r/FINAL", prepare=link("l", "runs")),
    "its own FINAL by links to its files": over(MODEL, "m", prepare=linked_files),
    "its own FINAL under an adapter": over(MODEL, "m", prepare=adapter_of_final),
    "its own folder by a link": over("--cache-dir", "l", MODEL, "runs/r/FINAL", prepare=link("l", "runs")),
    "an encoder": over(MODEL, "m", prepare=lambda work: BertConfig().save_pretrained(work / "m")),
    "weights cut short": over(MODEL, "m", prepare=broken_model(lambda m: cut(m / "model.safetensors"))),
    "no weights": over(MODEL, "m", prepare=broken_model(lambda m: (m / "model.safetensors").unlink())),
    "no tokenizer": over(MODEL, "m", prepare=broken_model(lambda m: (m / "tokenizer.json").unlink())),
    "a broken configuration": over(MODEL, "m", prepare=broken_model(lambda m: cut(m / "config.json"))),
    "a tracker that does not start": over(
        "--log.to", "tensorboard", accident=raising(train, "open_mirrors", ValueError("it does not start"))
    ),
    "a margin beyond float32": over(DATA, "a.jsonl", prepare=rows("a.jsonl", PAIR | {"margin": 1e300})),
    "a folder of the user's in the way": over(prepare=lambda work: (work / "runs/r/old-run").mkdir()),
    "Ctrl-C while the model loads": over(accident=raising(starting, "build_model", KeyboardInterrupt())),
    "Ctrl-C twice in a step": over(accident=raising(train, "train_step", KeyboardInterrupt())),
    "Ctrl-C in the first step": over(accident=ctrl_c, kept=replaced.NAME),
    "Ctrl-C, then overwritten again, by mistake": over(
        accident=ctrl_c, kept=replaced.NAME, then=("--overwrite", DATA, "trian.jsonl")
    ),
    "kill -9 in the first step": over(accident=killed, then=()),
    "kill -9, then --resume with other data": over(accident=killed, then=("--resume", DATA, "test.jsonl")),
    "kill -9, then --overwrite with a mistyped model": over(accident=killed, then=("--overwrite", MODEL, "lmm")),
    "a full disk at the first checkpoint": over(accident=raising(export, "save_file", OSError(28, "No space left"))),
    "a full disk while it is moved away": over(accident=raising(replaced, "keep", OSError(28, "No space left"))),
    "resumed with other data": again(DATA, "test.jsonl"),
    "resumed with mistyped data": again(DATA, "trian.jsonl"),
    "resumed with mistyped held-out data": again("--data.test", "tset.jsonl"),
    "resumed with another model": again(MODEL, "runs/r/FINAL"),
    "resumed with another size of batch": again("--batch.pairs", "4"),
    "resumed with another seed": again("--seed", "1"),
    "resumed with another head": again("--model.head", "binary"),
    "resumed under a mistyped name, with mistyped data": again("--exp-name", "rr", DATA, "trian.jsonl"),
    "results of label over a file of the model": Mistake(
        ("--model", "runs/r/FINAL", "test.jsonl", "runs/r/FINAL/config.json", "--overwrite"), program="label"
    ),
    "results of evaluate over the run": Mistake(
        ("--model", "runs/r/FINAL", "--data", "test.jsonl", "--out", "runs/r", "--overwrite"), program="evaluate"
    ),
    "an export of evaluate over a file of the model": Mistake(
        ("--model", "runs/r/FINAL", "--data", "test.jsonl", "--out", "o", "--overwrite")
        + ("--export", "rewardbench", "runs/r/FINAL/config.json"),
        program="evaluate",
    ),
}


def of_run(*flags: str) -> list[str]:
    """The command line of the run; what a mistake adds comes later, and counts."""
    given = ["--exp-name", "r", "--cache-dir", "runs", MODEL, "lm", DATA, "train.jsonl", "--save.every", "1"]
    return [*given, "--batch.pairs", "8", "--optim.lr", "1e-3", "--eval.every", "0", *flags]


def make_template(folder: Path) -> Path:
    """A working folder with a tiny model, data, and a finished run of two steps."""
    folder.mkdir(parents=True)
    save_lm(folder / "lm")
    pairs = [row for _, row in zip(range(20), demo.preferences("train"), strict=False)]
    write_rows(folder / "train.jsonl", pairs[:16])
    write_rows(folder / "test.jsonl", pairs[16:])
    with contextlib.chdir(folder):
        status, words = fence.told(lambda: train.main(of_run()))
    assert status == 0, words
    return folder


def attempt(template: Path, work: Path, mistake: Mistake) -> tuple[list[str], str]:
    """Make one mistake on a copy of the template in `work`; what is wrong afterwards, and what the user was told."""
    shutil.copytree(template, work)
    before = {name: sum_ for name, sum_ in listing(work / "runs" / "r").items() if name.split("/")[0] in RUN}
    wrong, programs = [], {"train": train, "label": label, "evaluate": evaluate}
    with contextlib.chdir(work):
        mistake.prepare(work)
        flags = of_run(*mistake.flags) if mistake.program == "train" else list(mistake.flags)
        with mistake.accident():
            status, words = fence.told(lambda: programs[mistake.program].main(flags))
        if mistake.then is not None:
            status, words = fence.told(lambda: train.main(of_run(*mistake.then)))
        if status == 0 and mistake.accident is contextlib.nullcontext:
            wrong.append(f"it was not refused: {words[-500:]}")
        if status and not words.strip():
            wrong.append("it was refused without a word")
        if "Traceback (most recent" in words:
            wrong.append(f"a traceback is shown: {words[-1500:]}")
    place = work / "runs" / "r" / mistake.kept
    after = {name: sum_ for name, sum_ in listing(place).items() if name.split("/")[0] in RUN}
    if after != before:
        apart = sorted(set(before.items()) ^ set(after.items()))
        wrong.append(f"the earlier run is not whole in {place}: {apart[:4]}; {words[-800:]}")
    shutil.rmtree(work)
    said = " ".join(words.translate(dict.fromkeys(map(ord, fence.BOX))).replace(str(work), "").split())
    return wrong, said[-300:]


def campaign(folder: Path, names: list[str]) -> dict[str, tuple[list[str], str]]:
    """What is wrong after each of the mistakes and what was told, by name."""
    template = make_template(folder / "template")
    found = {}
    for name in names:
        found[name] = attempt(template, folder / "work", MISTAKES[name])
        if found[name][0]:
            print(f"not survived: {name}", *found[name][0], sep="\n  ", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=MISTAKES, default=list(MISTAKES), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "bench" / "results" / "mistakes.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mistakes-") as folder:
        found = campaign(Path(folder).resolve(), arguments.names)
    survived = sum(not wrong for wrong, _ in found.values())
    print(f"after {survived} of {len(found)} mistakes the earlier run is whole")
    result = {
        "bench": "mistakes",
        "command": " ".join(["python", "tests/campaigns/mistakes.py", *sys.argv[1:]]),
        "survived": survived,
        "tried": len(found),
        "mistakes": {name: {"wrong": wrong, "told": told} for name, (wrong, told) in found.items()},
        "environment": environment(torch.device("cpu"), 1),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if survived == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
