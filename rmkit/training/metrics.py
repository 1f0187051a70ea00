"""What a run leaves behind: metrics.jsonl, which trackers may mirror, config.json and env.json."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker

from rmkit.errors import brief
from rmkit.runtime import environment
from rmkit.storage.atomic import written_file

CLOCK_KEYS = (
    *("examples_per_second", "tokens_per_second", "seconds", "tokens/mfu"),
    *("memory/peak_gib", "memory/process_gib"),
)
"""Keys of metrics.jsonl that depend on the clock, on the GPU or on the memory of the machine; all others repeat bit for
bit."""


class Metrics:
    """metrics.jsonl: a line per optimizer step and per evaluation, on the disk when `write` returns.

    Each line goes to the trackers `mirrors` too. A tracker that fails is reported by `say` and gets nothing more, so
    that a lost network does not end the run.
    """

    def __init__(
        self,
        folder: Path | None,
        keep_bytes: int = 0,
        mirrors: Iterable[GeneralTracker] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        """Open the file in `folder`, cut to `keep_bytes`; None (all ranks but the first) writes nothing."""
        self._file = None
        self._mirrors, self._say = list(mirrors), say
        self.evaluated: dict[str, Any] = {}
        """The last evaluation that the file held when it was opened, of a run that goes on"""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / "metrics.jsonl"
            file.touch()
            os.truncate(file, min(keep_bytes, file.stat().st_size))
            with file.open() as lines:
                for line in lines:
                    if '"loss/eval"' in line:
                        self.evaluated = json.loads(line)
            self._file = file.open("a")

    def write(self, values: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        if self._mirrors:
            step = values["counters/updates"]
            self._tell(lambda tracker: tracker.log(dict(values), step=step))

    @property
    def bytes(self) -> int:
        return self._file.tell() if self._file is not None else 0

    def close(self) -> None:
        """Close the file and finish the trackers; may be called twice."""
        if self._file is not None:
            self._file.close()
        self._tell(lambda tracker: tracker.finish())
        self._mirrors.clear()

    def _tell(self, action: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self._mirrors):
            try:
                action(tracker)
            except Exception as error:  # whatever its library raises
                self._mirrors.remove(tracker)
                self._say(f"{tracker.name} failed and gets nothing more, metrics.jsonl has it all: {brief(error)}")


def describe(folder: Path | None, config: dict[str, Any], device: torch.device, ranks: int, **how: Any) -> None:
    """Write config.json (resolved, and reloadable) and env.json into the run folder; `how` it computes goes with it."""
    if folder is not None:
        for name, values in (("config.json", config), ("env.json", {**environment(device, ranks), **how})):
            with written_file(folder / name) as out:
                out.write(json.dumps(values, indent=2) + "\n")
