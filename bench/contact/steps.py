"""Training steps by `python -m rmkit.train` itself: a model, the ways to train it that fit the card, a process a way.

Every way takes the same pairs, 16 a step, in microbatches of at most 16,384 tokens; under trie that is one.

    ms          of a step, wall clock, the median after the first three; first_s: the first one, compilation included
    host ms     of these the time in which the host did not wait for the card: near ms, the host is what is slow
    MFU         operations of the tokens that are computed (padding too), recomputation not counted, over the data sheet
    flat tok/s  tokens of both sides of every pair, each written out: what the layouts are to be compared by
    peak GiB    allocated from the second step on, beside what rmkit.training.estimate says
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from contact.models import MODELS, config_of, save_model, scratch, write_pairs
from contact.ways import WAYS, Way, missing_flags

PAIRS, STEPS, WARM = 16, 8, 3
MAX_LENGTH = 4096
MINIMUM = 20.0
"""Seconds under which no way is begun"""
SPARE = 3.0
"""GiB of the card that stay free: CUDA's own, and what no allocator can use"""


def measured(way: Way, folder: Path, model: str, tiny: bool, seconds: float) -> dict:
    """The row of one way, from a process of its own; under --tiny from this one, to spare CI the imports."""
    out = folder / "row.json"
    if tiny:
        from contact.one_way import train

        return train(way, folder, model, tiny)
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "contact.one_way", model, way.name, str(folder), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"it was not done after {seconds:.0f} s"}
    words = (done.stdout + done.stderr).strip()
    last = words.splitlines()[-1] if words else f"exit status {done.returncode}"
    row = json.loads(out.read_text()) if out.is_file() else {"failed": last}
    return {**row, "output": words[-3000:]} if "failed" in row else row


def line(row: dict) -> str:
    """One way in the summary."""
    if "ms" not in row:
        return f"{row['way']}: " + (f"skipped, {row['skipped']}" if "skipped" in row else f"FAILED, {row['failed']}")
    mfu = f"MFU {row['mfu']:.1%}" if isinstance(row["mfu"], float) else "MFU -"
    peak = row["peak_gib"] if isinstance(row["peak_gib"], str) else f"{row['peak_gib']:.1f} GiB"
    if isinstance(row.get("estimate_gib"), float):
        peak += f" (estimated {row['estimate_gib']:.1f})"
    host, computed = ("-" if each is None else f"{each:.0f}" for each in (row["host_ms"], row["tokens_per_second"]))
    flat = f"{row['flat_tokens_per_second']:.0f}"
    return f"{row['way']}: {row['ms']:.0f} ms, host {host}, {mfu}, {computed} tok/s, flat {flat}, {peak}"


def why_not(way: Way, memory: float, left: float) -> str | None:
    """Why a way is not measured here; None where it is."""
    if missing := missing_flags(way):
        return missing
    if way.needs > memory - SPARE:
        return f"it takes about {way.needs:.0f} GiB of {memory:.0f}"
    return "no time was left" if left < MINIMUM else None


def run(tiny: bool, seconds: float, leave: Callable[[dict], None], model: str) -> dict:
    end = time.monotonic() + seconds
    memory = float("inf") if tiny else torch.cuda.mem_get_info()[1] / 2**30
    device = "cpu" if tiny else torch.cuda.get_device_name()
    result: dict = {"model": MODELS[model][1], "pairs": PAIRS, "rows": [], "said": []}
    with scratch(model, tiny) as temporary:
        folder, began = Path(temporary), time.monotonic()
        save_model(model, folder, tiny)
        torch.cuda.empty_cache()  # the ways are processes of their own
        write_pairs(folder / "pairs.jsonl", PAIRS, STEPS, tiny)
        result |= {"layers": config_of(model, tiny).num_hidden_layers, "saved_in_s": round(time.monotonic() - began, 1)}
        for way in WAYS[model]:
            way = replace(way, rank=min(way.rank, 4)) if tiny else way  # no more than its layers have
            row = {"way": way.name, "device": device, "tiny": tiny}
            left = end - time.monotonic()
            if why := why_not(way, memory, left):
                row["skipped"] = why
            else:
                row |= measured(way, folder, model, tiny, left)
            result["rows"].append(row)
            result["said"].append(line(row))
            leave(result)
    first = [row["losses"][0] for row in result["rows"] if "losses" in row]
    if len(first) > 1:
        result["said"].append(f"losses of the first step: within {max(first) - min(first):.1e} of one another")
    return result
