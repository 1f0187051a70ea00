"""What a hostile case runs inside: no write beyond its folder, no pickle, no code of a model's; its words are read."""

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmkit import cli, scorer
from rmkit.data import demo

TOKENIZER = demo.tokenizer()
BOX = "\u2500\u2502\u256d\u256e\u2570\u256f"
LENGTH = 256


class Fault(Exception):
    """What no case may do."""


class Reached(BaseException):
    """The place where the heavy part would begin; no program catches it."""


class Scorer:
    """Scores by length alone, of sequences that the programs have made as they always do."""

    tokenizer, max_length, layout, max_tokens, trust = TOKENIZER, LENGTH, "trie", 4096, None
    posterior = scorer.Scorer.posterior

    def score_tokens(self, sequences: list[np.ndarray], group: np.ndarray) -> np.ndarray:
        return np.array([len(sequence) % 7 for sequence in sequences], np.float32)


def raise_fence(scratch: Path) -> list[str]:
    """From here on this process writes within `scratch` only: other writes are refused, and listed in what is returned,
    as is every pickle that is read."""
    seen: list[str] = []
    inside = (str(scratch), "/proc/self/", "/dev/null", "/dev/shm/")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            seen.append(f"a pickle names {args[0]}.{args[1]}")
            return
        if event == "open":
            path, _, flags = args
            named = [(path, -1)] if (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) else []
        elif event in ("os.remove", "os.rmdir", "shutil.rmtree"):
            named = [args[:2]]
        elif event in ("os.mkdir", "os.link", "os.symlink"):
            named = [(args[0] if event == "os.mkdir" else args[1], args[-1])]
        elif event == "os.truncate":
            named = [(args[0], -1)]
        elif event == "os.rename":
            named = [(args[0], args[2]), (args[1], args[3])]
        else:
            return
        for path, place in named:
            if isinstance(path, int):
                continue
            whole = os.path.normpath(os.path.join(_here(place), os.fsdecode(path)))
            if not whole.startswith(inside):
                seen.append(f"{event} {whole!a}")
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(path))

    def load(*_: Any, **__: Any) -> None:
        seen.append("torch.load was called")
        raise OSError("torch.load")

    torch.load = load
    sys.addaudithook(hook)
    return seen


def _here(place: int | None) -> str:
    """The folder that a relative path starts from: an opened one, or the working directory."""
    try:
        return os.getcwd() if place in (None, -1) else os.readlink(f"/proc/self/fd/{place}")
    except OSError:
        return "/nowhere"


def told(work: Callable[[], int]) -> tuple[int, str]:
    """The exit status of a program's entry, and all its words; the output's encoding is as strict as a terminal's."""
    out, err = io.BytesIO(), io.BytesIO()
    streams = [
        io.TextIOWrapper(out, "utf-8", errors="strict", write_through=True),
        io.TextIOWrapper(err, "utf-8", errors="backslashreplace", write_through=True),
    ]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            status = work()
        except Reached:
            status = 0
        except SystemExit as left:
            status = left.code or 0
    return status, out.getvalue().decode() + err.getvalue().decode()


def run(work: Callable[..., int]) -> Callable[[], int]:
    """`work(console)` as every program runs it."""
    return lambda: cli.run(work, "interrupted")


def outcome(status: int, words: str, needle: str = "") -> str:
    """ "accepted" or "refused"; Fault where the status is none of ours or the words do not name what was wrong."""
    said = re.sub(" +", " ", words.translate(dict.fromkeys(map(ord, BOX)))).strip()
    if "Traceback (most recent" in said:
        raise Fault(f"a traceback is shown: {said}")
    if status == 0:
        return "accepted"
    if status != 2:
        raise Fault(f"exit status {status}: {said}")
    if not said.strip():
        raise Fault("refused without a word")
    if needle and needle not in "".join(said.split()):
        raise Fault(f"the refusal does not name {needle}: {said}")
    # What tyro says of a command line shows it as it was typed.
    if needle and (found := [c for c in said if ord(c) < 32 and c not in "\n\t"]):
        raise Fault(f"control characters {found[:4]!a} are shown as they are: {said!a}")
    return "refused"
