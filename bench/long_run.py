"""2,000 steps of the demo model, with evaluations and checkpoints: memory and time of a step, late against early.

Pairs of many lengths, so that no two steps have the shapes of another, in one or several microbatches. The run is
`python -m rmkit.train` in a process of its own; its resident memory is read from outside, the time of its steps from
its metrics.jsonl. The last tenth of the steps is compared with the second tenth, by medians.

    python bench/long_run.py            # 2 minutes; time needs a quiet machine, memory does not

Memory is flat where the two differ by at most 2 %, and so is time. Writes bench/results/long_run.json; the status is 1
where memory is not flat.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from rmkit import runtime

FLAT = 0.02
"""Largest relative difference of what is called flat."""
TRAIN, TEST = 4001, 40
"""Pairs; the last step of an epoch is smaller than the others."""


def write_pairs(folder: Path) -> None:
    """train.jsonl and test.jsonl: one to four pairs on a prompt, texts lognormal around 20 characters, up to 110."""
    rng = random.Random(0)

    def text() -> str:
        length = min(110, max(1, round(rng.lognormvariate(3.0, 0.7))))
        return "".join(rng.choices("abcdefgh ", k=length)).strip() or "a"

    for name, count in (("train", TRAIN), ("test", TEST)):
        rows: list[dict] = []
        while len(rows) < count:
            prompt = text()
            rows += [{"prompt": prompt, "chosen": text(), "rejected": text()} for _ in range(rng.randint(1, 4))]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))


def command(folder: Path, steps: int) -> list[str]:
    flags = f"""
        --exp-name long --cache-dir {folder} --data.train {folder}/train.jsonl --data.test {folder}/test.jsonl
        --batch.pairs 8 --batch.max-tokens 400 --optim.epochs {steps} --optim.max-steps {steps} --optim.lr 1e-4
        --eval.every {max(1, steps // 40)} --save.every {max(1, steps // 20)}
    """
    return [sys.executable, "-m", "rmkit.train", *flags.split()]


def watch(folder: Path, steps: int) -> list[dict]:
    """Run it; a sample of the resident memory, in bytes, for every few steps: {step, resident}."""
    samples: list[dict] = []
    metrics, read, done = folder / "long" / "metrics.jsonl", 0, 0
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(command(folder, steps), stdout=log, stderr=log, cwd=folder, env=environment)
        process = psutil.Process(running.pid)
        while running.poll() is None:
            time.sleep(0.1)
            if not metrics.exists():
                continue
            with metrics.open() as file:
                file.seek(read)
                lines, read = file.read().count('"loss/train"'), file.tell()
            if lines:
                done += lines
                samples.append({"step": done, "resident": process.memory_info().rss})
    if running.returncode:
        raise RuntimeError((folder / "log").read_text())
    return samples


def change(early: list[float], late: list[float]) -> dict[str, float]:
    """Medians of the second and of the last tenth, and how much the second is exceeded."""
    a, b = statistics.median(early), statistics.median(late)
    return {"second tenth": a, "last tenth": b, "change": b / a - 1}


def tenths(rows: list[dict], key: str, steps: int) -> dict[str, float]:
    """`change` of rows[key], by the step of the row."""
    early = [row[key] for row in rows if steps / 10 < row["step"] <= steps / 5]
    late = [row[key] for row in rows if row["step"] > steps * 9 / 10]
    return change(early, late)


def measure(folder: Path, steps: int) -> dict:
    """Memory and seconds of a run of `steps` steps."""
    write_pairs(folder)
    began = time.time()
    samples = watch(folder, steps)
    seconds = time.time() - began
    rows = [json.loads(line) for line in (folder / "long" / "metrics.jsonl").read_text().splitlines()]
    taken = [
        {
            "step": row["counters/updates"],
            "token": 1e6 / row["tokens_per_second"],
            "tokens": row["tokens/computed"],
        }
        for row in rows
        if "loss/train" in row
    ]
    assert len(taken) == steps
    quantiles = statistics.quantiles([row["tokens"] for row in taken], n=20)
    return {
        "steps": steps,
        "evaluations": sum("loss/eval" in row for row in rows),
        "tokens a step, 5 and 95 %": [quantiles[0], quantiles[-1]],
        "resident bytes": tenths(samples, "resident", steps),
        "largest resident bytes": max(row["resident"] for row in samples),
        "resident bytes by twentieth": [
            statistics.median(row["resident"] for row in samples if i < row["step"] * 20 / steps <= i + 1)
            for i in range(20)
        ],
        "microseconds a token": tenths(taken, "token", steps),
        "seconds": round(seconds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "long_run.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="long-run-") as folder:
        measured = measure(Path(folder), arguments.steps)
    memory, clock = measured["resident bytes"], measured["microseconds a token"]
    flat = {name: abs(row["change"]) <= FLAT for name, row in (("memory", memory), ("time", clock))}
    for name, row, scale, unit in (("memory", memory, 2**20, "MiB"), ("time", clock, 1, "us a token")):
        print(
            f"{name}: {row['second tenth'] / scale:.1f} {unit} in the second tenth, {row['last tenth'] / scale:.1f} in "
            f"the last, {row['change']:+.2%}: {'flat' if flat[name] else 'NOT flat'}"
        )
    print(f"{measured['steps']} steps in {measured['seconds']} s")
    result = {
        "bench": "long_run",
        "command": " ".join(["python", "bench/long_run.py", *sys.argv[1:]]),
        "flat": flat,
        **measured,
        "environment": runtime.environment(torch.device("cpu"), 1),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if flat["memory"] else 1


if __name__ == "__main__":
    sys.exit(main())
