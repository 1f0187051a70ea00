"""Spoiled files of every shape that other trainers and sets have, and spoiled clones of the benchmarks.

hostile_files draws shapes by chance, among other files; here case n has the shape n modulo their number, so that each
has as many cases, and its rows carry what changes a conversation too: tools, template arguments, earlier turns, calls,
reasoning, parts.
"""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaigns.hostile_files import begun, fresh, made, through
from campaigns.mutations import HOSTILE, NEIGHBOURS, SHAPES, as_json, rows_of, spoiled_bytes, spoiled_json, turn
from support.true_rows import TOOL, benchmark_rows, call

Row = dict[str, Any]

CLONES = tuple(benchmark_rows())
CASES = (*SHAPES, *NEIGHBOURS, *CLONES, *CLONES)
"""What the cases take turns with: clones twice, as their rows are read as files alone too."""

AROUND: dict[str, tuple[Any, ...]] = {
    "tools": ([TOOL], '[{"name": "f", "parameters": {}}]', [], "[", [{"type": "function"}], [TOOL] * 40),
    "chat_template_kwargs": (
        *({"enable_thinking": False}, {"tools": 1}, {"conversation": []}, {"a b": 1}, {"messages": [[]]}),
        *({"add_generation_prompt": True}, {"documents": [{}]}, {"strftime_now": 1}, {"bos_token": "\ud800"}),
    ),
    "history": ([["q", "a"]], [["q"]], [turn("user", "q"), turn("assistant", "a")], [[None, "a"]], "q", [[["q", "a"]]]),
    "system": ("s", "", ["s"], {"role": "system"}),
    "system_prompt": ("s", "other", 1),
    "context": ("c", [turn("user", "q")]),
    "input": ("i", {"messages": [turn("user", "q")]}),
    "images": ([], ["x.png"], [None]),
    "ratings": ({"helpful": 1}, [{"helpful": 1}, {"helpful": 2}], {"helpful": "1"}, {"chosen": {"a": 1}}),
    "target": (0.5, 2, "x"),
    "margin": (1, float("nan")),
    "split": ("train", "test", 3),
    "subset": ("s", 1, ["s"]),
    "id": (1, "i", 1.5, [1]),
}
"""Fields that may stand beside those of any shape: as they are meant, and as they are not."""

INSIDE: dict[str, tuple[Any, ...]] = {
    "tool_calls": (call("Ulm")["tool_calls"], [], [{}], [{"function": {"arguments": "{"}}], "f()", [call("Ulm")]),
    "tool_call_id": ("t1", 1),
    "name": ("weather", ["x"]),
    "reasoning_content": ("because", "", 3, ["because"]),
    "content": (
        *([{"type": "text", "text": "t"}], [{"type": "image"}], [{"type": "text"}], [], None, [{"type": "text"}, "x"]),
        [{"type": "text", "value": "t"}, {"type": "tool_call", "value": '{"name": "f", "arguments": {}}'}],
    ),
    "role": ("tool", "tool_call", "ipython", "developer", "function", "observation"),
    "from": ("human", "gpt", "function_call", "bing"),
    "value": ("v", None, '{"name": "f", "arguments": {}}'),
}
"""Fields of a message."""


def prepare(scratch: Path) -> Callable[[random.Random, int], str]:
    """One case: a file of a shape, or a clone of a benchmark, is made, spoiled, and given to a program."""
    accelerator = begun(scratch)

    def run(rng: random.Random, n: int) -> str:
        folder = fresh(scratch, n)
        which = CASES[n % len(CASES)]
        if which in CLONES:
            given = f"{which}={clone(rng, n, which, folder)}"
            return through(rng.choice(("train", "evaluate")), rng, given, f"case{n}", accelerator)
        given = made(rng, n, [extended(rng, row) for row in rows_of(which)], folder)
        program = rng.choices(("train", "label", "evaluate"), (6, 2, 2))[0]
        return through(program, rng, given, f"case{n}" if given != "-" else given, accelerator)

    return run


def extended(rng: random.Random, row: Row) -> Row:
    """The row with fields around its conversation and inside its messages; half of the rows stay as they are."""
    if rng.random() < 0.5:
        return row
    row = copy.deepcopy(row)
    for _ in range(rng.choice((0, 1, 1, 2))):
        field = rng.choice(list(AROUND))
        row[field] = copy.deepcopy(rng.choice(AROUND[field]))
    held = list(turns(row))
    for _ in range(rng.choice((0, 1, 1, 3)) if held else 0):
        field = rng.choice(list(INSIDE))
        rng.choice(held)[field] = copy.deepcopy(rng.choice(INSIDE[field]))
    for field in ("completions", "generations", "answers", "responses", "chosen", "rejected"):
        if isinstance(given := row.get(field), list) and given and rng.random() < 0.2:
            change = rng.choice(
                (given[:1], [*given, given[0]], given * 60, given[::-1], [*given, rng.choice(HOSTILE)], [])
            )
            row[field] = copy.deepcopy(change)
    return row


def turns(value: Any) -> Any:
    """Every message within a row."""
    if isinstance(value, dict) and ("role" in value or "from" in value):
        yield value
    if isinstance(value, dict | list):
        for part in list(value.values() if isinstance(value, dict) else value):
            yield from turns(part)


def clone(rng: random.Random, n: int, which: str, folder: Path) -> str:
    """A clone of a benchmark, with spoiled rows, bytes or places; its path, or that of one of its files."""
    root = folder / f"case{n}"
    paths = []
    for place, row in benchmark_rows()[which].items():
        rows: list[Any] = [copy.deepcopy(row) for _ in range(rng.choice((1, 2, 5)))]
        if rng.random() < 0.7:
            rows[-1] = spoiled_json(rng, rows[-1])
        raw = as_json(rows) if place.endswith(".json") else b"".join(as_json(row) + b"\n" for row in rows)
        path = root / place
        if rng.random() < 0.1:  # where nothing is looked for, or more than should be there
            path = root / rng.choice(("", "data", "extra")) / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(spoiled_bytes(rng, raw) if rng.random() < 0.3 else raw)
        paths.append(path)
    if rng.random() < 0.1:
        rng.choice(paths).unlink()
    return str((rng.choice(paths) if rng.random() < 0.4 else root).relative_to(folder))
