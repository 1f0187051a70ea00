"""Where the fault campaign happens, and what came of a fault."""

import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from rmkit.storage.checkpoint import steps_saved
from support.victim import STEPS, Process, differences

WINDOW = 12
"""Steps within which the next moment is drawn: a run is disturbed several times before it ends."""


@dataclass(frozen=True)
class Outcome:
    fault: str
    moment: str
    wrong: list[str] = field(default_factory=list)
    """Empty where it was survived"""
    seconds: float | None = None
    """From the death of a rank to the end of the last one"""


@dataclass(frozen=True)
class Place:
    """Where the runs are, and the ones that nothing disturbed."""

    folder: Path
    rng: random.Random
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the undisturbed runs, from the first step to the end"""

    @property
    def world(self) -> Path:
        return self.folder / "world"

    def undisturbed(self, way: str) -> Path:
        return self.folder / "undisturbed" / way

    def log(self, run: Path) -> Path:
        return self.folder / "logs" / f"{run.parent.name}-{run.name}.log"

    def start(self, run: Path, way: str = "one-process", world: Path | None = None) -> Process:
        return Process(world or self.world, run, way, self.log(run))

    def ended(self, process: Process, way: str = "one-process") -> list[str]:
        """What is wrong when a process that goes on has ended; the run is deleted where nothing is."""
        status = process.wait()
        wrong = differences(process.run, self.undisturbed(way)) if status == 0 else [f"status {status} of --resume"]
        if process.hung:
            wrong = ["it hangs"]
        if wrong:
            return [*wrong, f"see {process.run} and {process.log}: {process.printed()[-1500:]}"]
        shutil.rmtree(process.run)
        return []

    def some_steps(self, process: Process, way: str = "one-process") -> None:
        """Wait for a random moment in the next WINDOW steps of a process that trains."""
        last = steps_done(process.run) + self.rng.randrange(WINDOW)
        process.wait_for(lambda: steps_done(process.run) >= last)
        self.part_of_a_step(way)

    def part_of_a_step(self, way: str) -> None:
        time.sleep(self.rng.uniform(0.0, self.seconds[way] / STEPS))


def disturb_nothing(place: Place, way: str) -> None:
    """The run that the others are compared with; how long it trains."""
    process = place.start(place.undisturbed(way), way)
    process.wait_for(process.trains)
    began = time.time()
    if process.wait() != 0:
        raise RuntimeError(process.printed())
    place.seconds[way] = time.time() - began


def where(process: Process) -> str:
    """What an ended process was at, as its folder tells."""
    run = process.run
    if process.writes(run):
        return "writing FINAL"
    if process.writes(run / "checkpoints"):
        return "saving a checkpoint"
    if not process.trains():
        return "starting"
    if not steps_saved(run):
        return "before the first checkpoint"
    return "training" if steps_done(run) < STEPS else "after the last step"


def steps_done(run: Path) -> int:
    """Optimizer steps in metrics.jsonl."""
    file = run / "metrics.jsonl"
    return file.read_text().count('"loss/train"') if file.exists() else 0
