"""kill -9 at random moments: of the only process of a run, or of one of two ranks."""

import re
import time
from contextlib import suppress

import psutil

from campaigns.place import Outcome, Place, where
from support.victim import Process

MINUTE = 60.0
"""Within which all ranks are gone when one has died."""


def kill(place: Place, way: str, tries: int) -> list[Outcome]:
    """Kill a run, go on with it, kill it, .. until it ends; then another run, until there are `tries` kills."""
    outcomes: list[Outcome] = []
    while len(outcomes) < tries:
        run = place.folder / way / f"killed-{len(outcomes)}-{place.rng.randrange(10**6)}"
        killed: list[Outcome] = []
        while len(outcomes) + len(killed) < tries:
            process = place.start(run, way)
            draw_moment(place, process, way)
            outcome = kill_a_rank(place, process, way)
            if outcome is None:
                break
            killed.append(outcome)
        else:
            process = place.start(run, way)
        wrong = place.ended(process, way)
        if wrong and not killed:
            outcomes.append(Outcome("no fault", "never", wrong))
        # Which of its kills a run did not survive is not known: none of them counts.
        outcomes += [Outcome(one.fault, one.moment, [*one.wrong, *wrong], one.seconds) for one in killed]
    return outcomes


def draw_moment(place: Place, process: Process, way: str) -> None:
    """Wait for a random moment: while it starts, over the next steps, while a checkpoint or FINAL is written."""
    kind = place.rng.choices(["start", "steps", "checkpoint", "FINAL"], [1, 5, 3, 1])[0]
    if kind == "start":
        time.sleep(place.rng.uniform(1.0, 6.0))
        process.wait_for(lambda: len(process.ranks()) == process.world_size)
        return
    process.wait_for(process.trains)
    if kind != "FINAL":
        place.some_steps(process, way)
    if kind != "steps":
        inside = process.run / "checkpoints" if kind == "checkpoint" else process.run
        process.wait_for(lambda: process.writes(inside))
        place.part_of_a_step(way)


def kill_a_rank(place: Place, process: Process, way: str) -> Outcome | None:
    """Kill one rank, and see how long the others live, and whether it is named; None where the run ended first."""
    ranks, rank = process.ranks(), place.rng.randrange(process.world_size)
    with suppress(psutil.NoSuchProcess, KeyError):
        ranks[rank].kill()
    died = time.time()
    if process.wait() == 0:
        return None
    psutil.wait_procs(ranks.values(), timeout=MINUTE)
    seconds = time.time() - died
    moment = where(process)
    if process.world_size == 1:
        return Outcome("kill" if way == "one-process" else f"kill over {way}", moment)
    wrong = [f"rank {number} lives on" for number, one in ranks.items() if one.is_running()]
    if seconds > MINUTE:
        wrong.append(f"the others ended after {seconds:.0f} s")
    if not re.search(rf"rank\s*:?\s*{rank}\b", process.printed()):
        wrong.append(f"rank {rank} died and is not named: {process.printed()[-1500:]}")
    return Outcome(f"kill a rank of {way}", moment, wrong, seconds)
