"""The scores so far of a labelling, in the folder `.NAME.partial/` beside its output, from which --resume goes on.

contract.json holds the flags that the scores depend on, index.npy the place of each sample in the file, input a copy of
what cannot be read twice, and scores-RANK.jsonl one line per finished chunk of samples. A kill leaves at worst a torn
last line, which is ignored; its chunk is scored again. Scores that --overwrite replaces are kept in there until the
output is written.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rmkit.storage import replaced
from rmkit.storage.atomic import written_file


class PartialScores:
    """The folder of scores of one output file, shared by all ranks."""

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f".{output.name}.partial")
        self._failed = self.folder / "failed"

    def open(self, contract: dict[str, Any], *, resume: bool, overwrite: bool, say: Callable[[str], None]) -> None:
        """Make the folder, or go on with the one that is there.

        `contract` maps each flag that the scores depend on to its value. Raises ValueError where one differs from those
        of the scores in the folder, where there are such and neither `resume` nor `overwrite` is given, and where the
        folder cannot be made.
        """
        file = self.folder / "contract.json"
        contract = json.loads(json.dumps(contract))
        for lock in self.folder.glob("lock-*"):
            with self._lock(lock):
                pass
        replaced.mend(self.folder)
        if not any(self.lines()):  # an --overwrite was killed before it scored anything
            replaced.put_back(self.folder, self._held())
        if self.folder.exists() and not (resume or overwrite):
            raise ValueError(
                f"{self.folder} holds scores of an interrupted labelling: give --resume to go on with it, or "
                "--overwrite to start anew"
            )
        if resume and file.is_file():
            kept = json.loads(file.read_text())
            self._failed.unlink(missing_ok=True)
            for flag, value in contract.items():
                if kept.get(flag) != value:
                    raise ValueError(
                        f"{flag} {_word(value)}: it differs from, or has changed since, the labelling that is resumed "
                        f"({_word(kept.get(flag))}); give what was given, or --overwrite to score anew"
                    )
            return
        try:
            if any(self.lines()):
                replaced.keep(self.folder, self._held())
            else:
                self.remove()
                self.folder.mkdir()
            with written_file(file) as out:
                out.write(json.dumps(contract, indent=2) + "\n")
        except OSError as error:
            raise ValueError(f"{self.folder.parent}: cannot be written ({error.strerror})") from None
        if resume:
            say("there is nothing to resume: labelling starts at the first sample")

    def _held(self) -> list[str]:
        """What --overwrite replaces."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return [name for name in names if name != replaced.NAME and not name.startswith((".", "lock-"))]

    @contextlib.contextmanager
    def _lock(self, file: Path) -> Iterator[None]:
        with file.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self.folder}: another labelling is at work there, perhaps what a killed launcher left behind; "
                    "wait for them, or end them"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield

    def locked(self, rank: int) -> contextlib.AbstractContextManager[None]:
        """Within the block no other process can be this rank. ValueError where one is, left by a killed launcher."""
        return self._lock(self.folder / f"lock-{rank}")

    @contextlib.contextmanager
    def removed_if_unused(self, main: bool) -> Iterator[None]:
        """Where the block fails before anything was scored, remove the folder (on the first rank, `main`), or put the
        scores back that --overwrite was to replace."""
        try:
            yield
        except BaseException:
            if main and not any(self.lines()) and not replaced.put_back(self.folder, self._held()):
                self.remove()
            raise

    def lines(self) -> Iterator[dict[str, Any]]:
        """The finished chunks of all ranks: "chunk", "scores" (null where not scored), "skipped" (counts by reason),
        "refused" (the first that the chat template refuses, if any); and what `rmkit.labelling.errors` adds, where the
        model has a posterior."""
        return (line for _, line in self.placed())

    def placed(self) -> Iterator[tuple[tuple[Path, int], dict[str, Any]]]:
        """`lines`, each with its place, for `line_at`."""
        for file in sorted(self.folder.glob("scores-*.jsonl")):
            offset = 0
            with file.open("rb") as opened:
                for raw in opened:
                    if (line := _whole(raw)) is None:
                        break
                    yield (file, offset), line
                    offset += len(raw)

    def line_at(self, place: tuple[Path, int]) -> dict[str, Any]:
        """The line at a place that `placed` gave."""
        file, offset = place
        with file.open("rb") as opened:
            opened.seek(offset)
            return json.loads(opened.readline())

    def done(self) -> set[int]:
        """Numbers of the finished chunks."""
        return {line["chunk"] for line in self.lines()}

    @contextlib.contextmanager
    def writer(self, rank: int) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A function that appends a line to this rank's file; once it returns, the line survives a kill."""
        file = self.folder / f"scores-{rank}.jsonl"
        file.touch()
        size = 0
        with file.open("rb") as opened:
            for raw in opened:
                if _whole(raw) is None:
                    break
                size += len(raw)
        os.truncate(file, size)
        # Unbuffered: a kill tears one line at most.
        with file.open("ab", buffering=0) as out:
            yield lambda line: _write_all(out, json.dumps(line).encode() + b"\n")

    def scores(self, order: np.ndarray, bounds: list[int]) -> tuple[np.ndarray, dict[str, int]]:
        """The score of each sample, float32 [N], NaN where not scored; and how many were not, by reason.

        Chunk c holds the samples order[bounds[c] : bounds[c + 1]].
        """
        scores, skipped, seen = np.full(len(order), np.nan, np.float32), {}, set()
        for line in self.lines():
            c = line["chunk"]
            if c in seen:
                continue
            seen.add(c)
            scores[order[bounds[c] : bounds[c + 1]]] = [np.nan if s is None else s for s in line["scores"]]
            for reason, count in line["skipped"].items():
                skipped[reason] = skipped.get(reason, 0) + count
        if missing := len(bounds) - 1 - len(seen):
            raise ValueError(f"{self.folder}: the scores of {missing} chunks are missing; give --resume")
        return scores, skipped

    def refused(self) -> list[str]:
        """Place and fault of conversations that the chat template refuses, the first ones of each chunk."""
        told = {line["chunk"]: line.get("refused", []) for line in self.lines()}
        return [each for chunk in sorted(told) for each in told[chunk]]

    def give_up(self) -> None:
        """Tell the other ranks that this one has failed, so that they stop scoring."""
        with contextlib.suppress(OSError):  # a full disk, which they meet too
            self._failed.touch()

    def given_up(self) -> bool:
        """Whether a rank has failed since the folder was opened."""
        return self._failed.exists()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _whole(raw: bytes) -> dict[str, Any] | None:
    """A line of a score file; None where it was torn."""
    try:
        return json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None


def _write_all(out: Any, raw: bytes) -> None:
    while raw:
        raw = raw[out.write(raw) :]


def _word(value: Any) -> str:
    return str(value[0] if isinstance(value, list) and value else value)
