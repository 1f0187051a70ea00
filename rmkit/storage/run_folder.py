"""The run folder CACHE_DIR/EXP_NAME: what it holds, and how --resume and --overwrite treat it."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from rmkit.config import TrainConfig, to_dict
from rmkit.distributed.collectives import on_first_rank, rank
from rmkit.errors import AgreedError, UserError, flag
from rmkit.model import adapter
from rmkit.storage import checkpoint, replaced
from rmkit.storage.checkpoint import Progress
from rmkit.storage.lock import locked

RESULTS = ("FINAL", "checkpoints", "metrics.jsonl")

BESIDES = ("config.json", "env.json", "heldout.jsonl", "report.html", "tensorboard", "wandb")
"""What --overwrite replaces too; alone in a folder it is no result of a run."""

SAME = {
    "": ("seed",),
    "model": ("name", "head", "objectives", "weights"),
    "data": ("train", "max_length", "overlong", "shuffle"),
    "batch": ("pairs", "group"),
    "optim": ("decay_all", "states"),
    "lora": ("rank", "alpha", "targets"),
}
"""Flags that must not change when a run is resumed: they decide the order of the data, the shape of the model or the
order and form of the optimizer's state."""


@contextlib.contextmanager
def claimed(config: TrainConfig, say: Callable[[str], None]) -> Iterator[None]:
    """Within the block no other training writes the run's folder; before and after it, what an --overwrite moved away
    is settled: let go where the new run has a FINAL, kept where it has a checkpoint to resume from, else put back."""
    folder = config.folder
    with contextlib.ExitStack() as held:

        def enter() -> None:
            folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written shows before hours of work
            check_apart(config)
            held.enter_context(locked(folder, f"{folder}: another training is at work there; wait for it, or end it"))
            _settle(folder, say)

        on_first_rank(enter)
        try:
            yield
        finally:  # no rank waits for another here: one may be lost
            if rank() == 0:
                _settle(folder, say)
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only where it is empty


def _settle(folder: Path, say: Callable[[str], None]) -> None:
    try:
        _settled(folder, say)
    except OSError as error:  # whatever ended the training is the error to tell
        say(f"warning: {folder / replaced.NAME} holds an earlier run that could not be put back ({error})")


def _settled(folder: Path, say: Callable[[str], None]) -> None:
    replaced.mend(folder)
    if (folder / "FINAL").exists() or not replaced.holds(folder):
        replaced.let_go(folder)
    if replaced.holds(folder) and checkpoint.steps_saved(folder):
        say(f"the run that --overwrite replaces is kept in {folder / replaced.NAME} until the new one has more to show")
    elif replaced.put_back(folder, (*RESULTS, *BESIDES)):
        say(f"--overwrite came to no checkpoint: the earlier run is back in {folder}")


def check_apart(config: TrainConfig) -> None:
    """ValueError where the model that a training starts from lies in the folder that it would write over."""
    name, folder = config.model.name, config.folder.resolve()
    if not Path(name).is_dir():
        return
    places = [Path(name)]
    if (Path(name) / adapter.CONFIG).is_file() and (of := adapter.adapter_in(name)) and Path(of.base).is_dir():
        places.append(Path(of.base))
    for place in places:
        if place.resolve() == folder:
            hint = f"it is {config.folder} itself, which the run would write into; give another"
            raise UserError("model.name", place, f"{hint} {flag('exp_name')} or {flag('cache_dir')}")
        real = (path.resolve() for path in (place, *place.iterdir()))  # a file may be a link too
        if config.overwrite and any(path.is_relative_to(folder) for path in real):
            hint = f"it lies in {config.folder}, which --overwrite would replace; give another {flag('exp_name')}"
            raise UserError("model.name", place, hint)


def replace_earlier(config: TrainConfig, say: Callable[[str], None]) -> None:
    """Under --overwrite, move away what the earlier run left, now that everything the new one needs has been read."""

    def move() -> None:
        held = [name for name in RESULTS if (config.folder / name).exists()]
        if config.overwrite and held:
            replaced.keep(config.folder, (*RESULTS, *BESIDES))
            where = f"{config.folder / replaced.NAME} until this one has two checkpoints or its FINAL"
            say(f"moved {', '.join(held)} of an earlier run to {where}")

    on_first_rank(move)


def open_run(config: TrainConfig, say: Callable[[str], None]) -> tuple[Path | None, Progress]:
    """The checkpoint to resume from, if any, and its progress; rank 0 decides for all.

    Raises AgreedError where the folder holds results and neither --resume nor --overwrite says what to do with them.
    """
    try:
        if not on_first_rank(lambda: _holds_results(config)):
            return None, Progress()
        newest = checkpoint.newest_whole(config.folder, say)
        if newest is None:
            say(f"{config.folder} holds no whole checkpoint: training starts from the first step")
            return None, Progress()
        weights, state = newest
        check_same(config, state["config"])
    except (ValueError, OSError) as error:
        raise AgreedError(error) from error
    return weights, Progress(**state["progress"])


def _holds_results(config: TrainConfig) -> bool:
    """Whether there may be a checkpoint to resume from."""
    folder = config.folder
    held = [name for name in RESULTS if (folder / name).exists()]
    if config.overwrite:
        return False
    if held and not config.resume:
        raise ValueError(
            f"{folder} holds {', '.join(held)} of an earlier run: give --resume to go on with it, --overwrite to "
            "replace it, or another --exp-name"
        )
    return bool(held)


def check_same(config: TrainConfig, saved: dict) -> None:
    """Raise ValueError where a flag of `SAME` differs from the run that is resumed.

    A run of a version that did not have a flag yet was started with its default.
    """
    now, usual = (json.loads(json.dumps(to_dict(each))) for each in (config, TrainConfig()))
    for part, keys in SAME.items():
        old, new, first = (saved.get(part, {}), now[part], usual[part]) if part else (saved, now, usual)
        for key in keys:
            if old.get(key, first[key]) != new[key]:
                raise UserError(
                    f"{part}.{key}" if part else key,
                    str(new[key]),
                    f"the run in {config.folder} was started with {old.get(key)}; give that, or start another "
                    f"{flag('exp_name')}",
                )
