"""What a saved model says of its own scores: posterior.safetensors, and the key `trust` of rmkit.json.

Beside them the classifier stays an ordinary one. rmkit.json holds the checksum of the posterior, which every later load
compares; without the file a model scores as ever, and gives no standard errors.
"""

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rmkit.errors import UserError, brief
from rmkit.model.posterior import Posterior
from rmkit.model.probability import probability
from rmkit.storage.checksums import sha256

FILE = "posterior.safetensors"
TENSORS, NUMBERS = ("directions", "precision", "mean"), ("rest", "prior", "factor")


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What the scores of a model are worth."""

    temperature: float | None = None
    """Of p = sigmoid(margin / T); None where held-out pairs did not tell it"""
    temperature_with_se: float | None = None
    """Of p = sigmoid(margin / sqrt(T^2 + pi se^2 / 8)); None without a posterior too"""
    held_out_pairs: int = 0
    """That the temperatures are fitted on"""
    sampled_pairs: int = 0
    """Training pairs that the posterior is summed over"""
    training_pairs: int = 0
    """Training pairs that they stand for"""
    posterior: Posterior | None = None

    def probability(self, margin: np.ndarray, se: np.ndarray | None = None) -> np.ndarray:
        """The probability that the first of two responses is preferred; with its standard error, where there is one."""
        if se is None:
            return probability(margin, 0.0, self.temperature or 1.0)
        return probability(margin, se, self.temperature_with_se or 1.0)


def missing(trust: Trust | None, name: str) -> str:
    """What the folder of a model does not say of its scores, in words; "" where it says all."""
    posterior = trust is not None and trust.posterior is not None
    temperature = trust is not None and trust.temperature is not None
    if posterior:
        return "" if temperature else f"{name} has no temperature: a margin counts as log odds as it is"
    gone = "no standard errors"
    if not temperature:
        return f"{name} has neither posterior nor temperature: {gone}, no probabilities"
    return f"{name} has no posterior: {gone}, and probabilities are by its temperature alone"


def save(trust: Trust, folder: Path) -> list[Path]:
    """Put `trust` into a folder that holds an rmkit.json; the paths of the files that are written."""
    files, held = [folder / "rmkit.json"], _numbers(trust)
    posterior = trust.posterior
    if posterior is not None:
        hidden, kept = posterior.directions.shape
        described = {
            "what": f"Gaussian posterior of the score head: {kept} of {hidden} directions of its precision",
            **{name: getattr(posterior, name) for name in NUMBERS},
            "sampled_pairs": trust.sampled_pairs,
            "training_pairs": trust.training_pairs,
        }
        # One key: safetensors writes several in any order, and the same training is to leave the same bytes.
        metadata = {"posterior": json.dumps(described)}
        save_file({name: getattr(posterior, name) for name in TENSORS}, folder / FILE, metadata=metadata)
        files.append(folder / FILE)
        held["posterior"] = {"file": FILE, "sha256": sha256(folder / FILE), "hidden": hidden, "directions": kept}
    contract = json.loads(files[0].read_text())
    files[0].write_text(json.dumps({**contract, "trust": held}, indent=2) + "\n")
    return files


def _numbers(trust: Trust) -> dict[str, Any]:
    return {field.name: getattr(trust, field.name) for field in fields(trust) if field.name != "posterior"}


def load(folder: Path, hidden: int) -> Trust | None:
    """What `save` put into a folder, for a model of so many hidden units; None where there is nothing.

    Raises UserError where the posterior is not the one that rmkit.json names, or cannot be read.
    """
    file = folder / "rmkit.json"
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_text()).get("trust")
        if held is None:
            return None
        trust = Trust(**{field.name: held[field.name] for field in fields(Trust) if field.name != "posterior"})
        given = (trust.temperature, trust.temperature_with_se)
        if not all(t is None or (t > 0.0 and math.isfinite(t)) for t in given):
            raise ValueError("a temperature is no positive number")
        named = held.get("posterior")
        wanted = None if named is None else str(named["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError("", file, f"its trust cannot be read ({brief(error)}); restore the file") from error
    if wanted is None or not (folder / FILE).is_file():
        return trust
    return replace(trust, posterior=_posterior(folder / FILE, wanted, hidden))


def _posterior(file: Path, wanted: str, hidden: int) -> Posterior:
    mend = "restore the file, or delete it: the model then gives no standard errors"
    if sha256(file) != wanted:
        raise UserError("", file, f"it is not the one that rmkit.json names (its checksum differs); {mend}")
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in TENSORS}
            described = json.loads(opened.metadata()["posterior"])
            numbers = {name: float(described[name]) for name in NUMBERS}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError("", file, f"it cannot be read ({brief(error)}); {mend}") from error
    kept = len(tensors["precision"])
    shapes = {"directions": (hidden, kept), "precision": (kept,), "mean": (hidden,)}
    if any(tensors[name].shape != shape or tensors[name].dtype != torch.float64 for name, shape in shapes.items()):
        raise UserError("", file, f"it does not fit a model of {hidden} hidden units; {mend}")
    return Posterior(**tensors, **numbers)
