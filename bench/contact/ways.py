"""The ways to train each model that steps.py measures, the most telling first: the time may not suffice for all."""

import dataclasses
from dataclasses import dataclass
from importlib.util import find_spec

from rmkit.config import ModelConfig, OptimConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Way:
    """What a training is told, beside its data; `needs` GiB of memory at the peak."""

    name: str
    needs: float
    layout: str = "trie"
    compiled: bool = False
    recomputed: bool = False
    tokens: int = 16384
    states: str = "fp32"
    weights: str = "fp32"
    rank: int = 0
    """Of LoRA; 0 trains all weights"""
    kernels: str = "auto"
    deterministic: bool = False
    trl: bool = False
    """TRL's RewardTrainer instead, in bf16, 4 pairs at a time"""


# What they need: peaks of the dry-CUDA step for 8B; else 16 bytes a parameter, and 2.3 MB (0.6B) or 2.0 (1B) a token.
WAYS = {
    "0.6b": (
        Way(name="trie", needs=47),
        Way(name="trie compiled", needs=47, compiled=True),
        Way(name="packed", needs=47, layout="packed"),
        Way(name="padded", needs=60, layout="padded"),
        Way(name="trl", needs=60, layout="padded", trl=True),
        Way(name="trie recomputed", needs=25, recomputed=True),
        Way(name="trie deterministic", needs=47, deterministic=True),
        Way(name="trie, reference kernels", needs=47, kernels="reference"),
    ),
    "1b": (
        Way(name="trie", needs=53),
        Way(name="trie compiled", needs=53, compiled=True),
        Way(name="padded", needs=65, layout="padded"),
        Way(name="trl", needs=65, layout="padded", trl=True),
        Way(name="trie recomputed", needs=30, recomputed=True),
        Way(name="packed", needs=53, layout="packed"),
    ),
    "8b": (
        Way(name="bf16 weights, 8bit, recomputed", needs=52, recomputed=True, weights="bf16", states="8bit"),
        Way(
            name="bf16 weights, 8bit, recomputed, compiled",
            needs=52,
            recomputed=True,
            compiled=True,
            weights="bf16",
            states="8bit",
        ),
        Way(name="fp32, recomputed", needs=126, recomputed=True),
        Way(name="fp32, recomputed, 8k tokens", needs=120, recomputed=True, tokens=8192),
        Way(name="LoRA 64, recomputed", needs=65, recomputed=True, weights="bf16", rank=64),
        Way(name="bf16 weights, 8bit, 8k tokens", needs=100, weights="bf16", states="8bit", tokens=8192),
        Way(
            name="padded, bf16 weights, 8bit, recomputed",
            needs=60,
            layout="padded",
            recomputed=True,
            weights="bf16",
            states="8bit",
        ),
    ),
}


def _has(config: type, field: str) -> bool:
    return field in {each.name for each in dataclasses.fields(config)}


def missing_flags(way: Way) -> str | None:
    """What this checkout or this machine has not got for a way; None where it has all."""
    if way.trl:
        return None if find_spec("trl") else "trl is not installed"
    if way.rank and not find_spec("peft"):
        return "peft is not installed"
    asked = {
        "--model.compile": way.compiled and not _has(ModelConfig, "compile"),
        "--model.weights": way.weights != "fp32" and not way.rank and not _has(ModelConfig, "weights"),
        "--deterministic": way.deterministic and not _has(TrainConfig, "deterministic"),
        "--optim.states": way.states != "fp32" and not _has(OptimConfig, "states"),
    }
    missing = [flag for flag, lacking in asked.items() if lacking]
    return f"this checkout has no {', '.join(missing)}" if missing else None


def flags_of(way: Way) -> list[str]:
    """Flags of `python -m rmkit.train` for a way, every choice written out: no auto decides what is measured."""
    flags = ["--batch.max-tokens", str(way.tokens), "--model.kernels", way.kernels]
    if _has(ModelConfig, "compile"):
        flags += ["--model.compile", "on" if way.compiled else "off"]
    if _has(ModelConfig, "weights") and not way.rank:  # LoRA's base: as its checkpoint is, bf16
        flags += ["--model.weights", way.weights]
    flags += ["--deterministic"] if way.deterministic else []
    if _has(OptimConfig, "states"):
        flags += ["--optim.states", way.states]
    if ModelConfig.__dataclass_fields__["gradient_checkpointing"].type is bool:
        flags += ["--model.gradient-checkpointing"] if way.recomputed else []
    else:
        flags += ["--model.gradient-checkpointing", "on" if way.recomputed else "off"]
    return [*flags, *(["--lora.rank", str(way.rank)] if way.rank else [])]
