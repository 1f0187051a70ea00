"""The hostile-input campaign: thousands of spoiled files, command lines and folders, through the programs' own entries.

Every case has to end in one of two ways: accepted, or refused with exit status 2 and a sentence that names the file.
Another exception, a crash, more than SECONDS or GROWTH for one case, a pickle that is loaded, code of a model folder
that runs, or a write outside the case's own folder is a fault.

    python tests/campaigns/hostile.py                                     # the whole campaign: results/hostile.json
    python tests/campaigns/hostile.py --kinds files --count 300 --seed 7  # a part of it, nothing written
    python tests/campaigns/hostile.py --only files:123 --seed 7           # one case again, with its traceback

A case is drawn from (seed, kind, number) alone. Cases run in processes of their own, so that a crash or a hang of one
costs none of the others.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # support/ and this folder, as a package

KINDS = {"files": 10_000, "shapes": 2_000, "commands": 2_000, "folders": 2_000}
"""What is spoiled, and how often in the whole campaign."""
SECONDS = 30.0
"""Of processor time for one case; PATIENCE times as long by the clock, whatever else the machine does meanwhile."""
PATIENCE = 10
GROWTH = 512
"""MiB that one case may add to its process, at its peak; the bombs unpack to 1 GiB and more."""
RESULTS = Path(__file__).parents[2] / "bench" / "results" / "hostile.json"

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "COLUMNS": "4000"}


def worker(kind: str, seed: int, scratch: Path, cases: range, pipe: Connection) -> None:
    """Run cases one after the other; a line to the parent before and after each."""
    from campaigns.fence import Fault

    run = prepared(kind, scratch)
    for n in cases:
        pipe.send((n, None, None))
        began, floor = time.process_time(), memory("VmRSS")
        forget_peak()
        try:
            outcome, fault = run(random.Random(f"{seed} {kind} {n}"), n), ""
        except BaseException as error:
            outcome, fault = "fault", error.args[0] if isinstance(error, Fault) else traceback.format_exc()
        seconds, growth = time.process_time() - began, memory("VmHWM") - floor
        if not fault and (seconds > SECONDS or growth > GROWTH):
            outcome, fault = "fault", f"{seconds:.1f} s, {growth:.0f} MiB more at its peak"
        pipe.send((n, outcome, {"fault": fault, "seconds": seconds, "growth": growth}))
    pipe.close()


def prepared(kind: str, scratch: Path) -> Callable[[random.Random, int], str]:
    """The function that runs a case of a kind; within `scratch` lies everything that it may touch."""
    return import_module(f"campaigns.hostile_{kind}").prepare(scratch)


def memory(field: str) -> float:
    """VmRSS or VmHWM of this process in MiB; 0 where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def forget_peak() -> None:
    """The peak counts from here; where the kernel cannot, it stays that of the process's whole life."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


class Campaign:
    """The cases of one kind, shared out over processes that are watched."""

    def __init__(self, kind: str, cases: range, seed: int, processes: int, scratch: Path) -> None:
        self.kind, self.seed, self.scratch = kind, seed, scratch
        self.outcomes: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []
        self.slowest = self.largest = (0.0, "")
        self._ways = multiprocessing.get_context("fork")
        shares = [cases[i::processes] for i in range(processes)]
        self._running = [self._start(share, i) for i, share in enumerate(shares) if share]

    def _start(self, cases: range, place: int) -> dict[str, Any]:
        ours, theirs = self._ways.Pipe()
        folder = self.scratch / f"{self.kind}-{place}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        process = self._ways.Process(target=worker, args=(self.kind, self.seed, folder, cases, theirs))
        process.start()
        theirs.close()
        return {"process": process, "pipe": ours, "cases": cases, "place": place, "at": None, "since": time.monotonic()}

    def run(self) -> None:
        while self._running:
            wait([one["pipe"] for one in self._running], timeout=1.0)
            for one in list(self._running):
                self._look(one)

    def _look(self, one: dict[str, Any]) -> None:
        try:
            while one["pipe"].poll():
                n, outcome, found = one["pipe"].recv()
                one["at"], one["since"] = n, time.monotonic()
                if found is not None:
                    one["at"] = None
                    self._count(n, outcome, found)
        except (EOFError, OSError):
            one["process"].join()
            self._next(one, f"the process died with {one['process'].exitcode}")
            return
        if one["at"] is not None and time.monotonic() - one["since"] > PATIENCE * SECONDS:
            one["process"].kill()
            one["process"].join()
            self._next(one, f"still at work after {PATIENCE * SECONDS:.0f} s: killed")

    def _next(self, one: dict[str, Any], fault: str) -> None:
        """After the end of a process: done, or on with the case behind the one that ended it."""
        self._running.remove(one)
        if one["at"] is None:
            if one["process"].exitcode:
                self.faults.append({"case": f"{self.kind}: outside any case", "fault": fault})
            return
        self._count(one["at"], "fault", {"fault": fault, "seconds": 0.0, "growth": 0.0})
        rest = one["cases"][one["cases"].index(one["at"]) + 1 :]
        self._running.append(self._start(rest, one["place"]))

    def _count(self, n: int, outcome: str, found: dict[str, Any]) -> None:
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, (round(found["seconds"], 2), f"{self.kind}:{n}"))
        self.largest = max(self.largest, (round(found["growth"]), f"{self.kind}:{n}"))
        if found["fault"]:
            self.faults.append({"case": f"{self.kind}:{n}", "fault": found["fault"]})
            last = found["fault"].strip().splitlines()[-1][:300]
            print(f"FAULT {self.kind}:{n} (--only {self.kind}:{n} --seed {self.seed}): {last}", flush=True)


def campaign(kinds: dict[str, range], seed: int, processes: int) -> dict[str, Any]:
    """Run these cases of each kind; what came of them."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        scratch = Path(folder).resolve()
        at_home(scratch)
        for kind, numbers in kinds.items():
            import_module(f"campaigns.hostile_{kind}")  # once, before the processes part
            began = time.perf_counter()
            cases = Campaign(kind, numbers, seed, processes, scratch)
            cases.run()
            found[kind] = {
                "cases": len(numbers),
                "outcomes": dict(sorted(cases.outcomes.items())),
                "faults": sorted(cases.faults, key=lambda fault: fault["case"]),
                "slowest_seconds": cases.slowest,
                "largest_growth_mib": cases.largest,
                "seconds": round(time.perf_counter() - began, 1),
            }
            print(kind, json.dumps({**found[kind], "faults": len(cases.faults)}), flush=True)
    return found


def at_home(scratch: Path) -> None:
    """Every library's own folders lie within the scratch folder; to be set before the libraries are imported."""
    for variable in ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        folder = scratch / variable.lower()
        folder.mkdir()
        os.environ[variable] = str(folder)
    tempfile.tempdir = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", metavar="KIND:NUMBER", help="run one case, and show its fault whole")
    parser.add_argument("--dry", action="store_true", help="leave bench/results/hostile.json as it is")
    given = parser.parse_args()
    if given.only:
        kind, number = given.only.split(":")
        found = campaign({kind: range(int(number), int(number) + 1)}, given.seed, 1)
        print(*(fault["fault"] for fault in found[kind]["faults"]))
        return int(bool(found[kind]["faults"]))
    found = campaign({kind: range(given.count or KINDS[kind]) for kind in given.kinds}, given.seed, given.processes)
    faults = sum(len(of_kind["faults"]) for of_kind in found.values())
    if given.count is None and given.kinds == list(KINDS) and not given.dry:
        import torch

        from rmkit.runtime import environment

        limits = {"seconds": SECONDS, "growth_mib": GROWTH}
        what = {
            "bench": "hostile",
            "command": "python tests/campaigns/hostile.py",
            "seed": given.seed,
            "limits": limits,
        }
        what |= {"kinds": found, "environment": environment(torch.device("cpu"), 1)}
        RESULTS.write_text(json.dumps(what, indent=1) + "\n")
    print(f"{faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
