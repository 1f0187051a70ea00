"""An index of the samples of a file: one pass checks every row and stores its offset, then samples are read by index.

The index is a memory-mapped file of 37 bytes a sample; the texts are never held in memory as a whole.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rmkit.data.cache import empty_report
from rmkit.data.columns import Renames, of_file
from rmkit.data.counts import BAD
from rmkit.data.json_rows import decoded, parsed, rows, unit
from rmkit.data.reading import MOST_NAMES, bad_row, some
from rmkit.data.shapes.plain import holds_turns
from rmkit.data.source import literal_turns, not_used, tell_bad
from rmkit.errors import UserError
from rmkit.labelling.samples import Sample, samples
from rmkit.storage.atomic import written_file

ENTRY = np.dtype(
    [
        ("offset", "<i8"),  # bytes of the file before the row
        ("group", "<i8"),  # equal where the prompt is the same
        ("text", "<i8"),  # equal where prompt and response are the same
        ("length", "<u4"),  # bytes of the row
        ("row", "<u4"),  # line or index, for messages
        ("part", "<u4"),  # which sample of the row
        ("of_pair", "?"),  # a side of a preference
    ]
)
BATCH = 1 << 16
"""Entries of the index that are written at once."""


def build_index(
    path: Path,
    shown: str,
    folder: Path,
    columns: tuple[str, ...] = (),
    bad_rows: str = "stop",
    report: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `folder`/index.npy for the samples of `path`; returns the counts of "rows", "samples", "duplicates"
    and "speakers" (rows whose prompt holds turns as one user's text), and the names of fields that are not scored: of
    those that scalar feedback keeps ("kept"), and of the others ("unused"). `columns` gives fields other names.

    A response to one prompt that occurs in several preferences is one sample; its repetitions are left out and counted.
    Raises ValueError on the first bad row, with its line or index, the field and what was found. With `bad_rows` "drop"
    such rows are left out: "bad" counts them, those of the `report` of `input.plain_file` too, and "listed" names the
    first.
    """
    counts = {"rows": 0, "samples": 0, "duplicates": 0, "speakers": 0, "kept": set(), "unused": set()}
    report = empty_report() if report is None else report
    with (folder / "index.raw").open("wb") as file:
        for batch in _entries(path, shown, counts, columns, bad_rows, report):
            file.write(batch.tobytes())
    renames = counts.pop("renames")
    counts |= {"bad": report["dropped"][BAD], "listed": report["bad"]}
    counts |= {name: some(counts[name]) for name in ("kept", "unused")}
    if columns and not renames:
        raise UserError("data.columns", " ".join(columns), "no row has such a field")
    if not (folder / "index.raw").stat().st_size:
        why = f" ({counts['bad']:,} rows cannot be read; the first is {counts['listed'][0]})" if counts["bad"] else ""
        raise ValueError(f"{shown}: no completion is left{why}")
    raw = np.memmap(folder / "index.raw", ENTRY, "r")
    kept = np.ones(len(raw), bool)
    sides = np.flatnonzero(raw["of_pair"])
    if len(sides):
        first = np.unique(raw["text"][sides], return_index=True)[1]
        kept[sides] = False
        kept[sides[first]] = True
    counts["samples"], counts["duplicates"] = int(kept.sum()), int(len(raw) - kept.sum())
    whole = np.lib.format.open_memmap(folder / "index.npy", "w+", ENTRY, (counts["samples"],))
    filled = 0
    for start in range(0, len(raw), BATCH):
        part = raw[start : start + BATCH][kept[start : start + BATCH]]
        whole[filled : filled + len(part)] = part
        filled += len(part)
    whole.flush()
    (folder / "index.raw").unlink()
    with written_file(folder / "columns.json") as out:
        out.write(json.dumps(renames) + "\n")
    with written_file(folder / "index.json") as out:  # last: the index is whole where this stands
        out.write(json.dumps(counts) + "\n")
    return counts


def tell(counts: dict[str, Any], shown: str, say: Callable[[str], None], keeps: bool = False) -> None:
    """Say what `build_index` counted, and name the first bad rows. `keeps`: the records keep whatever a sample's row
    holds."""
    twice = f" ({counts['duplicates']:,} more stand in several preferences)" if counts["duplicates"] else ""
    dropped = f"; dropped: {counts['bad']:,} bad rows" if counts["bad"] else ""
    kept, unused = counts["kept"], counts["unused"]
    if not keeps:
        kept, unused = [], sorted({*kept, *unused})
    more = twice + dropped + literal_turns(counts["speakers"]) + not_used(unused)
    more += not_used(kept, "kept in the records, not scored")
    say(f"{shown}: {counts['samples']:,} completions in {counts['rows']:,} rows{more}")
    tell_bad(shown, counts["listed"], counts["bad"], say)


def _entries(
    path: Path, shown: str, counts: dict[str, Any], columns: tuple[str, ...], bad_rows: str, report: dict[str, Any]
) -> Iterator[np.ndarray]:
    held: list[tuple] = []
    renames: Renames | None = None
    with path.open("rb") as file:
        called = unit(file)
        for row in rows(file, shown, skip=bad_rows == "drop"):
            if isinstance(row.value, ValueError):
                bad_row(bad_rows, report, str(row.value))
                continue
            try:
                renames = of_file(columns, row.value) if renames is None else renames
                of_row = samples(row.value, renames)
            except ValueError as error:
                bad_row(bad_rows, report, f"{shown}, {called} {row.number}: {error}")
                continue
            counts["rows"] += 1
            counts["speakers"] += any(holds_turns(sample.prompt) for sample in of_row[:1])
            for sample in of_row[:1]:  # what is not read of a row is the same for all
                kept = sample.unread & sample.record.keys()
                for name, fields in (("kept", kept), ("unused", sample.unread - kept)):
                    if len(counts[name]) < MOST_NAMES:
                        counts[name] |= fields
            for part, sample in enumerate(of_row):
                held.append((row.offset, sample.group, sample.text, row.length, row.number, part, sample.of_pair))
            if len(held) >= BATCH:
                yield np.array(held, ENTRY)
                held = []
    counts["renames"] = renames
    yield np.array(held, ENTRY)


class SampleFile:
    """The samples of an indexed file, in its order: file[i] reads sample i from the disk.

    Raises ValueError where the file has changed since it was indexed: a score would go to another sample.
    """

    def __init__(self, path: Path, shown: str, folder: Path) -> None:
        """Open `path` with the index in `folder` that `build_index` wrote."""
        self._file, self._shown = path.open("rb"), shown
        self._unit = unit(self._file)
        self.index = np.load(folder / "index.npy", mmap_mode="r")
        self._renames = tuple(map(tuple, json.loads((folder / "columns.json").read_text())))
        self._held: tuple[int, list[Sample]] = (-1, [])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Sample:
        entry = self.index[i]
        offset = int(entry["offset"])
        if self._held[0] != offset:
            self._file.seek(offset)
            raw = self._file.read(int(entry["length"]))
            try:
                self._held = offset, samples(parsed(decoded(raw, ""), ""), self._renames)
            except ValueError:
                self._held = offset, []
        part = int(entry["part"])
        if part >= len(self._held[1]) or self._held[1][part].text != entry["text"]:
            raise ValueError(f"{self.where(i)}: it has changed since the file was read first; label it anew")
        return self._held[1][part]

    def where(self, i: int) -> str:
        """ "file, line 3" or "file, index 2", as the other messages say it."""
        return f"{self._shown}, {self._unit} {self.index[i]['row']}"


def by_prompt(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples grouped by prompt, the prompts in order of their first sample.

    `group` int64 [N] is equal where the prompt is. Returns order int64 [N] and starts int64 [G + 1]: the samples of
    prompt g are order[starts[g] : starts[g + 1]], in the file's order.
    """
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    first = np.empty_like(order)
    first[order] = np.repeat(order[starts], np.diff(starts, append=len(group)))
    order = np.argsort(first, kind="stable")
    ordered = first[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    return order, starts
