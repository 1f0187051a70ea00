"""What a run leaves behind: metrics.jsonl, config.json and env.json."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from rmkit.runtime import environment
from rmkit.storage.atomic import written_file

CLOCK_KEYS = ("examples_per_second", "tokens_per_second", "seconds")
"""Keys of metrics.jsonl that depend on the clock; all others repeat bit for bit."""


class Metrics:
    """metrics.jsonl: a line per optimizer step and per evaluation, on the disk when `write` returns."""

    def __init__(self, folder: Path | None, keep_bytes: int = 0) -> None:
        """Open the file in `folder`, cut back to `keep_bytes`; None (ranks other than the first) writes nothing."""
        self._file = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / "metrics.jsonl"
            file.touch()
            os.truncate(file, min(keep_bytes, file.stat().st_size))
            self._file = file.open("a")

    def write(self, values: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    @property
    def bytes(self) -> int:
        return self._file.tell() if self._file is not None else 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def describe(folder: Path | None, config: dict[str, Any], device: torch.device, ranks: int) -> None:
    """Write config.json (resolved, and reloadable) and env.json into the run folder."""
    if folder is not None:
        for name, values in (("config.json", config), ("env.json", environment(device, ranks))):
            with written_file(folder / name) as out:
                out.write(json.dumps(values, indent=2) + "\n")
