"""Turn a reward model of HALOs (pytorch_model.bin) or of OpenRLHF (RewardModel) into an ordinary sequence classifier.

Reads SOURCE, also a pickle (with weights_only=True: nothing in it is run), and leaves OUT with safetensors, which every
program here and every reader of Hugging Face's classifiers takes. Weights and dtype stay as they are.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from rmkit import cli
from rmkit.errors import UserError, make_folder
from rmkit.terminal import Terminal

FLAGS = {"source": "SOURCE", "out": "OUT", "model.name": "SOURCE"}

TOKENIZER = ("tokenizer*", "special_tokens_map.json", "chat_template*", "added_tokens.json", "vocab.json", "merges.txt")
"""Files that are copied as they are"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """Folder of the model: config.json, weights and tokenizer."""
    out: Annotated[Positional[str], arg(metavar="OUT")]
    """New folder for the classifier."""

    def __post_init__(self) -> None:
        if not os.path.isdir(self.source):  # False for a name that is too long, where pathlib raises
            raise ValueError(f"SOURCE {self.source}: there is no such folder")
        if os.path.lexists(self.out):
            raise ValueError(f"OUT {self.out}: it is there already; name a new folder")


def convert(config: ConvertConfig, console: Console) -> int:
    """Convert as `config` says; the exit status. Raises UserError with a sentence."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from rmkit.model import foreign
    from rmkit.storage.atomic import written_folder
    from rmkit.storage.export import amend, both_spellings, with_labels

    say = Terminal(console, True).say
    source, out = Path(config.source), Path(config.out)
    architecture, weights = foreign.read(source)
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(architecture)
    classifier.load_state_dict(weights, assign=True)
    classifier.config.problem_type = "regression"  # servers leave the score as it is
    classifier.config.dtype = next(iter(weights.values())).dtype
    labels = [f"LABEL_{i}" for i in range(architecture.num_labels)]
    try:
        make_folder(out.parent)
        with written_folder(out) as partial:
            classifier.save_pretrained(partial)
            amend(partial / "config.json", lambda old: both_spellings(with_labels(old, labels)))
            for pattern in TOKENIZER:
                for file in source.glob(pattern):
                    if file.is_file():
                        shutil.copyfile(file, partial / file.name)
    except OSError as error:
        raise UserError("out", out, f"it could not be written ({error.strerror})") from error
    if note := foreign.unread(architecture):
        say(note)
    if not (out / "tokenizer_config.json").is_file():
        say(f"{source} has no tokenizer: put that of its base model into {out}")
    count = sum(tensor.numel() for tensor in weights.values())
    say(f"{out}: {type(classifier).__name__} with {len(labels)} label{'s' * (len(labels) > 1)}, {count:,} parameters")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags and convert; 2 with a boxed sentence on a user's error, 130 on Ctrl-C."""
    return run_program(cli.parsed("convert", arguments))


def run_program(flags: ConvertConfig) -> int:
    """Convert as the parsed flags say; the exit status of `main`."""
    return cli.run(lambda console: convert(flags, console), "stopped: nothing was written", flags=FLAGS)


if __name__ == "__main__":
    sys.exit(cli.main(["convert", *sys.argv[1:]]))
