"""Trackers that receive each line of metrics.jsonl: TensorBoard, Weights & Biases, trackio, or one of your own.

A tracker is an `accelerate.tracking.GeneralTracker`. One of your own is a line, before the run starts:

    TRACKERS["mine"] = lambda run_name, folder, config, step: MyTracker(run_name)
    fit(TrainConfig(log=LogConfig(to=("mine",))))
"""

import json
import secrets
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from rmkit.config import TrainConfig, to_dict
from rmkit.errors import UserError, brief

EXTRAS = ("tensorboard", "wandb", "trackio")
"""Trackers that need a package of the same name, which the extra of the same name installs."""


def tensorboard(run_name: str, folder: Path, config: dict[str, Any], step: int) -> GeneralTracker:
    """Event files in RUN/tensorboard; `tensorboard --logdir CACHE_DIR` shows all runs."""
    # accelerate joins the two, and the run folder has the run's name already. Steps that the interrupted run did after
    # its last checkpoint come again: TensorBoard hides what it has from purge_step on.
    return TensorBoardTracker("tensorboard", folder, purge_step=step + 1 if step else 0)


def wandb(run_name: str, folder: Path, config: dict[str, Any], step: int) -> GeneralTracker:
    """A run of Weights & Biases; its local files are in RUN/wandb.

    WANDB_MODE=offline, which is yours to set, needs no login and no network; `wandb sync` uploads the files later.
    Steps that a resumed run does again are dropped by wandb, which takes each step once.
    """
    id_file = folder / "wandb" / "run_id"
    if step == 0 or not id_file.exists():
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(secrets.token_hex(8))
    return WandBTracker(
        config["log"]["project"],
        name=run_name,
        id=id_file.read_text(),
        resume="allow",
        dir=str(folder),
        config=config,
    )


def trackio(run_name: str, folder: Path, config: dict[str, Any], step: int) -> GeneralTracker:
    """A run of trackio, in its database on this machine (TRACKIO_DIR), or where TRACKIO_SPACE_ID says; `trackio show`.

    Steps that a resumed run does again stand in it twice.
    """
    resume = "allow" if step else "never"
    return TrackioTracker(config["log"]["project"], name=run_name, config=config, resume=resume)


TRACKERS: dict[str, Callable[[str, Path, dict[str, Any], int], GeneralTracker]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "trackio": trackio,
}
"""Every tracker, by --log.to: a function of (run name, run folder, configuration as nested JSON values, step that the
run resumes from, 0 for a new one) that returns it."""


def check_trackers(names: Iterable[str]) -> None:
    """ValueError where a name is unknown or its package is not installed; nothing is imported."""
    for name in names:
        if name not in TRACKERS:
            raise UserError("log.to", name, f"no such tracker; it can be {', '.join(TRACKERS)}")
        # A folder called wandb where the command is given counts as a package too, of no origin.
        if name in EXTRAS and ((spec := find_spec(name)) is None or spec.origin is None):
            raise UserError("log.to", name, f"{name} is not installed; pip install 'rmkit[{name}]'")


def open_mirrors(config: TrainConfig, folder: Path | None, step: int) -> list[GeneralTracker]:
    """The trackers of --log.to, started; none where `folder` is None (ranks other than the first).

    ValueError where one cannot start, such as wandb without a login; those that had started are finished then.
    """
    if folder is None:
        return []
    check_trackers(config.log.to)
    values = json.loads(json.dumps(to_dict(config)))
    mirrors = []
    with ExitStack() as started:
        for name in dict.fromkeys(config.log.to):
            try:
                tracker = TRACKERS[name](config.exp_name or folder.name, folder, values, step)
                tracker.start()
            except Exception as error:  # whatever its library raises, the user asked for it by this flag
                raise UserError("log.to", name, f"it does not start: {brief(error)}") from error
            started.callback(tracker.finish)
            mirrors.append(tracker)
        started.pop_all()
    return mirrors
