"""What keeps a run from going on until somebody mends it: a full disk, a read-only folder, a damaged checkpoint, a
preference that makes the loss or the gradient of one rank not finite."""

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from campaigns.place import Outcome, Place, steps_done, where
from rmkit.storage.checkpoint import steps_saved
from support.victim import Process, poison

DISK = 8 * 2**20
"""Bytes of the small disk; a run needs 2 million."""
LEFT = 300_000
"""Bytes that may be left on the full disk: less than one checkpoint."""
MINUTE = 60.0
"""Within which a run that cannot go on has left."""
POISONS = {"loss": {"margin": 1e300}, "gradient": {"weight": 3e38}}
"""Finite as JSON. The margin makes the loss infinite, the weight leaves it finite and makes the gradient NaN."""


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a disk: root, outside of most containers."""
    try:
        with small_disk(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """An empty disk of DISK bytes."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """`folder` cannot be written, by root neither. Mounted elsewhere first: one with an open file cannot be made so."""
    with tempfile.TemporaryDirectory(prefix="read-only-") as elsewhere:
        subprocess.run(["mount", "--bind", folder, elsewhere], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", elsewhere], check=True)
            subprocess.run(["mount", "--bind", elsewhere, folder], check=True)
        finally:
            subprocess.run(["umount", "--lazy", elsewhere], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def refused(process: Process, *words: str) -> list[str]:
    """What is wrong with the end of a run that cannot go on: it leaves with a sentence and a status, soon."""
    began = time.time()
    status, printed = process.wait(), process.printed()
    wrong = [f"{word!r} is not said" for word in words if word not in printed]
    if status == 0 or (process.world_size == 1 and status != 2):
        wrong.append(f"status {status}")
    if time.time() - began > MINUTE:
        wrong.append(f"it ended after {time.time() - began:.0f} s")
    # torchrun itself prints a traceback, after those of its ranks.
    if "Traceback" in printed.partition("torch/distributed/elastic/multiprocessing/api.py")[0]:
        wrong.append("a traceback")
    return [*wrong, printed[-1500:]] if wrong else []


def full_disk(place: Place, tries: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with small_disk(place.folder / "small-disk") as disk:
        while len(outcomes) < tries:
            run, filler = disk / f"full-{place.rng.randrange(10**6)}", disk / "filler"
            process = place.start(run)
            if place.rng.random() > 0.2:  # else full from the start
                process.wait_for(process.trains)
                place.some_steps(process)
            with suppress(OSError):  # the run may have taken the rest meanwhile
                filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - place.rng.randrange(LEFT))))
            wrong = refused(process, "No space left on device")
            filler.unlink()
            if process.popen.poll() != 0:  # else it had written everything before
                outcomes.append(Outcome("full disk", where(process), wrong + place.ended(place.start(run))))
            shutil.rmtree(run, ignore_errors=True)
    return outcomes


def read_only_folder(place: Place, tries: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while len(outcomes) < tries:
        run = place.folder / "read-only" / str(len(outcomes))
        process = place.start(run)
        process.wait_for(lambda: bool(steps_saved(run)))  # noqa: B023
        place.some_steps(process)
        inside = place.rng.choice([run, run / "checkpoints"])
        if inside == run:
            process.kill()
        with read_only(inside):
            wrong = refused(place.start(run) if inside == run else process, "Read-only file system", str(inside))
        moment = "at its start" if inside == run else "while training"
        outcomes.append(Outcome("read-only folder", moment, wrong + place.ended(place.start(run))))
    return outcomes


def flip_a_bit(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def cut_off(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


def damaged_checkpoint(place: Place, tries: int) -> list[Outcome]:
    """A file of the newest checkpoint is damaged: said aloud, and the one before it is used."""
    began = place.folder / "damaged" / "began"
    process = place.start(began)
    process.wait_for(lambda: len(steps_saved(began)) > 1)
    place.some_steps(process)
    process.kill()
    before, newest = steps_saved(began)[-2:]
    files = [file for file in (began / "checkpoints" / f"step-{newest}").rglob("*") if file.is_file()]
    names = sorted(str(file.relative_to(began)) for file in files)
    outcomes = []
    for i in range(tries):
        run = shutil.copytree(began, began.with_name(str(i)))
        name, damage = names[i // 2 % len(names)], (flip_a_bit, cut_off)[i % 2]
        damage(run / name, place.rng)
        process = place.start(run)
        wrong = place.ended(process)
        for said in (f"step-{newest} is damaged", f"resumed at step {before} "):
            if said not in process.printed():
                wrong.append(f"{said!r} is not said: {process.printed()[-1500:]}")
        outcomes.append(Outcome("damaged checkpoint", f"{damage.__name__} {Path(name).name}", wrong))
    return outcomes


def not_finite(place: Place, tries: int) -> list[Outcome]:
    """One preference, and so one rank, gives a loss or a gradient that is not finite: all refuse the step."""
    outcomes = []
    for i in range(tries):
        way, (what, values) = ("ddp", "fsdp")[i % 2], list(POISONS.items())[i // 2 % 2]
        world = shutil.copytree(place.world, place.folder / "poisoned" / f"world-{i}")
        row = poison(world / "train.jsonl", values)
        run = place.folder / "poisoned" / str(i)
        process = place.start(run, way, world)
        wrong = refused(process, "The step was refused", row)
        if steps_done(run) < steps_saved(run)[-1]:
            wrong.append("a checkpoint is newer than the last step that was not refused")
        shutil.copy(place.world / "train.jsonl", world)
        wrong += place.ended(place.start(run, way, world), way)
        outcomes.append(Outcome("not finite on one rank", f"{what}, {way}", wrong))
    return outcomes
