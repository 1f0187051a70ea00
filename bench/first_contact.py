r"""First contact with a GPU: one command that first asks whether everything is right on the card, then how fast it is.

    python3 bench/first_contact.py                       # all of it, at most 20 minutes on one H100 or H200
    python3 bench/first_contact.py --only correctness    # no figures; or one section, such as ladder
    python3 bench/first_contact.py --tiny                # the same code on a CPU at tiny sizes: finds Python's faults

Sections, each a process of its own with a time limit; what it has found lies in OUT/SECTION.json after each row:

    correctness   gpu_tests   pytest -m gpu, a process a file
                  attention   varlen attention and its gradients against float64, by the head shapes of the families
                  ladder      7 families, 3 layouts, fp32 and bf16, recomputed or not, against float64 one at a time
    figures       ceilings    bandwidth of a copy, rate of a matrix product: what the other figures are held against
                  steps-0.6b  training steps of Qwen3-0.6B by the product's own command: ms, host ms, MFU, tokens/s,
                              peak memory; trie, packed, padded, compiled, recomputed, TRL
                  label       K = 8 completions of a prompt beside padded batches
                  steps-8b    the same steps of Llama-3-8B, in the ways that fit the card
                  steps-1b    and of Llama-3.2-1B
                  loss        bench/loss_bench.py

No network and no checkpoint is needed: weights are drawn from configurations. What does not fit the card, what this
checkout or machine has not got, and what the time did not suffice for is said, never left out in silence. The status
is 1 where something that was asked for is wrong or was not shown to be right, 2 where nothing could be run, else 0.

A bare machine (torch, triton, transformers, accelerate, peft, pytest, hypothesis, matplotlib) lacks a few packages of
pure Python, 2 MB in all, which travel as wheels. Where there is a network:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux2014_x86_64 -d .whl 'tyro>=1.0.17,<1.1' docstring-parser typeguard \
        datasets dill multiprocess trl     # trl: to be timed beside; it can be left out

and on the machine, from the root of the checkout (`--commit`, because a copy of the tree may come without its .git):

    python3 bench/first_contact.py --wheels .whl --out $OUT --commit $COMMIT

Where a command is cut off after 10 minutes, three of them, with `--minutes 9` and `--only correctness`, then
`--only ceilings steps-0.6b label`, then `--only steps-8b steps-1b loss`.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from contact.sections import SECTIONS, Section, chosen, inside, read, write

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
NEEDED = ("torch", "transformers", "accelerate", "numpy", "rich", "pytest", "hypothesis", "tyro", "datasets", "peft")
OUT, TINY_OUT = "bench/results/first_contact", "runs/first_contact_tiny"
LEAST = 15.0
"""Seconds under which no section is begun."""


def child_environment(site: Path | None, tiny: bool) -> dict[str, str]:
    """What every section runs in: this checkout and the wheels on the path, no network, no card under --tiny."""
    path = [ROOT, ROOT / "kernels", ROOT / "tests", BENCH, site, os.environ.get("PYTHONPATH")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(str(p) for p in path if p)}
    found |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "COLUMNS": "150"}
    # Every microbatch has its own shapes (rmkit.distributed.launch.grow_segments); read when torch starts.
    found.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if tiny:
        found |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
        found.setdefault("OMP_NUM_THREADS", "1")
    return found


def refuse(sentence: str) -> NoReturn:
    """Nothing was run: another status than where something is wrong."""
    print(sentence, file=sys.stderr)
    sys.exit(2)


def install(wheels: Path, site: Path) -> None:
    """Unpack the wheels of a folder into `site`, which no other program sees."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        refuse(f"--wheels {wheels}: there is no .whl in that folder; the docstring of this file has the pip line")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--root-user-action", "ignore"]
    if subprocess.run([*command, "--target", str(site), *files]).returncode:
        refuse(f"--wheels {wheels}: pip could not install them")


def check_machine(site: Path | None, environment: dict[str, str], tiny: bool) -> None:
    """Exit with a sentence where a package or, without --tiny, the card is missing."""
    sys.path[:0] = [str(site)] if site else []
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        refuse(f"missing here: {', '.join(missing)}. Give --wheels a folder with them; --help has the pip line")
    ask = "import torch; raise SystemExit(0 if torch.cuda.is_available() else 3)"
    if not tiny and subprocess.run([sys.executable, "-c", ask], env=environment).returncode:
        refuse("torch finds no CUDA device here; --tiny runs the same code on a CPU")


def run_section(section: Section, arguments: argparse.Namespace, environment: dict[str, str], seconds: float) -> dict:
    """Run one section within `seconds`, and finish the JSON that it has left."""
    file, began = arguments.out / f"{section.name}.json", time.monotonic()
    file.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--section", section.name, "--out", str(arguments.out)]
    command += ["--minutes", str(seconds / 60), *(["--tiny"] if arguments.tiny else [])]
    command += ["--commit", arguments.commit] if arguments.commit else []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        # A group of its own: what it has started ends with it, and nothing else.
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        words = log.read()
    left = {"section": section.name, "tiny": arguments.tiny, **read(file)}
    if code is None:
        left |= {"status": "timed out", "why": f"it had {seconds:.0f} s"}
    elif code:
        left |= {"status": "failed", "why": left.get("why") or f"exit status {code}"}
    left |= {"seconds": round(time.monotonic() - began, 1), "log": words[-8000:]}
    write(file, left)
    return left


def skipped(section: Section, arguments: argparse.Namespace, why: str) -> dict:
    left = {"section": section.name, "status": "skipped", "tiny": arguments.tiny, "why": why}
    write(arguments.out / f"{section.name}.json", left)
    return left


def correct(results: dict[str, dict], sections: list[Section]) -> bool:
    """Nothing is wrong anywhere, and every section of correctness came to its end."""
    unshown = [s for s in sections if s.correctness and results[s.name]["status"] != "done"]
    return not unshown and not any(result.get("failures") for result in results.values())


def show(results: dict[str, dict], tiny: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    devices = ", ".join(sorted({r["device"] for r in results.values() if "device" in r}))
    title = f"first contact with {devices or 'nothing'}" + (" (tiny: no figure of a GPU)" if tiny else "")
    table = Table("section", "status", "s", "found", title=title)
    for name, result in results.items():
        words = [*result.get("failures", []), *([result["why"]] if "why" in result else []), *result.get("said", [])]
        table.add_row(name, result["status"], f"{result.get('seconds', 0):.0f}", "\n".join(words))
    console = Console(markup=False, emoji=False)
    (console if console.is_terminal else Console(width=160, markup=False, emoji=False)).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help=f"folder of the JSON files; by default {OUT}, or {TINY_OUT} under --tiny"
    )
    parser.add_argument("--only", nargs="+", default=["correctness", "figures"], metavar="SECTION", help="see above")
    parser.add_argument("--minutes", type=float, default=20.0, help="for all sections together")
    parser.add_argument("--wheels", type=Path, help="folder of wheels, installed for this command alone")
    parser.add_argument("--commit", help="what is measured, where the checkout cannot say it")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, at sizes that prove nothing about speed")
    parser.add_argument("--section", choices=[s.name for s in SECTIONS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out or ROOT / (TINY_OUT if arguments.tiny else OUT)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.section:
        return inside(next(s for s in SECTIONS if s.name == arguments.section), arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the section that runs is ended too
    began = time.monotonic()
    if not (sections := chosen(arguments.only, SECTIONS)):
        parser.error(f"--only {' '.join(arguments.only)}: sections are {', '.join(s.name for s in SECTIONS)}")
    with tempfile.TemporaryDirectory() as temporary:
        site = Path(temporary) if arguments.wheels else None
        if arguments.wheels:
            install(arguments.wheels, Path(temporary))
        environment = child_environment(site, arguments.tiny)
        check_machine(site, environment, arguments.tiny)
        results = run_all(sections, arguments, environment, began + 60 * arguments.minutes)
    fine = correct(results, sections)
    kept = ("status", "seconds", "device", "failures", "why", "said")
    write(
        arguments.out / "summary.json",
        {
            "correct": fine,
            "tiny": arguments.tiny,
            "command": ["first_contact.py", *sys.argv[1:]],
            "seconds": round(time.monotonic() - began, 1),
            "environment": next((r["environment"] for r in results.values() if "environment" in r), None),
            "sections": {name: {key: r[key] for key in kept if key in r} for name, r in results.items()},
        },
    )
    show(results, arguments.tiny)
    print(f"{'correct' if fine else 'NOT shown to be correct'}; {arguments.out / 'summary.json'}")
    return 0 if fine else 1


def run_all(
    sections: list[Section], arguments: argparse.Namespace, environment: dict[str, str], end: float
) -> dict[str, dict]:
    """Result of each section, by name; those for which no time is left are skipped, and say so."""
    results = {}
    for section in sections:
        left = end - time.monotonic()
        if left < LEAST:
            results[section.name] = skipped(section, arguments, f"--minutes {arguments.minutes:g} were over before it")
        else:
            limit = left if arguments.tiny else min(section.limit, left)  # those are a card's
            results[section.name] = run_section(section, arguments, environment, limit)
        status = results[section.name]
        print(f"{section.name}: {status['status']}, {status.get('seconds', 0):.0f} s", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
