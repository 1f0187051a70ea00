"""Spoiled files through the readers of train, label and evaluate."""

import gzip
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import datasets
import pyarrow
import pyarrow.parquet
from accelerate import Accelerator
from datasets import Dataset

from campaigns import fence
from campaigns.mutations import PAIRS, SAMPLES, SHAPES, as_json, name, rows_of, spoiled_bytes, spoiled_json
from rmkit import evaluate, label, train
from rmkit.config import DataConfig, TrainConfig
from rmkit.data import reading, source
from rmkit.evaluation.config import EvaluateConfig
from rmkit.labelling.config import LabelConfig
from rmkit.training.inputs import Memory

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
MIB = 1 << 20
COLUMNS = (
    ("prompt=instruction",),
    ("chosen=rejected", "rejected=chosen"),
    ("prompt=",),
    ("id=chosen", "margin=prompt"),
)
NAMED_ROWS: dict[str, dict[str, Any]] = {
    "hh": rows_of("hh")[0],
    "shp": {
        **{"post_id": "p", "c_root_id_A": "a", "c_root_id_B": "b", "history": "q", "human_ref_A": "x"},
        **{"human_ref_B": "y", "labels": 1, "score_A": 9, "score_B": 2, "domain": "d"},
    },
    "oasst": {"message_id": "m", "parent_id": None, "text": "t", "role": "prompter", "rank": 0, "lang": "en"},
    "ultrabin": {**{k: v for k, v in rows_of("messages")[0].items() if k != "id"}, "prompt": "q", "prompt_id": "i"},
    "safe_rlhf": {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1},
}


def begun(scratch: Path) -> Accelerator:
    """Raise the fence around `scratch`, with the caches within it."""
    fence.raise_fence(scratch)
    datasets.config.HF_DATASETS_CACHE = scratch / "cache"
    datasets.disable_progress_bars()
    return Accelerator(cpu=True)


def fresh(scratch: Path, n: int) -> Path:
    """An empty folder for case n, and the process in it; now and then the cache is emptied too."""
    shutil.rmtree(scratch / "case", ignore_errors=True)
    if n % 200 < 2:
        shutil.rmtree(scratch / "cache", ignore_errors=True)
    folder = scratch / "case"
    folder.mkdir()
    os.chdir(folder)
    return folder


def prepare(scratch: Path) -> Callable[[random.Random, int], str]:
    """One case: a file is made from a form, spoiled, and given to a program."""
    accelerator = begun(scratch)

    def run(rng: random.Random, n: int) -> str:
        folder = fresh(scratch, n)
        program = rng.choices(("train", "label", "evaluate"), (9, 9, 2))[0]
        if program != "label" and rng.random() < 0.04:
            return _named(rng, program, accelerator)
        pairs = rng.choice((PAIRS, SHAPES))
        form = rng.choice(pairs if program != "label" or rng.random() < 0.4 else SAMPLES)
        given = made(rng, n, rows_of(form), folder)
        with _changing(rng, folder / given):
            return through(program, rng, given, f"case{n}" if given != "-" else given, accelerator)

    return run


def through(program: str, rng: random.Random, given: str, needle: str, accelerator: Accelerator) -> str:
    """What a program makes of a file, up to where the model would be loaded: "train refused"."""
    if program == "label":
        status, words = _label(rng, given)
        needle = "standardinput" if given == "-" else needle
    elif program == "train":
        columns = rng.choice(COLUMNS) if rng.random() < 0.1 else ()
        data = DataConfig(train=(given,), overlong=rng.choice(("drop", "keep-end", "error")), columns=columns)
        config = TrainConfig(data=data)
        with mock.patch("rmkit.training.run.build_model", side_effect=fence.Reached):
            work = fence.run(lambda console: _prepared(config.resolved(), accelerator, console))
            status, words = fence.told(work)
    else:
        config = EvaluateConfig(model="m", data=(given,), out="out")
        with _scored(evaluate):
            status, words = fence.told(fence.run(lambda console: evaluate.evaluate(config.resolved(), console)))
    return f"{program} {fence.outcome(status, words, needle)}"


def _scored(program: Any) -> Any:
    return mock.patch.object(program, "load_scorer", return_value=fence.Scorer())


def _prepared(config: TrainConfig, accelerator: Accelerator, console: Any) -> int:
    train.start(config, accelerator, lambda text: console.print(text, markup=False, highlight=False), Memory())
    return 0


def _label(rng: random.Random, given: str) -> tuple[int, str]:
    chosen = {"feedback": rng.choice(("scalar", "binary", "pairwise", "best")), "format": rng.choice(("halos", "trl"))}
    config = LabelConfig(samples=given, feedback_file=rng.choice(("f.json", "f.jsonl")), model="m", **chosen)
    raw = spoiled_bytes(rng, b"".join(as_json(row) + b"\n" for row in rows_of("sample")))
    stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(rng.choice((raw, gzip.compress(raw))))))
    with (
        _scored(label),
        mock.patch.object(sys, "stdin", stdin),
    ):
        found = fence.told(fence.run(lambda console: label.label(config.resolved(), console)))
    if found[0] == 0:
        written = Path(config.feedback_file).read_text()
        rows = (
            json.loads(written) if config.feedback_file == "f.json" else list(map(json.loads, written.split("\n")[:-1]))
        )
        assert all(isinstance(row, dict) for row in rows)
    return found


def _named(rng: random.Random, program: str, accelerator: Accelerator) -> str:
    """A named set whose schema has changed."""
    which = rng.choice(list(NAMED_ROWS))
    rows = [spoiled_json(rng, NAMED_ROWS[which], deepest=5) for _ in range(rng.choice((1, 3)))]
    try:
        table = Dataset.from_list([row for row in rows if isinstance(row, dict)])
    except Exception:  # rows that no table can hold never come from the hub
        return "no table"
    with mock.patch.object(source, "_hub", return_value=table):
        return through(program, rng, which, which, accelerator)


def made(rng: random.Random, n: int, rows: list[dict[str, Any]], folder: Path) -> str:
    """Make the input of a case from some of these rows in `folder`; what the command line calls it."""
    rows, suffix = rows[: rng.choice((1, 3, 6))], rng.choice(SUFFIXES)
    stem = name(rng, n)
    path = folder / (stem + suffix)
    draw = rng.random()
    if draw < 0.04:
        return special(rng, stem, suffix, folder)
    if draw < 0.08:
        return _saved(rng, rows, stem, folder)
    spoil_rows = rng.random() < 0.6
    if spoil_rows:
        i = rng.randrange(len(rows))
        rows[i] = spoiled_json(rng, rows[i], deepest=150 if suffix == ".parquet" else 900)
    if suffix == ".parquet":
        raw = _parquet(rng, rows, folder)
    elif suffix.startswith(".jsonl"):
        raw = b"".join(as_json(row) + b"\n" for row in rows)
    else:
        raw = as_json(rows)
    if suffix.endswith(".gz") and rng.random() < 0.5:
        raw = gzip.compress(spoiled_bytes(rng, raw) if not spoil_rows else raw, 1)
        spoil_rows = True
    if not spoil_rows or rng.random() < 0.2:
        raw = spoiled_bytes(rng, raw)
    path.write_bytes(raw)
    if rng.random() < 0.05:
        (folder / f"folder case{n}").mkdir()
        path.rename(folder / f"folder case{n}" / path.name)
        return f"folder case{n}"
    return path.name


def _parquet(rng: random.Random, rows: list[Any], folder: Path) -> bytes:
    try:
        table = pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)])
        if rng.random() < 0.2 and table.num_columns:
            at = rng.randrange(table.num_columns)
            other = pyarrow.array([[b"\xff"], [None], [{}]][rng.randrange(3)] * len(table))
            table = table.set_column(at, table.column_names[at], other)
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, compression=rng.choice(("snappy", "none", "zstd")))
        return sink.getvalue().to_pybytes()
    except Exception:  # rows that no table can hold
        return b"PAR1" + as_json(rows) + b"PAR1"


def _saved(rng: random.Random, rows: list[Any], stem: str, folder: Path) -> str:
    """A folder of Dataset.save_to_disk, one file of it spoiled or gone."""
    try:
        table = Dataset.from_list(rows)
    except pyarrow.ArrowException:  # rows that no table can hold
        table = Dataset.from_list(rows_of("texts"))
    table.save_to_disk(str(folder / stem))
    file = rng.choice(sorted((folder / stem).iterdir()))
    if rng.random() < 0.15:
        file.unlink()
    elif file.suffix == ".json" and rng.random() < 0.7:
        file.write_bytes(as_json(spoiled_json(rng, json.loads(file.read_text()))))
    else:
        file.write_bytes(spoiled_bytes(rng, file.read_bytes()))
    return stem


def special(rng: random.Random, stem: str, suffix: str, folder: Path) -> str:
    """Something that is no ordinary file, or unpacks to a gigabyte."""
    path = folder / (stem + suffix)
    kind = rng.choice(("folder", "pipe", "loop", "dangling", "endless", "device", "link", "absent", "bomb", "bomb"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind in ("dangling", "endless", "device", "link"):
        (folder / "real.jsonl").write_bytes(as_json(rows_of("texts")[0]))
        to = {"dangling": "nowhere", "endless": "/dev/zero", "device": "/dev/null", "link": "real.jsonl"}
        path.symlink_to(to[kind])
    elif kind == "bomb":
        path = folder / f"{stem}.jsonl.gz"
        with path.open("wb") as file:
            for part in bomb(rng.choice(BOMBS)):
                file.write(part)
    if kind == "link" and rng.random() < 0.5:
        return "-"
    if kind == "absent" and rng.random() < 0.5:
        return rng.choice(("\x00", "x" * 300 + suffix, "/" * 5000)) + f"case{stem.partition('case')[2]}"
    return path.name


BOMBS = (b"a", b" ", b"\n", b"[", b'{"prompt": "', b'["', b'[{"prompt": "a",', b"[[],", b"\x00")


def bomb(start: bytes, mib: int = 1024) -> Iterator[bytes]:
    """gzip members, some kilobytes each, that unpack to `mib` MiB."""
    yield gzip.compress(start)
    fill = gzip.compress((start[-1:] if start[-1:] not in b'",' else b"a") * MIB, 9)
    for _ in range(mib):
        yield fill


def _changing(rng: random.Random, path: Path) -> Any:
    """Sometimes the file changes once the first row has been read."""
    if rng.random() > 0.03 or not os.path.isfile(path):
        return mock.MagicMock()
    real_rows, real_index = reading.read_rows, label.index

    def change() -> None:
        raw = path.read_bytes()
        path.write_bytes(rng.choice((b"", raw[: len(raw) // 2], spoiled_bytes(rng, raw), raw[::-1])))

    def read_rows(given: str, shown: str, skip: bool = False) -> Iterator[Any]:
        for i, row in enumerate(real_rows(given, shown, skip)):
            yield row
            if i == 0:
                change()

    def index(*given: Any) -> None:
        real_index(*given)
        change()

    patched = mock.patch.multiple(reading, read_rows=read_rows), mock.patch.multiple(label, index=index)
    return _both(*patched)


class _both:
    def __init__(self, *patches: Any) -> None:
        self._patches = patches

    def __enter__(self) -> None:
        for patch in self._patches:
            patch.start()

    def __exit__(self, *_: Any) -> None:
        for patch in self._patches:
            patch.stop()
