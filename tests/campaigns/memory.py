"""The estimate of memory beside the CUDA step on fake tensors, for 24 ways to train: a campaign.

    python tests/campaigns/memory.py            # a quarter of an hour on two cores; writes bench/results/memory.json

Shapes of Qwen3-0.6B, Llama-3.2-1B and Llama-3-8B, written down here. The peak of the step is counted by
tests/support/dry_cuda in a process for each way: what PyTorch would ask of CUDA's allocator, in its 512 bytes. The
estimate (rmkit/training/estimate.py) knows the configuration and the lengths of the microbatch alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
sys.path.append(str(Path(__file__).parents[1]))  # support/ and this folder, as a package

import torch
from transformers import AutoConfig

from rmkit import runtime
from rmkit.training.estimate import Load, Memory, Way, memory, shape_of
from support.decoders import LLAMA_3_8B, LLAMA_32_1B, QWEN3_06B
from support.dry_cuda.build import library

GIB = 2**30
WITHIN = 0.05

MODELS = {"0.6B": ("qwen3", QWEN3_06B), "1B": ("llama", LLAMA_32_1B), "8B": ("llama", LLAMA_3_8B)}

COLUMNS = ("model", "states", "weights", "recompute", "rank", "ranks", "tokens")
WAYS = [
    ("0.6B", "fp32", "fp32", False, 0, 1, 8192),
    ("0.6B", "fp32", "fp32", True, 0, 1, 16384),
    ("0.6B", "bf16", "fp32", False, 0, 1, 32768),
    ("0.6B", "8bit", "bf16", True, 0, 1, 32768),
    ("0.6B", "8bit", "bf16", False, 0, 1, 16384),
    ("0.6B", "fp32", "fp32", True, 0, 4, 8192),
    ("0.6B", "fp32", "bf16", False, 16, 1, 16384),
    ("0.6B", "bf16", "bf16", False, 0, 4, 16384),
    ("1B", "fp32", "fp32", False, 0, 1, 16384),
    ("1B", "fp32", "fp32", True, 0, 1, 8192),
    ("1B", "bf16", "bf16", False, 0, 1, 8192),
    ("1B", "8bit", "bf16", True, 0, 1, 32768),
    ("1B", "fp32", "fp32", False, 0, 4, 16384),
    ("1B", "8bit", "fp32", True, 0, 1, 32768),
    ("1B", "fp32", "bf16", True, 64, 1, 32768),
    ("1B", "fp32", "fp32", True, 64, 4, 8192),
    ("8B", "fp32", "fp32", True, 0, 1, 16384),
    ("8B", "fp32", "fp32", False, 0, 1, 16384),
    ("8B", "8bit", "bf16", True, 0, 1, 16384),
    ("8B", "bf16", "bf16", True, 0, 1, 32768),
    ("8B", "fp32", "fp32", True, 0, 4, 16384),
    ("8B", "8bit", "bf16", True, 0, 4, 32768),
    ("8B", "fp32", "bf16", True, 64, 1, 16384),
    ("8B", "fp32", "bf16", False, 64, 1, 8192),
]


def counted(row: dict, pretended: Future) -> dict:
    """The peak on the device that computes nothing, in a process of its own."""
    family, values = MODELS[row["model"]]
    given = json.dumps({**row, "family": family, "values": values})
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "FAKE_CUDA": str(pretended.result())}
    command = [sys.executable, "-W", "ignore", "-m", "support.dry_cuda.memory", given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def estimated(row: dict, load: dict) -> Memory:
    family, values = MODELS[row["model"]]
    shape = shape_of(AutoConfig.for_model(family, **values, num_labels=1, pad_token_id=0))
    chosen = {key: row[key] for key in ("states", "weights", "recompute", "rank")}
    return memory(shape, Way(**chosen, shards=row["ranks"], sharded=row["ranks"] > 1), Load(**load))


def compared(row: dict, found: dict) -> dict:
    """The row with both peaks, in GiB, and the parts of the estimate."""
    m = estimated(row, found["load"])
    parts = {name: getattr(m, name) for name in ("weights", "gradients", "states", "gathered", "activations")}
    return {
        **row,
        "counted": round(found["peak"], 3),
        "estimated": round(m.peak / GIB, 3),
        "difference": round(m.peak / GIB / found["peak"] - 1, 4),
        "moment": m.moment,
        "parts": {name: round(size / GIB, 3) for name, size in parts.items()},
        "load": found["load"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "bench" / "results" / "memory.json")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of ways, from 0; nothing is written")
    arguments = parser.parse_args()
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in WAYS]
    rows = [rows[i] for i in arguments.only] if arguments.only else rows
    began, found = time.time(), []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as compiler, ThreadPoolExecutor(2) as pool:
        pretended = compiler.submit(library, Path(folder))
        for row, peak in zip(rows, pool.map(lambda row: counted(row, pretended), rows), strict=True):
            found.append(compared(row, peak))
            shown = " ".join(str(row[name]) for name in COLUMNS)
            last = found[-1]
            peaks = f"counted {last['counted']:.2f}, estimated {last['estimated']:.2f} GiB"
            print(f"{shown:<36} {peaks}, {last['difference']:+.2%} ({last['moment']})", flush=True)
    within = sum(abs(row["difference"]) <= WITHIN for row in found)
    worst = max(abs(row["difference"]) for row in found)
    print(f"{within} of {len(found)} within {WITHIN:.0%}, the worst {worst:.2%}; {time.time() - began:.0f} s")
    result = {
        "command": "python tests/campaigns/memory.py",
        "commit": runtime.commit(),
        "within": within,
        "of": len(found),
        "worst": worst,
        "rows": found,
        "seconds": round(time.time() - began),
        "torch": torch.__version__,
    }
    if not arguments.only:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if within == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
