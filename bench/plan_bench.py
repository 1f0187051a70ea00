"""The planner on ten million pairs: how long it takes, what it holds, how evenly it loads the ranks.

Groups of pairs on one prompt are drawn with replacement from real sets, a set first (each as likely), then a group of
it with all its lengths and shared prefixes. By default from the table beside this file, which holds the lengths of
some groups of each set, and no text; with --data from every group of the sets in a folder of JSONL files.

    python bench/plan_bench.py                                        # 10 million pairs, 16 cells
    python bench/plan_bench.py --pairs 100000 --steps 20 --full       # a quick look
    python bench/plan_bench.py --data FOLDER --write-table            # make the table anew

A fresh process for each batch size orders one epoch and splits it: --steps steps, evenly spaced, for each number of
ranks, and every step for the cells named by --full. Seconds per million pairs are those of ordering plus those of
splitting a step times the steps of the epoch; they are seconds of the processor, because planning is one thread. Load
is tokens plus attention, and balance the mean load of the ranks over that of the heaviest, worst: of all steps. `Gain`
holds against the heaviest the mean of an ideal split, in which no group is cut and no prompt computed twice, and lets
the ranks wait for one another at each microbatch. Where a rank has few pairs its `limit` is the heaviest pair, which
nobody can share out: ideal mean over the larger of the two. Writes bench/results/plan_bench.json.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rmkit.batch.lengths import Lengths, count, joined, measure
from rmkit.batch.planner import epoch_order, pair_cost_of, split
from rmkit.config import BatchConfig, TrainConfig
from rmkit.runtime import environment

TABLE = Path(__file__).parent / "lengths.json"
KEPT = 64
"""Groups of each set in the table: evenly spaced among those of the set in order of their tokens, the last included."""
VOCABULARY = 32_000
ATTENTION = pair_cost_of(layers=32, heads=32, head_dim=128, parameters=6_979_321_856)
"""Llama-3-8B"""
BLOCK = 1 << 16
"""Groups that are drawn at once."""


def groups_of(folder: Path) -> dict[str, list[list]]:
    """The groups of each set, FOLDER/NAME/*.jsonl: places, lengths and prefixes of each, as `Lengths` has them.

    A byte-level BPE of 32 thousand tokens, trained on the texts, and the turns of HH's template.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    rows = {
        path.name: [json.loads(line) for file in sorted(path.glob("*.jsonl")) for line in file.open(encoding="utf-8")]
        for path in sorted(folder.iterdir())
        if path.is_dir()
    }
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )

    def text(messages: list[dict]) -> str:
        return "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in messages)

    sides = {
        name: [[text(row["prompt"] + row[side]) for row in of_set] for side in ("chosen", "rejected")]
        for name, of_set in rows.items()
    }
    bpe.train_from_iterator((t for columns in sides.values() for column in columns for t in column), trainer)
    groups = {}
    for name, columns in sides.items():
        ids = [[np.array([*e.ids, 0], np.int32) for e in bpe.encode_batch(column)] for column in columns]
        group = np.unique([text(row["prompt"]) for row in rows[name]], return_inverse=True)[1]
        lengths = measure(ids, np.array([[len(s) for s in column] for column in ids]).T, group)
        groups[name] = []
        for g in range(group.max() + 1):
            place = lengths.place[group == g]
            start, end = int(place.min()), int(place.max()) + 1
            groups[name].append(
                [(place - start).tolist(), lengths.length[start:end].tolist(), lengths.prefix[start:end].tolist()]
            )
    return groups


def write_table(groups: dict[str, list[list]]) -> None:
    kept = {}
    for name, of_set in groups.items():
        in_order = sorted(of_set, key=lambda group: (sum(group[1]) - sum(group[2]), group))
        kept[name] = [
            in_order[i] for i in np.linspace(0, len(in_order) - 1, min(KEPT, len(in_order))).round().astype(int)
        ]
    TABLE.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in kept.items()) + "\n}\n")


def drawn(groups: dict[str, list[list]], pairs: int) -> Lengths:
    """At least `pairs` pairs in whole groups."""
    rng = np.random.default_rng(0)
    each = [(name, group) for name, of_set in groups.items() for group in of_set]
    sizes = np.array([len(group[0]) for _, group in each])
    of_set = {name: sum(len(group[0]) for group in groups[name]) for name in groups}
    weight = np.array([1 / of_set[name] for name, _ in each])
    starts = np.cumsum(sizes) - sizes
    place = np.array([p for _, group in each for p in group[0]], np.int32)
    length, prefix = (np.array([n for _, group in each for n in group[k]], np.int32) for k in (1, 2))
    room = pairs + int(sizes.max())
    filled = Lengths(
        group=np.empty(room, np.int64),
        place=np.empty((room, 2), np.int32),
        length=np.empty(2 * room, np.int32),
        prefix=np.empty(2 * room, np.int32),
    )
    made = number = 0
    while made < pairs:
        pick = rng.choice(len(each), BLOCK, p=weight / weight.sum())
        pick = pick[: 1 + np.searchsorted(made + np.cumsum(sizes[pick]), pairs)]
        of = sizes[pick]
        first = np.repeat(np.cumsum(of) - of, of)  # of the block's pairs, that of each one's group
        at = np.repeat(starts[pick], of) + np.arange(of.sum()) - first
        both = (2 * at[:, None] + np.arange(2)).ravel()
        end = made + len(at)
        filled.group[made:end] = np.repeat(np.arange(number, number + len(pick)), of)
        filled.place[made:end] = place[at] + 2 * (made + first)[:, None]
        filled.length[2 * made : 2 * end] = length[both]
        filled.prefix[2 * made : 2 * end] = prefix[both]
        made, number = end, number + len(pick)
    return Lengths(
        group=filled.group[:made],
        place=filled.place[:made],
        length=filled.length[: 2 * made],
        prefix=filled.prefix[: 2 * made],
    )


def balance(lengths: Lengths, indices: np.ndarray, plan: list[list[np.ndarray]], max_tokens: int) -> dict[str, float]:
    """Balance, gain and limit of a plan; stops where a microbatch is over the budget."""
    ranks, turns = len(plan), len(plan[0])
    parts = [part for of_rank in plan for part in of_rank]
    items, slot = np.concatenate(parts), np.repeat(np.arange(ranks * turns), [len(part) for part in parts])
    assert np.array_equal(np.sort(items), np.sort(indices))
    units, unit = np.unique(np.stack([slot, lengths.group[items]]), axis=1, return_inverse=True)
    batches = joined(count(lengths, items, unit, units.shape[1], "trie"), units[0], ranks * turns, "trie")
    assert batches.tokens.max() <= max_tokens
    group = np.unique(lengths.group[indices], return_inverse=True)[1]
    ideal = count(lengths, indices, group, group.max() + 1, "trie").load(ATTENTION).sum() / ranks
    alone = count(lengths, indices, np.arange(len(indices)), len(indices), "trie").load(ATTENTION).max()
    load = batches.load(ATTENTION).reshape(ranks, turns)
    return {
        "balance": load.sum() / ranks / load.sum(1).max(),
        "gain": ideal / load.max(0).sum(),
        "limit": ideal / max(ideal, alone),
    }


def plan_epoch(groups: dict[str, list[list]], settings: dict[str, Any], pairs: int) -> list[dict[str, Any]]:
    """The rows of one batch size; runs in a process of its own."""
    lengths = drawn(groups, settings["pairs"])
    total, held = len(lengths.group), _peak()
    start = time.process_time()
    order = epoch_order(lengths.group, 0, TrainConfig(batch=BatchConfig(pairs=pairs)))
    ordering = time.process_time() - start
    rows = []
    for ranks in settings["ranks"]:
        steps = -(-total // pairs)
        full = f"{ranks}x{pairs}" in settings["full"]
        chosen = np.arange(steps) if full else np.linspace(0, steps - 1, min(settings["steps"], steps)).astype(int)
        seconds, balances, turns = 0.0, [], []
        for step in np.unique(chosen).tolist():
            indices = order[step * pairs : (step + 1) * pairs]
            start = time.process_time()
            plan = split(
                lengths, indices, layout="trie", pair_cost=ATTENTION, ranks=ranks, max_tokens=settings["max_tokens"]
            )
            seconds += time.process_time() - start
            if len(indices) == pairs:  # the rest at the end of an epoch is no full batch
                balances.append(balance(lengths, indices, plan, settings["max_tokens"]))
                turns.append(len(plan[0]))
        measured = {key: np.array([one[key] for one in balances]) for key in balances[0]}
        rows.append(
            {
                "ranks": ranks,
                "batch": pairs,
                "pairs_a_rank": pairs / ranks,
                "steps_planned": len(np.unique(chosen)),
                "steps_of_epoch": steps,
                "microbatches": float(np.mean(turns)),
                "seconds_per_million": (ordering + seconds / len(np.unique(chosen)) * steps) / total * 1e6,
                **{key: {"mean": float(v.mean()), "worst": float(v.min())} for key, v in measured.items()},
            }
        )
    memory = {"megabytes_of_data": held / 1e6, "megabytes_at_peak": _peak() / 1e6}
    return [{**row, "ordering_seconds_per_million": ordering / total * 1e6, **memory} for row in rows]


def _peak() -> int:
    """Bytes that this process ever held, PyTorch's own code among them."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def show(rows: list[dict[str, Any]], console: Console) -> None:
    columns = (
        "ranks",
        "batch",
        "pairs a rank",
        "microbatches",
        "s per million",
        "peak MB",
        "balance (worst)",
        "gain (worst)",
        "limit",
    )
    table = Table(*columns, "steps planned", title="planning an epoch")
    for row in rows:
        spread = [f"{row[key]['mean']:.3f} ({row[key]['worst']:.3f})" for key in ("balance", "gain")]
        table.add_row(
            str(row["ranks"]),
            str(row["batch"]),
            f"{row['pairs_a_rank']:g}",
            f"{row['microbatches']:.1f}",
            f"{row['seconds_per_million']:.2f}",
            f"{row['megabytes_at_peak']:.0f}",
            *spread,
            f"{row['limit']['mean']:.3f}",
            f"{row['steps_planned']} of {row['steps_of_epoch']}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--batch", type=int, nargs="+", default=[512, 2048, 8192, 16384], help="pairs a step")
    parser.add_argument("--max-tokens", type=int, default=16384, help="tokens of a microbatch")
    parser.add_argument("--steps", type=int, default=200, help="steps that are planned in each cell")
    parser.add_argument("--full", nargs="*", default=["64x2048"], help="cells, RANKSxBATCH, in which every step is")
    parser.add_argument("--data", type=Path, help="folder of sets, NAME/*.jsonl, in place of the table")
    parser.add_argument("--write-table", action="store_true", help="write the table from --data, and nothing else")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plan_bench.json")
    arguments = parser.parse_args()
    if arguments.write_table and arguments.data is None:
        parser.error("--write-table: name the sets with --data FOLDER")
    groups = json.loads(TABLE.read_text()) if arguments.data is None else groups_of(arguments.data)
    if arguments.write_table:
        write_table(groups)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # the table in a log
    settings = {key: getattr(arguments, key) for key in ("pairs", "ranks", "batch", "max_tokens", "steps", "full")}
    settings |= {"lengths": "table" if arguments.data is None else "sets", "attention": ATTENTION}
    rows = []
    for pairs in arguments.batch:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            rows += fresh.submit(plan_epoch, groups, settings, pairs).result()
        console.print(f"batches of {pairs}: done", highlight=False)
    show(rows, console)
    result = {
        "bench": "plan_bench",
        "settings": settings,
        "environment": environment(torch.device("cpu"), 1),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
