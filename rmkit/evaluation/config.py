"""Every flag of `python -m rmkit.evaluate`, in one frozen dataclass; the text under a field is its `--help`."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from rmkit.config import DEMO, DEMO_MODEL, Layout, check_columns
from rmkit.errors import UserError, make_folder

RESULTS = ("metrics.json", "report.html", "scores.jsonl")

FLAGS = {
    "model.name": "--model",
    "against": "--against",
    "model.precision": "--precision",
    "data.test": "--data",
    "data.columns": "--columns",
    "data.max_length": "--max-length",
    "data.bad_rows": "--bad-rows",
    "data.overlong": None,
    "model.head": None,
    "model.objectives": None,
    "batch.max_tokens": "--max-tokens",
    "batch.layout": "--layout",
}
"""What the parts that training shares speak of -> what it is called here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    model: Annotated[str | None, arg(aliases=["--model.name"])] = None
    """Folder or hub id of a reward model: what rmkit.train leaves in FINAL/, or anyone's sequence classifier.
    By default runs/demo/FINAL, which is trained first if it is not there."""
    data: Annotated[tuple[str, ...], arg(aliases=["--data.test"])] = ()
    """Held-out preferences: named sets, hub ids (NAME or NAME:SPLIT) or paths, mixed.
    By default the embedded set for the demo model."""
    columns: tuple[str, ...] = ()
    """Fields of the rows under other names, NAME=FIELD: prompt=question chosen=best. NAME= leaves a field out."""
    against: str | None = None
    """A second reward model, compared on the same pairs by McNemar's test."""
    out: str | None = None
    """Folder for the results; by default runs/eval-MODEL."""
    overwrite: bool = False
    """Replace the results of an earlier evaluation."""
    export: tuple[Literal["rewardbench"], str] | None = None
    """Also write the pairs to a file, in the form that RewardBench reads offline: --export rewardbench FILE."""
    bad_rows: Literal["stop", "drop"] = "stop"
    """A row that cannot be read, or that the chat template refuses, stops the run, or is left out,
    counted and listed."""
    max_length: int | None = None
    """Longest conversation (prompt + response) in tokens; by default the model's context, at most 16384.
    Pairs with a longer side are left out, and counted."""
    max_tokens: int | None = None
    """Tokens that one process runs at once, by default up to 4096 on a CPU and 16384 on a GPU."""
    layout: Layout = "trie"
    """trie: shared prefixes computed once. packed: padding-free without sharing. padded: the usual rectangle."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the backbone; scores are float32 always. auto: bf16 on a GPU, fp32 on a CPU.
    bf16 on a CPU without bf16 instructions is computed in fp32, which is said."""
    end_token: Literal["last", "before-pad"] = "last"
    """Token that is scored where a model's pad token ends every conversation.
    last: that one. before-pad: the one before, as transformers and TRL do."""

    def __post_init__(self) -> None:
        check_columns(self.columns, "--columns")
        for flag, value in (("--max-length", self.max_length), ("--max-tokens", self.max_tokens)):
            if value is not None and value < 2:
                raise ValueError(f"{flag} {value}: set at least 2 tokens")

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """What is read, by field."""
        models = {"model.name": self.model, "against": self.against}
        return {"data.test": self.data} | {field: (name,) for field, name in models.items() if name is not None}

    def resolved(self) -> "EvaluateConfig":
        """The same with every default filled in; ValueError where there is none."""
        if self.model is not None and not self.data:
            raise ValueError("--data: name the preferences to judge the model on (a path, a hub id or a named set)")
        model = Path(self.model or DEMO_MODEL)
        name = model.parent.name if model.name == "FINAL" else model.name
        out = self.out or str(Path("runs") / f"eval-{name}")
        return dataclasses.replace(self, model=self.model or str(DEMO_MODEL), data=self.data or (DEMO,), out=out)

    def check(self) -> None:
        """What can be known before anything is loaded: ValueError where the run would fail in the end."""
        from rmkit.model.family import check_layout  # flags are read without torch
        from rmkit.model.folder import saved_head
        from rmkit.model.pretrained import load_config

        self._check_places()
        if self.against is not None:
            # The first model shows its faults when it is loaded, which is next; this one would hours later.
            try:
                architecture = load_config(self.against)
                check_layout(architecture, self.layout)
                head = saved_head(architecture, self.against)
            except UserError as error:
                raise (error.about("against") if error.field == "model.name" else error) from error
            if head is None:
                raise UserError("against", self.against, "it is a causal LM, which has no score head")

    def _check_places(self) -> None:
        """ValueError where the results cannot be written, or would take the place of something."""
        folder = Path(self.out)
        held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        if foreign := [name for name in held if name not in RESULTS]:
            raise UserError("out", folder, f"it holds {foreign[0]}, which no evaluation wrote; give another folder")
        if held and not self.overwrite:
            raise UserError("out", folder, "it holds results; give --overwrite to replace them, or another --out")
        places = [("out", folder, folder.parent)]
        if self.export:
            file = Path(self.export[1])
            taken = [*map(Path, self.data), *(Path(name) for name in (self.model, self.against) if name)]
            for read in (path.resolve() for path in taken if path.exists()):
                if file.resolve().is_relative_to(read):
                    raise UserError("export", f"rewardbench {file}", "it is what is read here; name another file")
            if file.exists() and not self.overwrite:
                raise UserError("export", f"rewardbench {file}", "it is there already; give --overwrite to replace it")
            places.append(("export", f"rewardbench {file}", file.parent))
        for field, value, parent in places:
            try:
                make_folder(parent)
            except OSError as error:
                raise UserError(field, value, f"the folder cannot be made ({error.strerror})") from error
            if not os.access(parent, os.W_OK):
                raise UserError(field, value, f"{parent} cannot be written to")
