"""The estimate of memory beside the CUDA step on fake tensors, for 24 ways to train: bench/results/memory.json.

    python bench/memory_table.py            # half an hour on two cores; needs g++ and a build of torch for CPUs

Shapes of Qwen3-0.6B, Llama-3.2-1B and Llama-3-8B, written down here. The peak of the step is counted by
tests/support/dry_cuda in a process for each way: whatever PyTorch would ask of CUDA's allocator, in its 512 bytes.
The estimate (rmkit/training/estimate.py) knows the configuration and the lengths of the microbatch alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import AutoConfig

from rmkit import runtime
from rmkit.training.estimate import Load, Way, memory, shape_of

TESTS = Path(__file__).parents[1] / "tests"
GIB = 2**30
WITHIN = 0.05

QWEN3_06B = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
}
LLAMA_32_1B = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131_072,
}
LLAMA_3_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
MODELS = {"0.6B": ("qwen3", QWEN3_06B), "1B": ("llama", LLAMA_32_1B), "8B": ("llama", LLAMA_3_8B)}

COLUMNS = ("model", "states", "weights", "recompute", "rank", "ranks", "tokens")
CONFIGURATIONS = [
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


def built(folder: Path) -> Path:
    """The library that stands in for CUDA, built against the torch that runs."""
    torch_folder = Path(torch.__file__).parent
    include, lib, out = torch_folder / "include", torch_folder / "lib", folder / "fake_cuda.so"
    source = TESTS / "support" / "dry_cuda" / "fake_cuda.cpp"
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(source), "-o", str(out), f"-I{include}"]
    command += [f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}", f"-L{lib}", f"-Wl,-rpath,{lib}"]
    subprocess.run([*command, "-ltorch_cpu", "-lc10"], check=True)
    return out


def asked(row: dict) -> dict:
    family, values = MODELS[row["model"]]
    return {**row, "family": family, "values": values}


def dry(row: dict, library: Path) -> dict:
    """The peak on the device that computes nothing, in a process of its own."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "FAKE_CUDA": str(library), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "support.dry_cuda.memory", json.dumps(asked(row))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def compared(row: dict, found: dict) -> dict:
    """The row with both peaks, in GiB."""
    family, values = MODELS[row["model"]]
    shape = shape_of(AutoConfig.for_model(family, **values, num_labels=1, pad_token_id=0))
    chosen = {key: row[key] for key in ("states", "weights", "recompute", "rank")}
    way = Way(**chosen, shards=row["ranks"], sharded=row["ranks"] > 1)
    estimated = memory(shape, way, Load(**found["load"]))
    parts = {name: getattr(estimated, name) / GIB for name in ("weights", "gradients", "states", "gathered")}
    return {
        **row,
        "counted": round(found["peak"], 3),
        "estimated": round(estimated.peak / GIB, 3),
        "difference": round(estimated.peak / GIB / found["peak"] - 1, 4),
        "moment": estimated.moment,
        "parts": {name: round(value, 3) for name, value in parts.items()}
        | {"activations": round(estimated.activations / GIB, 3)},
        "load": found["load"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of configurations, from 0")
    arguments = parser.parse_args()
    if shutil.which("g++") is None or torch.version.cuda is not None:
        sys.exit("memory_table.py: it needs g++ and a build of torch for CPUs")
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in CONFIGURATIONS]
    rows = [rows[i] for i in arguments.only] if arguments.only else rows
    began, found = time.time(), []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        library = built(Path(folder))
        for row, counted in zip(rows, pool.map(lambda row: dry(row, library), rows), strict=True):
            found.append(compared(row, counted))
            shown = " ".join(str(row[name]) for name in COLUMNS)
            last = found[-1]
            peaks = f"counted {last['counted']:.2f}, estimated {last['estimated']:.2f} GiB"
            print(f"{shown:<36} {peaks}, {last['difference']:+.2%} ({last['moment']})", flush=True)
    within = sum(abs(row["difference"]) <= WITHIN for row in found)
    worst = max(abs(row["difference"]) for row in found)
    print(f"{within} of {len(found)} within {WITHIN:.0%}, the worst {worst:.2%}; {time.time() - began:.0f} s")
    result = {
        "bench": "memory_table",
        "command": " ".join(["python", "bench/memory_table.py", *sys.argv[1:]]),
        "within": within,
        "of": len(found),
        "worst": worst,
        "rows": found,
        "environment": runtime.environment(torch.device("cpu"), 1),
    }
    if not arguments.only:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if within == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
