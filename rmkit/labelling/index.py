"""Where every sample of a file stands: one pass finds all that is wrong with it, later ones look samples up.

The index lies on the disk, 37 bytes a sample, and is mapped into memory: neither the texts nor anything that grows
with them is ever held as a whole.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rmkit.data.json_rows import decoded, parsed, rows, unit
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
"""Entries that are written at once."""


def build_index(path: Path, shown: str, folder: Path) -> dict[str, int]:
    """Write `folder`/index.npy for the samples of `path`; how many "rows", "samples" and "duplicates" there are.

    A response that stands on one prompt in several preferences is one sample; the others are left out, and counted.
    Raises ValueError on whatever is wrong with the file: line or index, field and find are named.
    """
    counts = {"rows": 0, "samples": 0, "duplicates": 0}
    with (folder / "index.raw").open("wb") as file:
        for batch in _entries(path, shown, counts):
            file.write(batch.tobytes())
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
    with written_file(folder / "index.json") as out:  # last: the index is whole where this stands
        out.write(json.dumps(counts) + "\n")
    return counts


def _entries(path: Path, shown: str, counts: dict[str, int]) -> Iterator[np.ndarray]:
    held: list[tuple] = []
    with path.open("rb") as file:
        called = unit(file)
        for row in rows(file, shown):
            try:
                found = samples(row.value)
            except ValueError as error:
                raise ValueError(f"{shown}, {called} {row.number}: {error}") from None
            counts["rows"] += 1
            for part, sample in enumerate(found):
                held.append((row.offset, sample.group, sample.text, row.length, row.number, part, sample.of_pair))
            if len(held) >= BATCH:
                yield np.array(held, ENTRY)
                held = []
    yield np.array(held, ENTRY)


class SampleFile:
    """The samples of a file in its order: file[i] is read from the disk, where it stands is known.

    Raises ValueError where the file no longer holds the sample that was indexed: its score would be another one's.
    """

    def __init__(self, path: Path, shown: str, folder: Path) -> None:
        """Open `path` with the index in `folder` that `build_index` wrote."""
        self._file, self._shown = path.open("rb"), shown
        self._unit = unit(self._file)
        self.index = np.load(folder / "index.npy", mmap_mode="r")
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
                self._held = offset, samples(parsed(decoded(raw, ""), ""))
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
    """Samples ordered so that those of one prompt stand together, prompts by their first sample.

    Of `group` int64 [N], returns order int64 [N] and starts int64 [G + 1]: the samples of prompt g are
    order[starts[g] : starts[g + 1]], in the file's order.
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
