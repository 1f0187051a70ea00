"""checkpoints/step-N/: a saved model and what --resume needs beside it, written while training goes on.

`training/` holds the optimizer's and the random state, `state.json` the counters, `SHA256SUMS` a checksum of each file.
Every rank writes its share, and the folder appears when all have.
"""

import functools
import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rmkit.config import TrainConfig, to_dict
from rmkit.distributed.collectives import on_every_rank, on_first_rank, rank
from rmkit.errors import AgreedError
from rmkit.model.reward_model import RewardModel
from rmkit.storage import export, replaced, training_state
from rmkit.storage.atomic import delete_partial, written_folder
from rmkit.storage.checksums import checksums, damage, write_checksums


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The counters of a run: what `state.json` holds besides the configuration."""

    step: int = 0
    examples: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    metrics_bytes: int = 0
    """Length of metrics.jsonl at this step; resume cuts the file back to it, so that no step appears twice"""


class Saver:
    """Writes checkpoints in the background, one at a time. Every rank has a Saver and uses it at the same steps.

    It is a context: leaving it waits for the checkpoint that is being written.
    """

    def __init__(self, run: Path, config: TrainConfig) -> None:
        self._run, self._config = run, config
        # The threads that write talk over a group of their own: those of training are in use meanwhile.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        # A new thread's device is the first GPU, whatever this rank's is: a context of 0.5 GB there for each rank.
        ours = (
            functools.partial(torch.cuda.set_device, torch.cuda.current_device())
            if torch.cuda.is_initialized()
            else None
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=ours)
        self._writing: Future[None] | None = None
        self._last: Progress | None = None  # what was saved last

    def save(
        self,
        progress: Progress,
        model: RewardModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: torch.optim.Optimizer,
        max_length: int,
    ) -> None:
        """Copy the state to the CPU, and write it to checkpoints/step-N in the background; then delete the checkpoints
        that --save.keep does not keep. Raises AgreedError where the previous checkpoint could not be written."""
        self.wait()
        if progress == self._last:  # stopped by a signal where it has just been saved
            return
        taken = export.snapshot(model, tokenizer, self._config, max_length)
        training = training_state.copied(model, optimizer)
        self._writing = self._pool.submit(self._write, progress, taken, training)
        self._last = progress

    def failed(self) -> bool:
        """Whether `wait` would raise. Some ranks may see it a few steps before others."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def wait(self) -> None:
        """Wait until the checkpoint is on the disk. Every rank raises AgreedError where it could not be written."""
        writing, self._writing = self._writing, None
        last, self._last = self._last, None
        if writing is not None:
            writing.result()
        self._last = last

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()

    def _write(self, progress: Progress, taken: export.Snapshot, training: dict[str, Tensor]) -> None:
        folder = self._run / "checkpoints" / f"step-{progress.step}"

        def fill(partial: Path) -> dict[str, str]:
            # One after the other by all: where a rank has failed, none goes on to the next, which waits for every one.
            files = on_every_rank(lambda: export.write(taken, partial), self._group)[rank()]
            files += training_state.write(training, partial / "training", taken.file_of, self._group)
            if rank() == 0:
                held = {"progress": asdict(progress), "config": to_dict(self._config)}
                files.append(partial / "state.json")
                files[-1].write_text(json.dumps(held, indent=2) + "\n")
            return checksums(partial, files)

        try:
            on_first_rank(lambda: delete_partial(folder.parent), self._group)
            with written_folder(folder, all_ranks=True, group=self._group) as partial:
                by_rank = on_every_rank(lambda: fill(partial), self._group)
                on_first_rank(lambda: write_checksums(partial, by_rank), self._group)
            on_first_rank(lambda: _rotate(self._run, self._config.save.keep, progress), self._group)
        except AgreedError as error:
            raise AgreedError(_refused(self._run, progress.step, 3 * taken.total["total_size"], error)) from error


def steps_saved(run: Path) -> list[int]:
    """The steps of a run folder's checkpoints, oldest first, whether the checkpoints are whole or not."""
    matches = (re.fullmatch(r"step-(\d+)", p.name) for p in (run / "checkpoints").glob("step-*"))
    return sorted(int(match[1]) for match in matches if match)


def newest_whole(run: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose checksums are right, and its state.json; says which newer ones are damaged.

    Every rank takes part, and all get the same.
    """
    for step in reversed(on_first_rank(lambda: steps_saved(run))):
        folder = run / "checkpoints" / f"step-{step}"
        why = damage(folder) or on_first_rank(lambda: _held(folder))  # noqa: B023 (called at once)
        if isinstance(why, dict):
            return folder, why
        say(f"{folder} is damaged ({why}); the one before it is tried")
    return None


def _held(folder: Path) -> dict[str, Any] | str:
    """The contents of state.json, or what is wrong with it: right checksums do not mean that rmkit wrote it."""
    try:
        held = json.loads((folder / "state.json").read_text())
        progress = Progress(**held["progress"])
        counts = (progress.step, progress.examples, progress.metrics_bytes)
        whole = all(isinstance(n, int) and n >= 0 for n in counts)
        best = all(n is None or isinstance(n, (int, float)) for n in (progress.best_step, progress.best_loss))
        parts = [held["config"].get(part, {}) for part in ("model", "data", "batch", "optim")]
        if not (whole and best and all(isinstance(part, dict) for part in parts)):
            return "state.json holds something else than a step and a configuration"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"state.json cannot be read ({error})"
    return held


def _rotate(run: Path, keep: int, progress: Progress) -> None:
    """Delete all but the best checkpoint and the newest `keep` up to the one just written. A later step can only be a
    damaged checkpoint that the resumed run went back from. With a second one the run that --overwrite replaces goes:
    the first may be what a Ctrl-C left of a mistake."""
    steps = steps_saved(run)
    if len(steps) > 1:
        replaced.let_go(run)
    done = [step for step in steps if step <= progress.step]
    stay = {*done[-keep:], progress.best_step}
    for step in steps:
        if step not in stay:
            shutil.rmtree(run / "checkpoints" / f"step-{step}")


def _refused(run: Path, step: int, size: int, error: Exception) -> str:
    """The message for a checkpoint that could not be written."""
    folder = run / "checkpoints"
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        before = [s for s in steps_saved(run) if s <= step]
        room = f"about {size / 1e9:.2g} GB, {shutil.disk_usage(there).free / 1e9:.2g} GB are free"
    except OSError as unknown:  # the disk is gone
        before, room = [], f"about {size / 1e9:.2g} GB ({unknown})"
    left = f"goes on from step {before[-1]}" if before else "starts from the first step: there is no earlier one"
    return (
        f"the checkpoint of step {step} could not be written to {folder} ({error}). It needs {room}: make room there, "
        f"or see that the folder can be written. What was written of it is deleted, earlier checkpoints are as they "
        f"were; after that, --resume {left}"
    )
