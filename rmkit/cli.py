"""The command `rmkit PROGRAM ...`, and the error handling that every program runs its work in.

It starts quickly: torch and the like are imported when a program is named and its flags have been read.
"""

import ast
import contextlib
import importlib
import importlib.util
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

import rmkit
from rmkit import errors, terminal

PROGRAMS = {
    "train": "train a Bradley-Terry reward model on preference pairs",
    "label": "label completions with a trained reward model",
    "evaluate": "judge a reward model on held-out preference pairs",
    "inspect": "look at preference pairs: floors, duplicates, leaks, tokens, suspect labels",
    "check": "check that a folder or a running server gives the scores that rmkit gave",
    "convert": "turn a reward model of HALOs or OpenRLHF into an ordinary classifier",
    "runs": "list the runs, or put several on one page",
}
"""Name -> what it does. Each is a module of rmkit with a `run_program` that takes its flags."""

CONFIGS = {
    "train": "rmkit.config.TrainConfig",
    "label": "rmkit.labelling.config.LabelConfig",
    "evaluate": "rmkit.evaluation.config.EvaluateConfig",
    "inspect": "rmkit.inspection.config.InspectConfig",
    "check": "rmkit.check.CheckConfig",
    "convert": "rmkit.convert.ConvertConfig",
    "runs": "rmkit.pages.config.RunsConfig",
}
"""Name -> the dataclass of its flags, which can be imported without torch."""

WAITING = "passive"
"""How threads of a program wait for each other, unless the user sets OMP_WAIT_POLICY: they sleep. By default they spin,
and where another process keeps the cores busy, each waits for the other's turn (bench/threads_bench.py). OpenMP reads
it when torch is loaded, so every program sets it first; `import rmkit` and `fit` leave it to their user."""


def main(arguments: list[str] | None = None) -> int:
    """Run the program that the first argument names with the other arguments; its exit status, 2 for an unknown one."""
    name, *others = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help"):
        print("usage: rmkit PROGRAM [FLAGS], or python -m rmkit PROGRAM [FLAGS]\n")
        for each, purpose in PROGRAMS.items():
            print(f"  {each:<10} {purpose}")
        print("\nrmkit PROGRAM --help lists the flags of one.")
        return 0
    if name == "--version":
        print(f"rmkit {rmkit.__version__}")
        return 0
    if name not in PROGRAMS:
        problem = f"{name}: there is no such program" if name else "no program is named"
        terminal.refuse(f"{problem}; give one of {', '.join(PROGRAMS)}, such as rmkit {next(iter(PROGRAMS))} --help")
        return 2
    try:
        flags = parsed(name, others)  # --help or a mistyped flag ends here
        if (mistyped := unknown_name(flags)) is not None:
            terminal.refuse(mistyped)
            return 2
        os.environ.setdefault("OMP_WAIT_POLICY", WAITING)
        return importlib.import_module(f"rmkit.{name}").run_program(flags)
    except KeyboardInterrupt:
        terminal.refuse("stopped before anything was read or written")
        return 130


def parsed(program: str, arguments: list[str] | None = None) -> Any:
    """The flags of a program as its configuration; --help and a mistyped flag print their answer and exit.

    The text above the flags is the program's docstring, read without importing what it is made of.
    """
    import tyro

    module, _, name = CONFIGS[program].rpartition(".")
    source = importlib.util.find_spec(f"rmkit.{program}").loader.get_source(f"rmkit.{program}")
    return tyro.cli(
        getattr(importlib.import_module(module), name),
        args=arguments,
        prog=f"python -m rmkit.{program}",
        description=ast.get_docstring(ast.parse(source)),
    )


def unknown_name(flags: Any) -> str | None:
    """What is wrong with a name of data or of a model that can stand for nothing, told before the libraries are loaded;
    None where there is no such name. One of several ranks is silent: the program speaks for all of them."""
    if not hasattr(flags, "reads") or os.environ.get("WORLD_SIZE", "1") != "1":
        return None
    from rmkit.data import names

    try:
        for field, given in flags.reads.items():
            for name in given:
                (names.check_data if field.startswith("data.") else names.check_model)(name, field)
    except (ValueError, OSError) as error:
        return errors.told(error, getattr(importlib.import_module(type(flags).__module__), "FLAGS", {}))
    return None


def run(
    work: Callable[[Console], int],
    interrupted: str,
    again: str = "Start the command again",
    flags: errors.Flags | None = None,
) -> int:
    """Run `work` with torch, alone or on one of several ranks; its exit status as `simply` gives it, and 1 with `again`
    (what to do) where another process was lost. `flags`: the program's flags by field."""
    import torch
    import torch.distributed as dist

    from rmkit.distributed import collectives, launch
    from rmkit.runtime import full, keep_freed

    launch.grow_segments()
    if not torch.cuda.is_available():
        keep_freed()

    def quietly(console: Console) -> int:
        try:
            with quiet(console):
                return work(console)
        except errors.AgreedError as error:
            if collectives.rank() == 0:
                terminal.refuse(error.told(flags or {}))
            if dist.is_initialized():
                dist.barrier()  # the launcher ends all when the first one leaves, so nobody does before it is told
            return 2
        except (RuntimeError, MemoryError) as error:
            if (whose := full(error)) is not None:
                raise _full(whose) from error
            before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, which would come before our word
            if (told := launch.lost(error)) is None:
                signal.signal(signal.SIGTERM, before)
                raise
            terminal.refuse(f"{told} {again}")
            return 1

    return simply(quietly, interrupted, flags)


def simply(work: Callable[[Console], int], interrupted: str, flags: errors.Flags | None = None) -> int:
    """Run `work`, torch or not; its exit status: 2 with a boxed sentence on a user's error, 130 with `interrupted` on
    Ctrl-C."""
    try:
        return work(Console(emoji=False))  # a file may be called :smile:
    except (ValueError, OSError) as error:  # OSError: a full disk, a folder that is not ours
        terminal.refuse(errors.told(error, flags or {}))
        return 2
    except KeyboardInterrupt:
        terminal.refuse(interrupted)
        return 130


def _full(whose: str) -> errors.UserError:
    """What a program says when memory is full; a training knows more of what it asked for (rmkit.training.plan)."""
    lower = f"lower {errors.flag('batch.max_tokens')}, the tokens of one pass"
    return errors.UserError("", None, f"the memory of the {whose} is full", lower, "end what else runs on it")


@contextlib.contextmanager
def quiet(console: Console) -> Iterator[None]:
    """Within the block other libraries show no progress bars in a log; afterwards those of `datasets` are on again."""
    import datasets
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    bars = not datasets.are_progress_bars_disabled()
    if not console.is_terminal:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if bars:
            datasets.enable_progress_bars()
