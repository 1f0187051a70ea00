"""Every flag of `python -m rmkit.inspect`, in one frozen dataclass; the text under a field is its `--help`."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from rmkit.config import DEMO, check_columns
from rmkit.errors import UserError, make_folder

RESULTS = ("inspect.json", "inspect.html", "suspects.jsonl", "kept.jsonl")

FLAGS = {
    "model.name": "--model",
    "data.train": "DATA",
    "data.test": "--test",
    "data.columns": "--columns",
    "data.max_length": "--max-length",
    "data.bad_rows": "--bad-rows",
    "data.overlong": None,
    "model.head": None,
    "model.objectives": None,
    "batch.max_tokens": None,
    "batch.layout": None,
}
"""What the parts that training shares speak of -> what it is called here."""

Write = Literal["drop", "weight", "target"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectConfig:
    data: Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")] = ()
    """Preference pairs: named sets, hub ids (NAME or NAME:SPLIT) or paths, mixed. By default the embedded set."""
    model: Annotated[str | None, arg(aliases=["--model.name"])] = None
    """A reward model (what rmkit.train leaves in FINAL/) or a causal LM, whose features tell which labels are suspect.
    One that was trained on these very pairs has seen their labels, and finds fewer."""
    test: Annotated[tuple[str, ...], arg(aliases=["--data.test"])] = ()
    """Held-out pairs: what they share with DATA is counted exactly, near prompts and answers by MinHash."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer that tokens are counted with; by default the model's, else the demo's."""
    columns: tuple[str, ...] = ()
    """Fields of the rows under other names, NAME=FIELD: prompt=question chosen=best. NAME= leaves a field out."""
    out: str | None = None
    """Folder for the results; by default runs/inspect-DATA."""
    overwrite: bool = False
    """Replace the results of an earlier inspection."""
    bad_rows: Literal["stop", "drop"] = "drop"
    """A row that cannot be read, or that the chat template refuses, stops the run, or is left out,
    counted and listed."""
    write: Write = "drop"
    """What kept.jsonl, a file for --data.train, makes of suspects. drop: they are left out.
    weight, target: they are kept, with the probability that their label is right as that.
    It is by the estimated noise; with --suspects by what the head alone says of a pair."""
    suspects: Annotated[int | None, arg(metavar="N")] = None
    """How many pairs are suspects, the worst.
    By default as many as the estimated label noise says, if their label is likely wrong."""
    pairs: Annotated[int, arg(metavar="N")] = 20_000
    """Most pairs that the model reads, and that words are counted in; 0: all.
    A larger set is sampled by whole prompts."""
    max_length: int | None = None
    """Longest conversation in tokens; longer ones lose their start.
    By default the model's context, at most 2048."""
    end_token: Literal["last", "before-pad"] = "last"
    """Token whose features are read where the model's pad token ends every conversation.
    last: that one. before-pad: the one before, as transformers and TRL do."""
    seed: int = 0
    """Draws the folds of cross-validation."""

    def __post_init__(self) -> None:
        check_columns(self.columns, "--columns")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"--max-length {self.max_length}: set at least 2 tokens")
        if self.pairs < 0 or 0 < self.pairs < MIN_PAIRS:
            raise ValueError(f"--pairs {self.pairs}: set at least {MIN_PAIRS}, or 0 for all")
        if self.suspects is not None and self.suspects < 0:
            raise ValueError(f"--suspects {self.suspects}: set 0 or more")
        if self.model is None:
            of_suspects = {
                "--suspects": self.suspects is not None,
                "--write": self.write != "drop",
                "--end-token": self.end_token != "last",
            }
            if flags := [name for name, given in of_suspects.items() if given]:
                raise ValueError(f"{flags[0]}: suspects are found with a model; give --model FINAL")

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """What is read, by field."""
        model = () if self.model is None else (self.model,)
        return {"data.train": self.data, "data.test": self.test, "model.name": model}

    def resolved(self) -> "InspectConfig":
        """The same with every default filled in."""
        data = self.data or (DEMO,)
        first = Path(data[0].rstrip("/"))
        name = first.parent.name if first.stem in ("train", "test") and first.parent.name else first.stem
        return dataclasses.replace(self, data=data, out=self.out or str(Path("runs") / f"inspect-{name or 'data'}"))

    def check(self) -> None:
        """ValueError where the results cannot be written, or would take the place of something."""
        folder = Path(self.out)
        if folder.exists() and not folder.is_dir():
            raise UserError("out", folder, "it is a file; give a folder")
        held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        if foreign := [name for name in held if name not in RESULTS]:
            raise UserError("out", folder, f"it holds {foreign[0]}, which no inspection wrote; give another folder")
        given = [path.resolve() for name in (*self.data, *self.test) if (path := Path(name)).exists()]
        if read := [path for path in given if path.is_relative_to(folder.resolve())]:
            raise UserError("out", folder, f"it holds {read[0].name}, which is read here; give another folder")
        if held and not self.overwrite:
            raise UserError("out", folder, "it holds results; give --overwrite to replace them, or another --out")
        try:
            make_folder(folder.parent)
        except OSError as error:
            raise UserError("out", folder, f"the folder cannot be made ({error.strerror})") from error
        if not os.access(folder.parent, os.W_OK):
            raise UserError("out", folder, f"{folder.parent} cannot be written to")


MIN_PAIRS = 20
"""Fewer pairs than these cannot be split into folds that say anything"""
