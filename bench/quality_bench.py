"""What cheap training costs in quality: full float32, LoRA, and bf16 weights with 8-bit states, on the same pairs.

    python bench/quality_bench.py --model PATH --data FOLDER     # train.jsonl and test.jsonl; half an hour on two cores

Each way is `python -m rmkit.train` and `python -m rmkit.evaluate` in processes of their own: same seed, hence the same
pairs in the same order, and a learning rate of its own (LoRA is trained at a higher one, as its paper does). Writes
bench/results/quality_bench.json: the losses of the steps side by side, and held-out accuracy with Wilson's interval.
A run of so few steps compares ways of training; it is no measure of the model.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from rmkit import runtime

WAYS = {
    "full, float32": ["--optim.lr", "2e-5"],
    "LoRA, rank 16": ["--lora.rank", "16", "--optim.lr", "3e-4"],
    "full, bf16 weights, 8-bit states": ["--model.weights", "bf16", "--optim.states", "8bit", "--optim.lr", "2e-5"],
}


def rmkit(program: str, flags: list[str]) -> None:
    """Run one of the programs; what it said, where it fails."""
    command = [sys.executable, "-m", f"rmkit.{program}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def measure(flags: list[str], asked: argparse.Namespace, folder: Path) -> dict:
    """Train one way and judge it; its losses by step, and what it holds out before and after."""
    run = folder / "run"
    common = f"""
        --exp-name run --cache-dir {folder} --overwrite --model.name {asked.model} --model.precision fp32
        --data.train {folder}/train.jsonl --data.test {folder}/test.jsonl --data.max-length {asked.max_length}
        --batch.pairs {asked.pairs} --batch.max-tokens {asked.max_tokens} --optim.max-steps {asked.steps}
        --optim.schedule cosine --eval.every 0 --save.every 0
    """
    began = time.time()
    rmkit("train", [*common.split(), *flags])
    seconds = time.time() - began
    rmkit("evaluate", f"--model {run}/FINAL --data {folder}/test.jsonl --out {folder}/judged --overwrite".split())
    judged = json.loads((folder / "judged" / "metrics.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "loss/eval" in row]
    return {
        "flags": " ".join(flags),
        "loss of each step": [row["loss/train"] for row in rows if "loss/train" in row],
        "held out": {
            "pairs": judged["overall"]["pairs"],
            "loss, before": evaluations[0]["loss/eval"],
            "loss": evaluations[-1]["loss/eval"],
            "accuracy, before": evaluations[0]["rewards_eval/accuracies"],
            "accuracy": judged["overall"]["accuracy"],
            "interval": [judged["overall"]["accuracy_low"], judged["overall"]["accuracy_high"]],
            "always the longer": judged["length_bias"]["always_longer"],
        },
        "bytes of FINAL's weights": sum(file.stat().st_size for file in (run / "FINAL").glob("model*.safetensors")),
        "seconds": round(seconds),
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal LM")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--test-pairs", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "quality_bench.json")
    return parser.parse_args(arguments)


def command(asked: argparse.Namespace) -> str:
    """What measures the same again, but for the place of the two folders, which are named alone."""
    words = ["python", "bench/quality_bench.py", "--model", Path(asked.model).name, "--data", asked.data.name]
    for name, value in sizes(asked).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def sizes(asked: argparse.Namespace) -> dict[str, int]:
    return {name: value for name, value in vars(asked).items() if isinstance(value, int)}


def main() -> int:
    asked, found = parsed(), {}
    for name, flags in WAYS.items():
        with tempfile.TemporaryDirectory(prefix="quality-") as made:
            folder = Path(made)
            lines = (asked.data / "test.jsonl").read_text(encoding="utf-8").splitlines()[: asked.test_pairs]
            (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            (folder / "train.jsonl").write_bytes((asked.data / "train.jsonl").read_bytes())
            found[name] = measure(flags, asked, folder)
        held = found[name]["held out"]
        low, high = held["interval"]
        print(
            f"{name}: loss {held['loss, before']:.4f} -> {held['loss']:.4f}, accuracy {held['accuracy, before']:.3f} "
            f"-> {held['accuracy']:.3f} ({low:.3f} to {high:.3f}) of {held['pairs']}, {found[name]['seconds']} s",
            flush=True,
        )
    result = {
        "bench": "quality_bench",
        "command": command(asked),
        "asked": sizes(asked),
        "data": asked.data.name,
        "ways": found,
        "environment": {**runtime.environment(torch.device("cpu"), 1), "command": "above"},
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
