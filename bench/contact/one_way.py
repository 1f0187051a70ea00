"""One way to train, watched: `python -m contact.one_way MODEL WAY FOLDER OUT` writes the row of steps.py.

The training is the product's own command. It is watched at two places: what it packs, and where it reads its numbers
from the card (the one time in a step in which the host waits). After the last step it is left without saving.
"""

import importlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median

import torch
from step_bench import run_trl, steps_of, train_flags

from contact.card import data_sheet
from contact.models import config_of
from contact.steps import MAX_LENGTH, PAIRS, STEPS, WARM
from contact.ways import WAYS, Way, flags_of
from rmkit.batch.build import Batches
from rmkit.batch.trie import PackedBatch
from rmkit.model.loss import PairSums


class Enough(BaseException):
    """The steps that were wanted are done."""


@dataclass
class Watch:
    """What was seen of a training."""

    batches: list[PackedBatch] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    """Seconds in which the host waited for the card, a step"""


@contextmanager
def watching(steps: int) -> Iterator[Watch]:
    """Within the block trainings are seen, and leave by `Enough` when they have read the numbers of `steps` steps."""
    seen, pack, as_dict = Watch(), Batches.pack, PairSums.as_dict

    def packed(batches: Batches, indices) -> PackedBatch:
        seen.batches.append(pack(batches, indices))
        return seen.batches[-1]

    def read(sums: PairSums) -> dict[str, float]:
        begin = time.perf_counter()
        values = as_dict(sums)
        seen.waited.append(time.perf_counter() - begin)
        if len(seen.waited) == 2 and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # with Adam's moments, which the first step makes
        if len(seen.waited) > steps:
            raise Enough
        return values

    Batches.pack, PairSums.as_dict = packed, read
    try:
        yield seen
    finally:
        Batches.pack, PairSums.as_dict = pack, as_dict


def flops(config, batch: PackedBatch, trained: bool = True) -> float:
    """Model FLOPs of a forward and backward pass: 6 a weight of a layer and token (4 where LoRA trains beside it), and
    12 a feature of the heads and visible (query, key) pair. Embedding, head and LoRA's own matrices are left out."""
    H, I, D = config.hidden_size, config.intermediate_size, config.head_dim
    Q, KV, layers = config.num_attention_heads * D, config.num_key_value_heads * D, config.num_hidden_layers
    keys, others = 2 * H * KV, 2 * H * Q + 3 * H * I
    T, per_weight = batch.tokens, 6 if trained else 4
    if batch.segments is None:
        S, L = batch.input_ids.shape
        return layers * (per_weight * (keys + others) * T + 12 * Q * S * L * (L + 1) / 2)
    seen = sum(n * (m - n) + n * (n + 1) / 2 for n, m in batch.segments.lengths)
    of_ends = sum(m for _, m in batch.ends.segments.lengths)
    E = len(batch.ends.rows)
    full = per_weight * (keys + others) * T + 12 * Q * seen
    # The last layer: keys and values of all tokens, all else of the end tokens alone.
    return (layers - 1) * full + per_weight * (keys * T + others * E) + 12 * Q * of_ends


def estimate(way: Way, config, batch: PackedBatch) -> float | str:
    """GiB at the peak, as rmkit says before it reads the weights; or why it does not."""
    if find_spec("rmkit.training.estimate") is None:
        return "this checkout has no rmkit.training.estimate"
    try:
        told = importlib.import_module("rmkit.training.estimate")
        how = told.Way(states=way.states, weights=way.weights, recompute=way.recomputed, rank=way.rank)
        segments, ends = batch.segments, batch.ends
        load = told.Load(
            tokens=batch.tokens,
            gathered=0 if segments is None or segments.kv_index is None else len(segments.kv_index),
            segments=len(segments.lengths) if segments else len(batch.input_ids),
            ends=len(ends.rows) if ends else len(batch.input_ids),
            end_keys=sum(m for _, m in ends.segments.lengths) if ends else 0,
            microbatches=1,
        )
        return told.memory(told.shape_of(config), how, load).peak / 2**30
    except Exception as error:  # a figure beside the figures: without it the row stands
        return f"{type(error).__name__}: {error}"[:300]


def speeds(steps: dict, trainings: int) -> dict:
    """Medians after the warm-up, from what steps_of or run_trl gives."""
    timed = slice(WARM, trainings)
    seconds = median(steps["seconds"][timed])
    return {"ms": 1e3 * seconds, "first_s": steps["seconds"][0], "pairs_per_second": PAIRS / seconds}


def memory_of() -> dict:
    if not torch.cuda.is_available():
        return {"peak_gib": "no card", "reserved_gib": "no card"}
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"peak_gib": peak / 2**30, "reserved_gib": reserved / 2**30}


def train(way: Way, folder: Path, model: str, tiny: bool) -> dict:
    """The row of one way; the pairs and the model lie in `folder`."""
    if way.trl:
        return train_trl(folder)
    from rmkit.train import main

    flags = train_flags(folder, way.layout, STEPS, PAIRS, MAX_LENGTH) + flags_of(way)
    with watching(STEPS - 1) as seen:
        try:
            status = main(flags)
        except Enough:
            status = 0
    if status:
        return {"failed": f"rmkit.train ended with status {status}: its words are in the log", "flags": flags}
    steps, config = steps_of(folder, way.layout, PAIRS), config_of(model, tiny)
    row = {**speeds(steps, STEPS - 1), **memory_of()}
    tokens, flat = (median(steps[key][WARM:]) for key in ("tokens", "flat"))
    work = sum(flops(config, b, not way.rank) for b in seen.batches) / sum(b.tokens for b in seen.batches) * tokens
    seconds = row["ms"] / 1e3
    sheet = data_sheet(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if len(seen.waited) > WARM:
        row["host_ms"] = max(0.0, row["ms"] - 1e3 * median(seen.waited[WARM : STEPS - 1]))
    else:
        row["host_ms"] = None  # it no longer reads through PairSums.as_dict: `watching` has to follow
    return {
        **row,
        "mfu": work / seconds / sheet if sheet else "no card" if tiny else "unknown card",
        "tflops": work / seconds / 1e12,
        "tokens": tokens,
        "flat": flat,
        "microbatches": len(seen.batches) / len(steps["seconds"]),
        "tokens_per_second": tokens / seconds,
        "flat_tokens_per_second": flat / seconds,
        "estimate_gib": estimate(way, config, max(seen.batches, key=lambda b: b.tokens)),
        "losses": steps["losses"],
        "flags": flags,
    }


def train_trl(folder: Path) -> dict:
    """The same pairs by TRL: times and memory; what it computes of them it does not say."""
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    parts = 4
    done = run_trl(folder, STEPS, PAIRS, MAX_LENGTH, bf16=torch.cuda.is_available(), microbatches=parts)
    row = speeds(done, STEPS) | {
        "losses": [fmean(done["losses"][i : i + parts]) for i in range(0, parts * STEPS, parts)]
    }
    words = sum(len(m["content"].split()) for each in lines for m in _turns(json.loads(each)))
    flat = words / STEPS
    unknown = {"host_ms": None, "mfu": "not told", "tokens_per_second": None}
    return {**row, **memory_of(), **unknown, "flat": flat, "flat_tokens_per_second": flat / (row["ms"] / 1e3)}


def _turns(pair: dict) -> list[dict]:
    """What both conversations of a pair hold, the prompt twice."""
    return [*pair["prompt"], *pair["chosen"], *pair["prompt"], *pair["rejected"]]


if __name__ == "__main__":
    model, name, folder, out = sys.argv[1:]
    way = next(way for way in WAYS[model] if way.name == name)
    Path(out).write_text(json.dumps(train(way, Path(folder), model, tiny=False)))
