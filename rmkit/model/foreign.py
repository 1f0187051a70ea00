"""Reward models as other toolkits save them: HALOs' pickled classifiers, OpenRLHF's RewardModel, as plain tensors.

Only `python -m rmkit.convert` reads them, because its user asked for it: a pickle can run code, so it is loaded with
`weights_only=True`, which takes tensors and plain containers alone.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

from rmkit.errors import UserError, brief
from rmkit.model.family import FAMILIES, check_family, tested

HEADS = ("score.weight", "value_head.weight")
"""Names of a head without bias: HALOs and OpenRLHF since 0.7 have the first, OpenRLHF before the second. A config.json
may name another (`value_head_prefix`)."""

LEFT_OUT = ("lm_head.", "rotary_emb.inv_freq")
"""What a checkpoint may hold besides: a language model's head, and a buffer of older transformers"""


def read(folder: Path) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """Configuration and weights of a folder as transformers' classifier has them. UserError where they are not whole,
    not those of a reward model, or of a family that rmkit does not take."""
    described = _json(folder / "config.json")
    try:
        config = AutoConfig.for_model(**{"model_type": "", **described})
    except Exception as error:  # whatever a library says of values that it does not expect
        raise UserError("source", folder, f"its config.json cannot be used ({brief(error)})") from error
    try:
        check_family(config, str(folder))
        if not tested(config):
            hint = f"it is a {config.model_type}; those of {', '.join(FAMILIES)} are converted"
            raise UserError("model.name", folder, hint)
    except UserError as error:
        raise error.about("source") from error
    held = {name: tensor for name, tensor in _tensors(folder).items() if not any(part in name for part in LEFT_OUT)}
    head = f"{described.get('value_head_prefix', '')}.weight"
    names = [name for name in (head, *HEADS) if name in held]
    if not names:
        kind = ", ".join(map(str, described.get("architectures") or ["no class"]))
        hint = f"no head was found ({' or '.join(HEADS)}); it is saved as {kind}"
        raise UserError("source", folder, hint, "give a reward model of HALOs or OpenRLHF")
    held["score.weight"] = held.pop(names[0])
    config.num_labels = held["score.weight"].shape[0]
    _check_whole(config, held, folder)
    return config, held


def unread(config: PretrainedConfig) -> str | None:
    """What a RewardModel's config.json says that no classifier can hold, in words; None where it says nothing."""
    mean, std = getattr(config, "mean", None), getattr(config, "std", None)
    if mean is None and std is None:
        return None
    return f"OpenRLHF's mean {mean} and std {std}, which it may normalise rewards by, are not applied: rewards are raw"


def _check_whole(config: PretrainedConfig, held: dict[str, Tensor], folder: Path) -> None:
    """UserError where the tensors are not exactly those of the classifier."""
    with torch.device("meta"):
        wanted = AutoModelForSequenceClassification.from_config(config).state_dict()
    for name in sorted(wanted.keys() | held.keys()):
        here, there = (tuple(d[name].shape) if name in d else None for d in (held, wanted))
        if here != there:
            shown = ("absent" if s is None else " x ".join(map(str, s)) for s in (here, there))
            hint = "{} is {} and should be {}".format(name, *shown)
            raise UserError("source", folder, f"its weights are not those of its config.json: {hint}")


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, or else of its pickles, by name."""
    for stem, ending, load in (("model", "safetensors", load_file), ("pytorch_model", "bin", _unpickled)):
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            files = _parts(index, f".{ending}")
        elif (folder / f"{stem}.{ending}").is_file():
            files = [folder / f"{stem}.{ending}"]
        else:
            continue
        held: dict[str, Tensor] = {}
        for file in files:
            try:
                held |= load(file)
            except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
                hint = f"{file.name} cannot be read ({brief(error)})"
                raise UserError("source", folder, hint) from error
        return held
    raise UserError("source", folder, "it holds neither pytorch_model.bin nor model.safetensors")


def _parts(index: Path, ending: str) -> list[Path]:
    """The files that an index names; UserError where one is not beside it."""
    try:
        names = sorted(set(_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError("source", index.parent, f"{index.name} names no files") from error
    for name in names:
        if not isinstance(name, str) or not name.endswith(ending) or set(name) & set("/\\\0"):
            raise UserError("source", index.parent, f"{index.name} names {name!a}, need a {ending} beside it")
    return [index.parent / name for name in names]


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Tensors of a pickle, with torch's loader that runs nothing. HALOs' `optimizer.pt` has its own place and form."""
    held = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(held, dict) or not all(isinstance(v, Tensor) for v in held.values()):
        raise ValueError("it holds something else than tensors by name")
    return held


def _json(file: Path) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("source", file.parent, f"its {file.name} cannot be read ({brief(error)})") from error
    return held
