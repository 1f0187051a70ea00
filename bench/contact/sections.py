"""The sections of first_contact.py, in their order, and what the process of one does.

Nothing here needs more than the standard library until a section runs: wheels may have to be installed before.
"""

import argparse
import importlib
import json
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Section:
    """One process: `run(tiny, seconds, leave, **given)` of a module, and the seconds it may take."""

    name: str
    module: str
    correctness: bool
    limit: float
    given: tuple[tuple[str, str], ...] = ()


SECTIONS = (
    Section(name="gpu_tests", module="contact.gpu_tests", correctness=True, limit=300),
    Section(name="attention", module="contact.attention_truth", correctness=True, limit=150),
    Section(name="ladder", module="contact.ladder", correctness=True, limit=240),
    Section(name="ceilings", module="contact.ceilings", correctness=False, limit=60),
    Section(name="steps-0.6b", module="contact.steps", correctness=False, limit=240, given=(("model", "0.6b"),)),
    Section(name="label", module="contact.label", correctness=False, limit=150),
    Section(name="steps-8b", module="contact.steps", correctness=False, limit=240, given=(("model", "8b"),)),
    Section(name="steps-1b", module="contact.steps", correctness=False, limit=180, given=(("model", "1b"),)),
    Section(name="loss", module="contact.loss", correctness=False, limit=120),
)


def chosen(only: list[str], sections: tuple[Section, ...]) -> list[Section]:
    """The sections that --only names: whole, by what comes before a dash, or as correctness or figures."""
    groups = {"correctness": True, "figures": False}
    taken = []
    for section in sections:
        names = {section.name, section.name.split("-")[0]}
        if any(name in names or groups.get(name) is section.correctness for name in only):
            taken.append(section)
    return taken


def write(file: Path, values: dict) -> None:
    """Whole or not at all: a process may be ended at any time."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    part.replace(file)


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def inside(section: Section, arguments: argparse.Namespace) -> int:
    """The section itself, in its own process."""
    began = time.monotonic()
    import torch

    from rmkit.runtime import environment

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = environment(device, 1)
    found["commit"] = arguments.commit or found["commit"]
    head = {"section": section.name, "status": "running", "tiny": arguments.tiny}
    head |= {"device": found["device"] if device.type == "cuda" else "cpu", "environment": found}

    def leave(result: dict, **more) -> None:
        write(arguments.out / f"{section.name}.json", {**head, "seconds": time.monotonic() - began, **result, **more})

    result: dict = {}

    def keep(partly: dict) -> None:
        result.update(partly)
        leave(result)

    try:
        run = importlib.import_module(section.module).run
        keep(run(tiny=arguments.tiny, seconds=60 * arguments.minutes - 5, leave=keep, **dict(section.given)))
    except SystemExit as error:  # a benchmark that refuses to time what is wrong
        result["failures"] = [*result.get("failures", []), str(error)]
    except Exception as error:
        leave(result, status="failed", why=f"{type(error).__name__}: {error}"[:2000])
        raise
    leave(result, status="wrong" if result.get("failures") else "done")
    return 0
