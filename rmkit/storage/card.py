"""FINAL/README.md: the model card, as the hub shows it."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import rmkit
from rmkit.config import DEMO, TrainConfig, to_dict
from rmkit.model.family import FAMILIES

_ENVIRONMENT = Environment(
    loader=PackageLoader("rmkit.storage", "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)

VLLM = {"gemma3_text": """ --convert classify --hf-overrides '{"architectures": ["Gemma3ForCausalLM"]}'"""}
"""What vLLM needs besides, by model type: it finds no classifier of that name, and makes one of the language model"""

GIVEN_TO_READERS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
"""Model types that every reader of bench/results/interop.json was given; of others no reader is said to have been
run"""

NOT_OF_THE_MODEL = {("exp_name", ""), ("cache_dir", ""), ("resume", ""), ("overwrite", ""), ("lora", "keep")}
NOT_OF_THE_MODEL |= {("hub", "push"), ("hub", "private"), ("hub", "revision")}
"""Flags that do not change what is learned: the same model has the same card, whatever its run is called"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card tells of a training."""

    config: TrainConfig
    pairs: int
    """Trained on"""
    steps: int = 0
    seen: int = 0
    """Pairs of all steps, each as often as it was taken"""
    held_out_pairs: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows and pairs of both, by reason"""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Of the last evaluation"""
    floors: dict[str, float] = field(default_factory=dict)
    """Accuracy on the held-out pairs of what has not read the answers, by what it does: a model has to be above"""
    temperature: float | None = None
    """By which held-out pairs calibrate the margins"""
    calibration: dict[str, float] | None = None
    """`ece` and `brier` of the held-out pairs"""
    calibrated: dict[str, float] | None = None
    """The same with the temperature"""


def text(
    card: Card,
    *,
    model_type: str,
    dtype: str,
    row: int | None,
    max_length: int,
    labels: int = 1,
    adapter: str | None = None,
    posterior: int | None = None,
) -> str:
    """The card as Markdown. `row` is the label that is the reward, None where it is a sum of several; the weights are
    `dtype`. `labels` is how many there are, `adapter` the base of what is no whole model, `posterior` the bytes of
    the file of that name, None without one."""
    config = card.config
    base = _public(config.model.name)
    library = "transformers" if adapter is None else "peft"
    metadata: dict[str, Any] = {"pipeline_tag": "text-classification", "library_name": library}
    if _on_hub(config.model.name):
        metadata["base_model"] = base
        metadata["base_model_relation"] = "finetune" if adapter is None else "adapter"
    if sets := [each for each in config.data.train if _on_hub(each)]:
        metadata["datasets"] = sets
    metadata["tags"] = ["reward-model", "rmkit"]
    accuracy = card.metrics.get("rewards_eval/accuracies")
    low, high = (None, None) if accuracy is None else interval(accuracy, card.held_out_pairs)
    return _ENVIRONMENT.get_template("card.md.jinja").render(
        metadata="\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items()),  # JSON is YAML
        base="scratch, as rmkit's demo" if config.model.name == DEMO else _plain(base),
        version=rmkit.__version__,
        pairs=card.pairs,
        steps=card.steps,
        seen=card.seen,
        held_out_pairs=card.held_out_pairs,
        train=_plain(", ".join(map(_public, config.data.train)) or "memory"),
        test=_plain(", ".join(map(_public, config.data.test)) or "memory"),
        dropped=[(_plain(why), count) for why, count in card.dropped.items()],
        accuracy=accuracy,
        low=low,
        high=high,
        loss=card.metrics.get("loss/eval"),
        log_loss=plain_bt(config),
        floors=[(_plain(what), share) for what, share in card.floors.items()],
        temperature=card.temperature,
        calibration=card.calibration,
        calibrated=card.calibrated,
        posterior=posterior and _size(posterior),
        flags=_plain(" ".join(flags(config)) or "(all by default)"),
        max_length=max_length,
        model_type=model_type,
        dtype=dtype,
        row=row,
        labels=labels,
        known=model_type in FAMILIES,
        ran=model_type in GIVEN_TO_READERS,
        not_run="not run for this family, but for Qwen3",
        adapter=None if adapter is None else _public(adapter),
        vllm_flags=VLLM.get(model_type, ""),
    )


def plain_bt(config: TrainConfig) -> bool:
    """Whether the loss is the mean of -log of the probability that was given to what was preferred."""
    loss = config.loss
    return loss.name == "bt" and not (loss.center or loss.label_smoothing) and not config.model.objectives


def flags(config: TrainConfig) -> list[str]:
    """The flags that differ from their defaults, without those that say what is kept and where."""
    usual, given = to_dict(TrainConfig()), to_dict(config)
    found = []
    for part, value in given.items():
        held = value if isinstance(value, dict) else {"": value}
        before = usual[part] if isinstance(value, dict) else {"": usual[part]}
        for key, each in held.items():
            if each != before[key] and (part, key) not in NOT_OF_THE_MODEL:
                name = f"--{part}.{key}".rstrip(".").replace("_", "-")
                if isinstance(each, bool):  # the other way round, as tyro spells it
                    found.append(name if each else f"--{part}.no-{key}".replace("_", "-"))
                else:
                    shown = each if isinstance(each, list | tuple) else [each]
                    found.append(" ".join([name, *(_public(str(one)) for one in shown)]))
    return found


def interval(accuracy: float, pairs: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of so many pairs."""
    z = 1.959964
    middle = (accuracy + z * z / (2 * pairs)) / (1 + z * z / pairs)
    half = z / (1 + z * z / pairs) * math.sqrt(accuracy * (1 - accuracy) / pairs + (z / (2 * pairs)) ** 2)
    return middle - half, middle + half


def _size(count: int) -> str:
    """Bytes in MB, few of them in kB."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _on_hub(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _public(name: str) -> str:
    """A name as others may see it: of a path on this machine the last parts alone."""
    path = Path(name)
    if not (path.is_absolute() or path.exists()):
        return name
    return "/".join(path.parts[-2:]) if path.name == "FINAL" else path.name


def _plain(value: str) -> str:
    """On one line of a table, without what would end it."""
    return " ".join(value.split()).replace("|", "/")
