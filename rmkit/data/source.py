"""Names on the command line -> one `datasets.Dataset` of normalised preferences.

A name is an existing file or folder, a named set, or a hub id, in that order. Every source is read row by row into a
cached Arrow file (`Dataset.from_generator`); one line per source says what was read and dropped.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow
from datasets import Dataset, DatasetDict

from rmkit.config import DEMO
from rmkit.data.benchmarks import BENCHMARKS
from rmkit.data.cache import build
from rmkit.data.counts import BAD, Counts
from rmkit.data.files import SUFFIXES, is_data
from rmkit.data.hub import settle as hub_settled
from rmkit.data.named import NAMED
from rmkit.data.names import kind_of
from rmkit.data.reading import AS_JSON, Source
from rmkit.errors import UserError, plain

Split = Literal["train", "test"]
Say = Callable[[str], None]

MOST_SHOWN = 12
"""Names of fields that are not used, of those that are said."""

# How Hugging Face names the files of a folder: train.jsonl, test-00000-of-00002.parquet
ABOUT = ("dataset_infos.json", "dataset_info.json", "state.json")
_FILE_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)[-_.]")


def load(
    names: tuple[str, ...],
    split: Split,
    say: Say,
    rows: Sequence[dict] | Dataset | None = None,
    columns: tuple[str, ...] = (),
    *,
    bad_rows: str = "stop",
    judged: bool = False,
    counts: Counts | None = None,
) -> Dataset:
    """The preferences of all names in their order, with the columns of `cache.features`.

    `rows`, from a Python program, are read instead of the names; `columns` are those of --data.columns. Says one line
    per source: form, rows, preferences, how many were dropped, by reason, and which fields are not used; all of it is
    added to `counts`. With `bad_rows` "drop", rows that cannot be read are listed and left out; `judged` keeps
    identical sides and empty answers. The column `source` is "file:line", "file:index" (JSON array) or "set:row".

    Raises:
        ValueError: a name that is not known, a source that cannot be read, a bad row (the message gives file, line and
            field), or no preference left.
    """
    if rows is None:
        sources = (source for name in names for source in sources_of(name, split, say))
    else:
        sources = [(Source(shown=f"{split} rows"), _in_memory(rows, split))]
    parts, lines, renamed = [], [], False
    for source, opened in sources:
        part, report = build(replace(source, columns=columns, bad_rows=bad_rows, judged=judged), opened)
        renamed |= bool(report["columns"])
        lines.append(tell(source.shown, len(part), report, say))
        if counts is not None:
            counts.add(report, len(part))
        if len(part):
            parts.append(part)
    if columns and not renamed:
        raise UserError("data.columns", " ".join(columns), "no row has such a field")
    if not parts:
        why = ". ".join(lines) or "no source was given"
        if any("other split" in line for line in lines):
            why += f". Rows whose field 'split' names another split than {split} are not read"
        raise UserError(f"data.{split}", None, f"no preference is left ({why})")
    return datasets.concatenate_datasets(parts)


def _in_memory(rows: Sequence[dict] | Dataset, split: Split) -> Dataset:
    if isinstance(rows, Dataset):
        return rows
    rows, problem = list(rows), None
    try:
        if all(row.keys() == rows[0].keys() for row in rows):  # a table would have the fields of the first row alone
            return Dataset.from_list(rows)
    except (pyarrow.ArrowException, TypeError, AttributeError) as error:
        problem = error
    try:  # or a field has another type in each row: arguments of tools, lists of parts
        return Dataset.from_dict({AS_JSON: [json.dumps(row) for row in rows]})
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{split} rows: they are no table of preferences ({_words(problem or error)})") from None


def tell(shown: str, preferences: int, report: dict[str, Any], say: Say) -> str:
    """Say what was read of a source, and its first bad rows; the line on it."""
    line = _line(shown, preferences, report)
    say(line)
    tell_bad(shown, report["bad"], report["dropped"].get(BAD, 0), say)
    return line


def tell_bad(shown: str, listed: list[str], count: int, say: Say) -> None:
    """Say which rows were left out because they cannot be read: those `listed`, and how many more."""
    for told in listed:
        say(f"dropped {told}")
    if (more := count - len(listed)) > 0:
        say(f"dropped {more} more bad rows of {shown}")


def _line(shown: str, preferences: int, report: dict[str, Any]) -> str:
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(report["dropped"].items()))
    form = report["form"] or "no row of this split"
    read = f"{shown}: {form}; {report['rows']:,} rows, {preferences:,} preferences"
    read = f"{read}; dropped: {dropped}" if dropped else read
    read += f"; read as {', '.join(report['columns'])}" if report["columns"] else ""
    return read + literal_turns(report["speakers"]) + not_used(report["unused"])


def literal_turns(prompts: int) -> str:
    """What is said of prompts in which speakers take turns that are not read as such."""
    told = 'prompts hold "Human:" or "<extra_id_1>" turns and are read as one user\'s text'
    return f"; {prompts:,} {told}" if prompts else ""


def not_used(fields: list[str], how: str = "not used") -> str:
    """The fields of a file that are not read, by name: one of them may hold what was meant to be scored."""
    shown = [plain(field[:50]) for field in fields[:MOST_SHOWN]]
    more = f" and {len(fields) - MOST_SHOWN} more" if len(fields) > MOST_SHOWN else ""
    return f"; {how}: {', '.join(shown)}{more}" if fields else ""


def overlap(train: Dataset, test: Dataset) -> int:
    """How many test preferences are also in train (prompt, chosen and rejected equal); keeps hashes of test only."""
    in_test = Counter(_hashes(test))
    shared = {digest for digest in _hashes(train) if digest in in_test}
    return sum(in_test[digest] for digest in shared)


def digests(preferences: Dataset) -> list[str]:
    """A digest of the texts of each preference, the same wherever the pair stands."""
    return [digest.hex() for digest in _hashes(preferences)]


def _hashes(preferences: Dataset) -> Iterator[bytes]:
    columns = preferences.select_columns(["prompt", "chosen", "rejected", "more"]).with_format("arrow")
    for batch in columns.iter(1000):
        for row in batch.to_pylist():
            yield hashlib.blake2b(json.dumps(row).encode(), digest_size=16).digest()


def sources_of(given: str, split: Split, say: Say) -> Iterator[tuple[Source, Dataset | None]]:
    """The sources that a name stands for, each with its rows if `datasets` has opened them, else None."""
    kind, (base, _, asked) = kind_of(given, f"data.{split}"), given.partition(":")
    if kind == "path":
        yield from _local(Path(given), split, say)
    elif kind == "benchmark":
        yield from _benchmark(*given.partition("=")[::2], split)
    elif base == DEMO:
        yield Source(shown=given, named=DEMO, split=asked or split), None
    elif kind == "named":
        known = NAMED[base]
        hub_split = known.splits.get(asked or split, asked)
        rows = _hub(given, known.hub, hub_split, known.data_dir, known.similar)
        yield Source(shown=given, named=base, split=hub_split), rows
    else:
        similar = "a JSONL file with the fields prompt, chosen, rejected"
        yield Source(shown=given), _hub(given, base, asked or split, None, similar)


def _benchmark(name: str, where: str, split: Split) -> Iterator[tuple[Source, Dataset | None]]:
    """The files of a benchmark below the path `where`, or, without one, its sets on the hub."""
    known = BENCHMARKS[name]
    if where:
        if not (files := known.found(Path(where))):
            raise UserError(f"data.{split}", f"{name}={where}", f"it holds none of {', '.join(known.files)}")
        for file in files:
            for source, rows in _local(file, split, lambda text: None):
                yield replace(source, shown=f"{name}={source.shown}", own_split="", benchmark=name), rows
        return
    for hub, part in known.hub:
        similar = f"{name}=PATH, with the path of a clone"
        yield Source(shown=f"{name}:{hub}:{part}", benchmark=name, split=part), _hub(name, hub, part, None, similar)


def _local(path: Path, split: Split, say: Say) -> Iterator[tuple[Source, Dataset | None]]:
    shown = plain(str(path))
    if not path.is_dir():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"{shown}: unknown kind of file; need one of {', '.join(SUFFIXES)}")
        stat = path.stat()
        resolved = {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        yield Source(shown=shown, own_split=split, **resolved), None
    elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        yield Source(shown=shown, own_split=split), _saved(path, split)
    else:
        for file in _folder(path, split, say):
            yield from _local(file, split, say)


def _folder(path: Path, split: Split, say: Say) -> list[Path]:
    """The data files below the folder in sorted order, without those named for another split: neither train.jsonl nor
    train/0.parquet is read for test. Hidden folders are not read, nor what the hub keeps about a set."""
    found = ((file.relative_to(path), file) for file in path.rglob("*"))
    inside = {file: name for name, file in found if not any(part.startswith(".") for part in name.parts)}
    files = sorted(file for file in inside if is_data(file) and file.name not in ABOUT)
    if not files:
        raise ValueError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file, and is no save_to_disk folder")
    said = {file: match[1] for file in files if (match := _FILE_SPLIT.match(file.name))}
    for file in files:
        for folder in inside[file].parts[:-1]:
            if _FILE_SPLIT.fullmatch(f"{folder}_"):
                said[file] = folder
    others = [str(inside[file]) for file in files if said.get(file, split) != split]
    if len(others) == len(files):
        raise ValueError(f"{path}: all files are named for another split ({', '.join(others)}); name the file itself")
    if others:
        say(f"{path}: {', '.join(others)} not read: named for another split than {split}")
    return [file for file in files if str(inside[file]) not in others]


def _saved(path: Path, split: Split) -> Dataset:
    try:
        saved = datasets.load_from_disk(str(path))
        for part in saved.values() if isinstance(saved, DatasetDict) else [saved]:
            part.data.table.validate(full=True)  # offsets that lie outside the file end the process
    except Exception as error:  # whatever a library says of files that do not hold what they declare
        raise ValueError(f"{path}: an empty or unreadable save_to_disk folder ({_words(error)})") from None
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"{path}: found no split {split!r}; there are {', '.join(saved)}")
        return saved[split]
    return saved


def _hub(given: str, hub: str, split: str, data_dir: str | None, similar: str) -> Dataset:
    hub_settled()
    try:
        return datasets.load_dataset(hub, data_dir=data_dir, split=split)
    except ConnectionError as error:
        raise ValueError(
            f"{given}: no such path here, and the hub's set {hub} could not be reached ({_words(error)}); without a "
            f"network, give the path of a local file instead: {similar}"
        ) from None
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError) as error:
        # `datasets` itself lists the splits there are, or says that the set is absent or gated.
        raise ValueError(f"{given}: split {split!r} of {hub} could not be loaded: {_words(error)}") from None


def _words(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
