"""Every flag of `python -m rmkit.label`, in one frozen dataclass; the text under a field is its `--help`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from rmkit.config import DEMO_MODEL, Layout, check_columns
from rmkit.labelling.feedback import Feedback, Format, Pairing, number_of

STDIN = "-"

DEMO_FEEDBACK = Path("runs/demo/feedback.jsonl")

FLAGS = {
    "model.name": "--model",
    "model.precision": "--precision",
    "data.train": "SAMPLES",
    "data.columns": "--columns",
    "data.bad_rows": "--bad-rows",
    "data.max_length": "--max-length",
    "data.overlong": None,
    "model.head": None,
    "model.objectives": None,
    "batch.max_tokens": "--max-tokens",
    "batch.layout": "--layout",
}
"""Fields of the training configuration -> the flags of label; None where it has no such flag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig:
    samples: Annotated[Positional[str | None], arg(metavar="SAMPLES")] = None
    """Samples, prompts with their responses, or preferences: JSON, JSONL (.gz too), Parquet,
    - for standard input, or whatever --data.train of rmkit.train takes. By default embedded ones."""
    feedback_file: Annotated[Positional[str | None], arg(name="feedback-file", metavar="FEEDBACK")] = None
    """What is written: a JSON array where the name ends in .json, lines where it ends in .jsonl."""
    model: Annotated[str | None, arg(aliases=["--reward-model-path"], metavar="PATH")] = None
    """A folder that rmkit wrote, or any sequence classifier with 1 label, or 2 (reward: logit 1).
    By default, for the embedded samples, runs/demo/FINAL."""
    feedback: Annotated[Feedback, arg(aliases=["--feedback-type"])] = "scalar"
    """scalar: every sample with its reward. binary: and whether that reaches the threshold.
    pairwise: pairs of a prompt's samples. best: the best sample of each prompt."""
    pairing: Annotated[Pairing | None, arg(aliases=["--feedback-mode"])] = None
    """Pairs of a prompt: max (the default) takes the best and the worst, random neighbours in a
    random order, all every pair, min those with the smallest gap that reaches the threshold."""
    threshold: Annotated[str | None, arg(metavar="NUMBER|mean|median")] = None
    """binary: reward from which a sample is desirable, by default the median.
    pairwise: gap that a pair must exceed, by default 0."""
    min_confidence: Annotated[float | None, arg(metavar="P")] = None
    """pairwise: leave out, and count, pairs whose better side wins with a probability under P,
    by the temperature or the posterior in the model's folder, or both."""
    seed: int = 0
    """Draws the random pairs, and which of a pair is output_A."""
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """Written into the field split of every record."""
    format: Format = "halos"
    """Schema of the records. halos: as its labeller writes them.
    trl, openrlhf: prompt, chosen and rejected as messages, score_chosen, score_rejected."""
    columns: tuple[str, ...] = ()
    """Fields of the rows under other names, NAME=FIELD: prompt=question output=answer. NAME= leaves a field out."""
    bad_rows: Literal["stop", "drop"] = "stop"
    """A row that cannot be read, or that the chat template refuses, stops the run, or is left out,
    counted and listed."""
    max_tokens: Annotated[int | None, arg(metavar="INT")] = None
    """Tokens of one forward pass, by default up to 4096 on a CPU and 16384 on a GPU."""
    max_length: Annotated[int | None, arg(metavar="INT")] = None
    """Tokens of the longest conversation, by default the model's context, at most 16384.
    Longer ones are not scored, and counted."""
    layout: Layout = "trie"
    """trie: shared prefixes computed once. packed: padding-free without sharing.
    padded: the usual rectangle."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the backbone. auto: bf16 on a GPU, fp32 on a CPU.
    bf16 on a CPU without bf16 instructions is computed in fp32, which is said."""
    end_token: Literal["last", "before-pad"] = "last"
    """Where a model's pad token ends every conversation, as in many of TRL's, the token that is
    scored. last: that one. before-pad: the one before it, as transformers and TRL do."""
    resume: bool = False
    """Go on with a labelling that was interrupted."""
    overwrite: bool = False
    """Replace FEEDBACK, and what an interrupted labelling left."""

    def __post_init__(self) -> None:
        number_of(self.threshold, self.feedback)
        check_columns(self.columns, "--columns")
        if self.pairing is not None and self.feedback != "pairwise":
            raise ValueError(
                f"--pairing {self.pairing}: {self.feedback} feedback has no pairs; set --feedback pairwise"
            )
        sure = self.min_confidence
        if sure is not None and self.feedback != "pairwise":
            raise ValueError(f"--min-confidence {sure}: {self.feedback} feedback has no pairs; set --feedback pairwise")
        if sure is not None and not 0.5 <= sure < 1.0:
            raise ValueError(f"--min-confidence {sure}: set a probability from 0.5 to below 1, such as 0.75")
        for flag, value, low in (("--max-tokens", self.max_tokens, 2), ("--max-length", self.max_length, 2)):
            if value is not None and value < low:
                raise ValueError(f"{flag} {value}: set at least {low} tokens")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed {self.seed}: set a whole number from 0 to 2^63 - 1")
        if self.resume and self.overwrite:
            raise ValueError("--resume --overwrite: give one of the two: go on with the old scores, or delete them")

    @property
    def demo(self) -> bool:
        """Whether no SAMPLES are named, so that the embedded ones are labelled."""
        return self.samples is None

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """What is read, by field; samples that are gone are no hindrance where their copy is resumed."""
        samples = () if self.samples in (None, STDIN) else (self.samples,)
        named = {"data.train": samples, "model.name": () if self.model is None else (self.model,)}
        return {} if self.resume else named

    @property
    def keeps_fields(self) -> bool:
        """Whether the records keep all fields of a sample's row (`rmkit.labelling.feedback.scalar`)."""
        return self.feedback in ("scalar", "best") and self.format == "halos"

    @property
    def output(self) -> Path:
        return Path(self.feedback_file or DEMO_FEEDBACK)

    def resolved(self) -> "LabelConfig":
        """The configuration with the demo's defaults filled in; ValueError where FEEDBACK or --model is missing."""
        if self.demo:
            return dataclasses.replace(
                self,
                samples="demo:test",
                feedback_file=str(DEMO_FEEDBACK),
                model=self.model or str(DEMO_MODEL),
                overwrite=not self.resume,
            )
        if self.feedback_file is None:
            raise ValueError(f"FEEDBACK: name the file to write behind {self.samples}, such as feedback.json")
        if self.model is None:
            raise ValueError("--model: name a reward model, such as runs/NAME/FINAL of python -m rmkit.train")
        return self

    def check_output(self) -> None:
        """ValueError where FEEDBACK cannot be written, or would replace a file without --overwrite."""
        output = self.output
        if not output.name.endswith((".json", ".jsonl")):
            raise ValueError(f"FEEDBACK {output}: the name should end in .json (an array) or .jsonl (lines)")
        if not output.parent.is_dir():
            raise ValueError(f"FEEDBACK {output}: there is no folder {output.parent}")
        if output.is_dir():
            raise ValueError(f"FEEDBACK {output}: it is a folder")
        if self.samples != STDIN and output.exists() and Path(self.samples).exists() and output.samefile(self.samples):
            raise ValueError(f"FEEDBACK {output}: it is the file of the samples; name another one")
        if Path(self.model).is_dir() and output.resolve().is_relative_to(Path(self.model).resolve()):
            raise ValueError(f"FEEDBACK {output}: it would lie in the folder of the model; name another place")
        if output.exists() and not (self.overwrite or self.resume):
            raise ValueError(f"FEEDBACK {output}: it exists; give --overwrite to replace it, or another name")

    def contract(self) -> dict[str, Any]:
        """Everything the scores depend on: flags, and size and time of the input and of the model's files."""
        folder = Path(self.model)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return {
            "SAMPLES": identity(self.samples),
            "--model": [self.model, *([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files)],
            "--columns": list(self.columns),
            "--bad-rows": self.bad_rows,
            "--max-tokens": self.max_tokens,
            "--max-length": self.max_length,
            "--layout": self.layout,
            "--precision": self.precision,
            "--end-token": self.end_token,
        }


def identity(given: str) -> list[Any]:
    """What a change of the input is recognised by: path, size and time of a file; the name of anything else."""
    path = Path(given)
    if not path.is_file():
        return [given]
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
