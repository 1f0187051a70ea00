"""What a training run survives: kill -9 at random moments, a rank that dies, a full disk, a read-only folder, damaged
checkpoints, a gradient that is not finite on one rank. After each it goes on with --resume, and in the end its weights,
metrics and folder must be those of the run that nothing disturbed, bit for bit.

    python tests/campaigns/faults.py                              # 140 kills and the rest: 20 minutes on two cores
    python tests/campaigns/faults.py --faults kill --tries 10

Every run is started by the command that a user gives, in processes of its own. The full disk is a small tmpfs and the
read-only folder a read-only bind mount: who cannot mount them is told that they are left out. Prints the count
survived of the count tried, and writes it to bench/results/faults.json.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # support/ and this folder, as a package

import torch

from campaigns.kills import kill
from campaigns.obstacles import can_mount, damaged_checkpoint, full_disk, not_finite, read_only_folder
from campaigns.place import Outcome, Place, disturb_nothing
from rmkit.runtime import environment
from support.victim import STEPS, STRATEGIES, make_world

FAULTS = {
    "kill": (lambda place, tries: kill(place, "one-process", tries), 84),
    "ddp": (lambda place, tries: kill(place, "ddp", tries), 8),
    "fsdp": (lambda place, tries: kill(place, "fsdp", tries), 8),
    "lora": (lambda place, tries: kill(place, "lora", tries), 20),
    "low-bit": (lambda place, tries: kill(place, "low-bit", tries), 20),  # bf16 weights, 8-bit states
    "disk": (full_disk, 10),
    "read-only": (read_only_folder, 6),
    "damage": (damaged_checkpoint, 18),  # each of the nine files of a checkpoint, in two ways
    "not-finite": (not_finite, 4),
}
"""What makes the outcomes, and how many of them by default."""
ALONE = ("ddp", "fsdp", "not-finite")
"""Two ranks each: not beside another."""
MOUNT = ("disk", "read-only")


def campaign(folder: Path, tries: dict[str, int], seed: int, jobs: int) -> list[Outcome]:
    """All faults of `tries`; those of one process up to `jobs` at a time."""
    place = Place(folder, random.Random(seed))
    make_world(place.world)
    two_ranks = any(name in ALONE for name in tries)
    for way in [way for way, shared in STRATEGIES.items() if way in {"one-process", *tries} or (shared and two_ranks)]:
        disturb_nothing(place, way)
        print(f"undisturbed, {way}: {place.seconds[way]:.1f} s for {STEPS} steps", flush=True)
    # The kills are most of the work: each worker has its share of them.
    tasks = [(name, tries[name]) for name in tries if name not in ("kill", *ALONE)]
    tasks += [("kill", (tries["kill"] + i) // jobs) for i in range(jobs) if "kill" in tries]
    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(lambda task: attempt(place, *task), tasks))
    found += [attempt(place, name, tries[name]) for name in tries if name in ALONE]
    return [outcome for outcomes in found for outcome in outcomes]


def attempt(place: Place, name: str, tries: int) -> list[Outcome]:
    """The outcomes of a fault, each failure said at once."""
    outcomes = FAULTS[name][0](place, tries)
    for one in outcomes:
        if one.wrong:
            print(f"not survived: {one.fault}, {one.moment}", *one.wrong, sep="\n  ", flush=True)
    print(f"{name}: {sum(not one.wrong for one in outcomes)} of {len(outcomes)} survived", flush=True)
    return outcomes


def summary(outcomes: list[Outcome]) -> dict[str, dict]:
    """Counts by fault and by moment; the longest time that others lived on."""
    found: dict[str, dict] = {}
    for fault in dict.fromkeys(one.fault for one in outcomes):
        of_fault = [one for one in outcomes if one.fault == fault]
        seconds = [one.seconds for one in of_fault if one.seconds is not None]
        found[fault] = {
            "tried": len(of_fault),
            "survived": sum(not one.wrong for one in of_fault),
            "moments": dict(sorted(Counter(one.moment for one in of_fault).items())),
        }
        if seconds:
            found[fault] |= {"longest seconds until all ranks are gone": round(max(seconds), 1)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--tries", type=int, help="of each fault; by default as the docstring says")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--folder", type=Path, help="where the runs go; kept. By default a temporary folder")
    default = Path(__file__).parents[2] / "bench" / "results" / "faults.json"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()

    tries = {name: arguments.tries or FAULTS[name][1] for name in arguments.faults}
    began, left_out = time.time(), []
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = arguments.folder or Path(temporary)
        if set(tries) & set(MOUNT) and not can_mount(folder / "mounted"):
            left_out = [name for name in MOUNT if tries.pop(name, None)]
            print(f"left out: {', '.join(left_out)} (this user cannot mount a disk)")
        outcomes = campaign(folder, tries, arguments.seed, arguments.jobs)
    counts = summary(outcomes)
    for fault, row in counts.items():
        print(f"{fault}: survived {row['survived']} of {row['tried']}", json.dumps(row["moments"]))
    survived = sum(row["survived"] for row in counts.values())
    print(f"survived {survived} of {len(outcomes)} faults in {time.time() - began:.0f} s")
    result = {
        "bench": "faults",
        "command": " ".join(["python", "tests/campaigns/faults.py", *sys.argv[1:]]),
        "survived": survived,
        "tried": len(outcomes),
        "faults": counts,
        "left out": left_out,
        "seconds": round(time.time() - began),
        "environment": environment(torch.device("cpu"), 1),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if survived == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
