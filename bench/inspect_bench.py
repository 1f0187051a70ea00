"""How long `python -m rmkit.inspect` takes without a model on many pairs, and what memory.

    python bench/inspect_bench.py                    # a million pairs
    python bench/inspect_bench.py --pairs 50000      # a quick look

Makes a JSONL file of that many pairs in a temporary folder (2 kB each: a prompt of 40 words, answers of 30 to 200
words out of 20,000; one pair in 100 repeats an earlier one, one in 100 contradicts one) and inspects it in a process of
its own, whose wall-clock, processor seconds and largest memory are recorded. Writes bench/results/inspect_bench.json.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from rmkit.runtime import environment

RESULTS = Path(__file__).parent / "results" / "inspect_bench.json"
BLOCK = 4000
"""Words of a text that others are cut out of: drawing each word would take longer than inspecting it"""


def generate(file: Path, pairs: int) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    blocks = [rng.choices(words, k=BLOCK) for _ in range(200)]

    def text(count: int) -> str:
        start = rng.randrange(BLOCK - count)
        return " ".join(rng.choice(blocks)[start : start + count]) + "."

    earlier: list[dict] = []
    with file.open("w") as out:
        for i in range(pairs):
            row = {"prompt": text(40), "chosen": text(rng.randint(30, 200)), "rejected": text(rng.randint(30, 200))}
            row["subset"] = rng.choice("abcd")
            if i % 100 == 1:
                row = earlier[i % len(earlier)]
            elif i % 100 == 2:
                other = earlier[i % len(earlier)]
                row = other | {"chosen": other["rejected"], "rejected": other["chosen"]}
            elif len(earlier) < 1000:
                earlier.append(row)
            out.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "train.jsonl", Path(folder) / "out"
        generate(file, given.pairs)
        command = [sys.executable, "-m", "rmkit.inspect", str(file), "--out", str(out)]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        wall = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads((out / "inspect.json").read_text())
        assert found["pairs"] == given.pairs
        result = {
            "bench": "inspect_bench",
            "pairs": given.pairs,
            "file_gb": file.stat().st_size / 1e9,
            "wall_seconds": wall,
            "processor_seconds": used.ru_utime + used.ru_stime,
            "largest_memory_gib": used.ru_maxrss / 2**20,
            "load_average": os.getloadavg(),
            "repeated": found["duplicates"]["repeated"]["pairs"],
            "contradictory": found["duplicates"]["contradictory"]["pairs"],
            "command": "python -m rmkit.inspect FILE",
            "environment": environment(torch.device("cpu"), 1),
        }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
