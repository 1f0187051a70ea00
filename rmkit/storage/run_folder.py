"""The run folder CACHE_DIR/EXP_NAME: what it holds, and how --resume and --overwrite treat it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from rmkit.config import TrainConfig, to_dict
from rmkit.distributed.collectives import on_first_rank
from rmkit.errors import AgreedError, UserError, flag
from rmkit.storage import checkpoint
from rmkit.storage.checkpoint import Progress

RESULTS = ("FINAL", "checkpoints", "metrics.jsonl")

BESIDES = ("config.json", "env.json", "tensorboard", "wandb")
"""What --overwrite deletes too; alone in a folder it is no result of a run."""

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


def open_run(config: TrainConfig, say: Callable[[str], None]) -> tuple[Path | None, Progress]:
    """The checkpoint to resume from, if any, and its progress; rank 0 decides for all.

    Raises AgreedError where the folder holds results and neither --resume nor --overwrite says what to do with them.
    """
    try:
        if not on_first_rank(lambda: _holds_results(config, say)):
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


def _holds_results(config: TrainConfig, say: Callable[[str], None]) -> bool:
    """Whether there may be a checkpoint to resume from; with --overwrite, deletes what the earlier run left."""
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written shows before hours of work
    held = [name for name in RESULTS if (folder / name).exists()]
    if config.overwrite:
        _delete(folder, held, say)
        return False
    if held and not config.resume:
        raise ValueError(
            f"{folder} holds {', '.join(held)} of an earlier run: give --resume to go on with it, --overwrite to "
            "delete it, or another --exp-name"
        )
    return bool(held)


def _delete(folder: Path, held: list[str], say: Callable[[str], None]) -> None:
    for name in (*held, *BESIDES):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if held:
        say(f"deleted {', '.join(held)} of an earlier run in {folder}")


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
