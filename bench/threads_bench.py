"""Threads that spin while they wait, beside threads that sleep: training steps, on a quiet machine and on a busy one.

OpenMP's threads spin by default. rmkit's programs set OMP_WAIT_POLICY=passive, unless the user has set it, and this is
what it is worth: the trie step of the 13M Llama of step_bench, as many threads as there are cores, once alone and once
beside two processes that are always busy, which this script starts and ends itself. Each run is a process of its own,
and they take turns (A B C D, A B C D, ..), so that a drift of the machine's speed meets all of them.

    python bench/threads_bench.py                                       # about 20 minutes; needs a quiet machine
    python bench/threads_bench.py --rounds 1 --pairs 2 --steps 4 --max-length 64 --out try.json  # a quick look

Writes bench/results/threads.json.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from step_bench import LR, prepare

from rmkit.runtime import environment

WAITING = {"spin": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}
"""OpenMP's default, and that of the programs."""
BUSY = {"quiet": 0, "beside two busy processes": 2}
BUSY_PROCESS = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
TRAIN = "import sys; from rmkit.train import main; sys.exit(main(sys.argv[1:]))"
"""As a library: `python -m rmkit.train` would set the policy itself."""


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Within the block `count` other processes never rest; they end with this one too, however it ends."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY_PROCESS]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(folder: Path, waiting: str, others: int, arguments: argparse.Namespace) -> list[float]:
    """Pairs per second of each step of one training, warm-up left out."""
    flags = ["--exp-name", "threads", "--cache-dir", str(folder / "runs"), "--overwrite", "--model.name", str(folder)]
    flags += ["--data.train", str(folder / "pairs.jsonl"), "--data.max-length", str(arguments.max_length)]
    flags += ["--batch.pairs", str(arguments.pairs), "--batch.max-tokens", "65536", "--data.no-shuffle"]
    flags += ["--optim.lr", str(LR), "--save.every", "0", "--model.precision", "fp32"]
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    own = {name: value for name, value in os.environ.items() if name not in unset}
    with busy(others):
        command = [sys.executable, "-c", TRAIN, *flags]
        done = subprocess.run(command, capture_output=True, text=True, env={**own, **WAITING[waiting]})
    if done.returncode:
        sys.exit(f"{waiting} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    lines = (folder / "runs" / "threads" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["examples_per_second"] for line in lines if "loss/train" in line]
    return steps[arguments.warm_up :]


def summary(rounds: list[list[float]]) -> dict:
    """Pairs per second: of each round whole, and the median of all steps with its 20 and 80 % quantiles."""
    low, median, high = np.quantile(np.concatenate(rounds), [0.2, 0.5, 0.8])
    whole = [len(steps) / sum(1.0 / speed for speed in steps) for steps in rounds]
    return {"median": float(median), "q20": float(low), "q80": float(high), "rounds": whole}


def show(rows: list[dict], console: Console) -> None:
    table = Table("machine", "threads wait", "pairs/s (20-80 % of steps)", "rounds")
    for row in rows:
        speed = row["pairs_per_second"]
        cells = f"{speed['median']:.2f} ({speed['q20']:.2f}-{speed['q80']:.2f})"
        table.add_row(row["machine"], row["waiting"], cells, " ".join(f"{whole:.2f}" for whole in speed["rounds"]))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSONL with message lists prompt, chosen, rejected")
    parser.add_argument("--pairs", type=int, default=16, help="preferences per step")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a run, warm-up included")
    parser.add_argument("--warm-up", type=int, default=2, help="first steps that are not timed")
    parser.add_argument("--rounds", type=int, default=5, help="how often each setting is run")
    parser.add_argument("--max-length", type=int, default=1024, help="longer pairs are left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "threads.json")
    arguments = parser.parse_args()
    console = Console()
    cells = [(machine, waiting) for machine in BUSY for waiting in WAITING]
    found: dict[tuple[str, str], list[list[float]]] = {cell: [] for cell in cells}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, arguments.data, arguments.pairs * arguments.steps, arguments.max_length)
        for i in range(arguments.rounds):
            for machine, waiting in cells:
                console.print(f"round {i + 1} of {arguments.rounds}: {machine}, {waiting}", highlight=False)
                found[machine, waiting].append(measure(folder, waiting, BUSY[machine], arguments))
    rows = [
        {"machine": machine, "waiting": waiting, "pairs_per_second": summary(rounds)}
        for (machine, waiting), rounds in found.items()
    ]
    show(rows, console)
    settings = ("pairs", "steps", "warm_up", "rounds", "max_length")
    result = {
        "bench": "threads_bench",
        "data": arguments.data.parent.name if arguments.data else "made up",
        "settings": {key: getattr(arguments, key) for key in settings},
        "environment": {
            **environment(torch.device("cpu"), 1),
            "threads": len(os.sched_getaffinity(0)),
            "command": "python bench/threads_bench.py; data and settings above",
        },
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
