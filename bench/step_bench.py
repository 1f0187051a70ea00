"""Training steps of rmkit beside TRL's RewardTrainer: the same weights, pairs, order and optimizer, on one machine.

Each path trains in a process of its own, in turn (A B C, A B C, ..), so that a drift of the machine's speed meets
all of them. The first ten losses are printed beside TRL's: a path that does not agree is not timed.

    python bench/step_bench.py                                   # pairs made up to the lengths of HH, no file needed
    python bench/step_bench.py --data hh_harmless/train.jsonl    # real pairs
    python bench/step_bench.py --paths trl trie trie+compiled trie+unthreaded --warm-up 4 --out compile_cpu.json

The model is a Llama from scratch (hidden 384, 6 layers) with an 8k byte-level BPE trained on the pairs; 16 pairs a
step, float32, no shuffle, constant learning rate 1e-4, no weight decay. Writes bench/results/NAME.json.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the programs do, before torch is loaded

import numpy as np
import torch
from llama import save_llama
from rich.console import Console
from rich.table import Table

PATHS = ("trl", "padded", "packed", "trie")
VARIANTS = ("trie+compiled", "trie+unthreaded")
"""The trie with --model.compile on, and with each microbatch made when it is asked for, not by a thread before."""
LR = 1e-4
COMPARED = 10
"""Losses that are held against TRL's."""
TOLERANCE = 1e-4
TEMPLATE = (
    "{% for m in messages %}{{ '\n\nHuman: ' if m['role'] == 'user' else '\n\nAssistant: ' }}{{ m['content'] }}"
    "{% endfor %}{{ eos_token }}"
)


def made_up_pairs(count: int) -> list[dict]:
    """Dialogues of random words with the lengths of HH (median prompt 107 tokens, response 30), for a run offline."""
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioubcdfghklmnprstvw", k=rng.randint(2, 8))) for _ in range(3000)]

    def text(median: float) -> str:
        return " ".join(rng.choices(words, k=max(1, round(rng.lognormvariate(0.0, 0.9) * median))))

    rows = []
    for _ in range(count):
        turns = rng.choice([1, 1, 3, 3, 5, 7])
        prompt = [{"role": ("user", "assistant")[i % 2], "content": text(15)} for i in range(turns)]
        chosen, rejected = ([{"role": "assistant", "content": text(15)}] for _ in range(2))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def prepare(folder: Path, data: Path | None, pairs: int, max_length: int) -> None:
    """Write the starting classifier, its tokenizer and the pairs (those under the length limit) into `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    rows = made_up_pairs(4 * pairs) if data is None else [json.loads(line) for line in data.open(encoding="utf-8")]
    keys = ("prompt", "chosen", "rejected")
    texts = [m["content"] for row in rows for key in keys for m in row[key]]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)

    def tokens(row: dict, side: str) -> int:
        text = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    fitting = (row for row in rows if max(tokens(row, "chosen"), tokens(row, "rejected")) <= max_length)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for _, row in zip(range(pairs), fitting, strict=False):
            file.write(json.dumps({key: row[key] for key in keys}) + "\n")
    save_llama(folder, context=2048)


def run_trl(
    folder: Path, steps: int, pairs: int, max_length: int, *, bf16: bool = False, microbatches: int = 1
) -> dict:
    """TRL's RewardTrainer; its loss as it is before logging rounds it (one a microbatch), seconds from step begin to
    step end."""
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer
    from trl_clock import Clock

    losses, clock = [], Clock("grad_norm")

    class Trainer(RewardTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    config = RewardConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=pairs // microbatches,
        gradient_accumulation_steps=microbatches,
        max_steps=steps,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_length=max_length,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32),
        args=config,
        train_dataset=load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[clock],
    )
    trainer.train()
    return {"losses": losses, "grad_norms": clock.logged, "seconds": clock.seconds}


def train_flags(
    folder: Path, layout: str, steps: int, pairs: int, max_length: int, name: str | None = None
) -> list[str]:
    """Flags of `python -m rmkit.train` for the model and pairs of `folder`: file order, a constant rate, no decay.
    The run is called `name`, by default as the layout."""
    flags = [
        "--exp-name",
        name or layout,
        "--cache-dir",
        str(folder / "rmkit"),
        "--overwrite",
        "--model.name",
        str(folder),
    ]
    flags += ["--data.train", str(folder / "pairs.jsonl"), "--data.max-length", str(max_length), "--data.no-shuffle"]
    flags += ["--batch.pairs", str(pairs), "--batch.layout", layout, "--optim.lr", str(LR)]
    flags += ["--optim.schedule", "constant", "--optim.warmup-ratio", "0", "--optim.weight-decay", "0"]
    return [*flags, "--optim.max-steps", str(steps), "--save.every", "0"]


def steps_of(folder: Path, name: str, pairs: int) -> dict:
    """What a run of `train_flags` wrote of each step into its metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "rmkit" / name / "metrics.jsonl").open()]
    return {
        "losses": [m["loss/train"] for m in lines],
        "grad_norms": [m["grad_norm"] for m in lines],
        "seconds": [pairs / m["examples_per_second"] for m in lines],
        "tokens": [m["tokens/computed"] for m in lines],
        "flat": [m["tokens/flat"] for m in lines],
    }


def run_rmkit(folder: Path, path: str, steps: int, pairs: int, max_length: int) -> dict:
    """`python -m rmkit.train` on the same folder; its steps, and the seconds that planning and packing took in them."""
    from rmkit import train
    from rmkit.batch.build import Batches
    from rmkit.train import main

    layout, _, variant = path.partition("+")
    if variant == "unthreaded":
        train.Ahead = lambda items, at_start: contextlib.nullcontext(items)

    spent = []

    def timed(function):
        def wrapper(*args):
            start = time.perf_counter()
            result = function(*args)
            spent.append(time.perf_counter() - start)
            return result

        return wrapper

    Batches.split, Batches.pack = timed(Batches.split), timed(Batches.pack)
    flags = train_flags(folder, layout, steps, pairs, max_length, path) + ["--batch.max-tokens", "65536"]
    flags += ["--model.precision", "fp32", "--model.compile", "on" if variant == "compiled" else "off"]
    if code := main(flags):
        sys.exit(code)
    return {**steps_of(folder, path, pairs), "packing": sum(spent)}


def child(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.folder)
    sizes = (arguments.steps, arguments.pairs, arguments.max_length)
    out = run_trl(folder, *sizes) if arguments.child == "trl" else run_rmkit(folder, arguments.child, *sizes)
    (folder / f"{arguments.child}.json").write_text(json.dumps(out))


def measure(folder: Path, path: str, arguments: argparse.Namespace) -> dict:
    """One path in a process of its own."""
    command = [sys.executable, __file__, "--child", path, "--folder", str(folder), "--steps", str(arguments.steps)]
    command += ["--pairs", str(arguments.pairs), "--max-length", str(arguments.max_length)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{path} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads((folder / f"{path}.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSONL with message lists prompt, chosen, rejected")
    parser.add_argument("--pairs", type=int, default=16, help="preferences per step")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps per round, warm-up included")
    parser.add_argument("--warm-up", type=int, default=2, help="first steps that are not timed")
    parser.add_argument("--rounds", type=int, default=3, help="how often each path is run")
    parser.add_argument("--max-length", type=int, default=1024, help="longer pairs are left out for all paths")
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=PATHS + VARIANTS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step_bench.json")
    parser.add_argument("--prepare", type=Path, help="write the model, its tokenizer and the pairs there, and stop")
    parser.add_argument("--child", choices=PATHS + VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    if arguments.prepare:
        arguments.prepare.mkdir(parents=True, exist_ok=True)
        prepare(arguments.prepare, arguments.data, arguments.pairs * arguments.steps, arguments.max_length)
        return

    from rmkit.runtime import environment

    console = Console()
    runs: dict[str, list[dict]] = {path: [] for path in arguments.paths}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, arguments.data, arguments.pairs * arguments.steps, arguments.max_length)
        for i in range(arguments.rounds):
            for path in arguments.paths:
                console.print(f"round {i + 1} of {arguments.rounds}: {path}", highlight=False)
                runs[path].append(measure(folder, path, arguments))

    result = {path: summary(of_path, arguments.pairs, arguments.warm_up) for path, of_path in runs.items()}
    compare(result, console)
    result_file = {
        "bench": "step_bench",
        "data": arguments.data.parent.name if arguments.data else "made up",
        "settings": {key: getattr(arguments, key) for key in ("pairs", "steps", "warm_up", "rounds", "max_length")},
        "environment": environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 1),
        "paths": result,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result_file, indent=1) + "\n")
    print(json.dumps({path: row["pairs_per_second"] for path, row in result.items()}))


def summary(runs: list[dict], pairs: int, warm_up: int) -> dict:
    """Median pairs per second with its 20 and 80 % quantiles over the steps of all rounds, warm-up left out."""
    timed = [run["seconds"][warm_up:] for run in runs]
    low, median, high = np.quantile(pairs / np.concatenate(timed), [0.2, 0.5, 0.8])
    rounds = [pairs * len(seconds) / sum(seconds) for seconds in timed]
    row = {
        "pairs_per_second": {"median": float(median), "q20": float(low), "q80": float(high)},
        "rounds": rounds,
        "losses": runs[0]["losses"][:COMPARED],
        "grad_norms": runs[0]["grad_norms"][:COMPARED],
    }
    if "tokens" in runs[0]:
        row["tokens_computed"], row["tokens_flat"] = sum(runs[0]["tokens"]), sum(runs[0]["flat"])
        row["packing_share_of_step"] = float(np.median([run["packing"] / sum(run["seconds"]) for run in runs]))
    return row


def compare(result: dict[str, dict], console: Console) -> None:
    """Add each path's ratio to TRL, round by round, and print the table; exit where the first losses do not agree."""
    base = result.get("trl")
    table = Table("path", "pairs/s (20-80 %)", "times TRL", "loss difference", "tokens", "packing")
    for path, row in result.items():
        speed = row["pairs_per_second"]
        cells = [path, f"{speed['median']:.1f} ({speed['q20']:.1f}-{speed['q80']:.1f})", "-", "-", "-", "-"]
        if "tokens_flat" in row:
            cells[4] = f"{row['tokens_computed'] / row['tokens_flat']:.2f} of flat"
            cells[5] = f"{row['packing_share_of_step']:.1%} of step"
        if base:
            ratios = [a / b for a, b in zip(row["rounds"], base["rounds"], strict=True)]
            row["times_trl"] = {"median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios)}
            row["largest_loss_difference"] = max(abs(a - b) for a, b in zip(row["losses"], base["losses"], strict=True))
            cells[2] = f"{np.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            cells[3] = f"{row['largest_loss_difference']:.1e}"
            if not row["largest_loss_difference"] <= TOLERANCE:
                sys.exit(f"{path}: losses {row['losses']} are not TRL's {base['losses']}; nothing is timed")
        table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    main()
