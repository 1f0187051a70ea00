"""A PEFT adapter folder: what it belongs to and what it asks of peft, read before any weights are.

Only plain LoRA with a head is taken, and all of it: whatever else an adapter_config.json asks for is refused by name.
"""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from rmkit.config import DEMO
from rmkit.data import hub
from rmkit.errors import UserError, brief

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT's files have in front of the classifier's names"""
HEAD = f"{PREFIX}score.weight"

PLAIN = (
    *("peft_type", "task_type", "base_model_name_or_path", "peft_version", "auto_mapping", "inference_mode"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights"),
    *("target_modules", "layers_to_transform", "modules_to_save"),
)
"""Keys of adapter_config.json that plain LoRA may set; any other, set to something, changes what is computed."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A PEFT adapter folder, read but for its weights."""

    name: str
    """As the user gave it"""
    folder: Path
    base: str
    """Folder or hub id of the model that it belongs to"""
    config: Any
    """peft's LoraConfig"""
    shapes: dict[str, tuple[int, ...]]
    """Of its tensors, by their names in the file"""

    @property
    def labels(self) -> int | None:
        """Rows of the head that it brings; None where it brings none."""
        return self.shapes[HEAD][0] if HEAD in self.shapes else None


def adapter_in(name: str) -> Adapter | None:
    """The adapter that a folder or hub id holds; None where there is no adapter_config.json.

    Raises ValueError where it is not plain LoRA on a model, or where peft is not installed.
    """
    folder = None if name == DEMO else _folder(name)
    if folder is None:
        return None
    if [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        raise UserError(
            "model.name", name, f"it holds the weights of a model and an {CONFIG}; move one of the two elsewhere"
        )
    try:
        held = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base = held["base_model_name_or_path"]
        if not isinstance(base, str) or not base:
            raise ValueError("base_model_name_or_path names no model")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError("model.name", name, f"its {CONFIG} cannot be read ({brief(error)})") from error
    config = _plain(held, name, peft_for("model.name", name, "it is an adapter folder: "))
    if base != DEMO and _folder(base) is not None:
        hint = f"its base {base} is an adapter itself; merge that one first, with peft or --lora.keep"
        raise UserError("model.name", name, hint)
    try:
        with safe_open(folder / WEIGHTS, "pt") as tensors:
            shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError("model.name", name, f"its {WEIGHTS} cannot be read ({brief(error)})") from error
    return Adapter(name=name, folder=folder, base=base, config=config, shapes=shapes)


def tokenizer_of(name: str) -> str:
    """Where the tokenizer of a model is: an adapter folder may leave it to its base."""
    adapter = adapter_in(name)
    if adapter is None:
        return name
    return str(adapter.folder) if (adapter.folder / "tokenizer_config.json").is_file() else adapter.base


def _folder(name: str) -> Path | None:
    """The folder with adapter_config.json that a folder or hub id names; None where there is none."""
    if Path(name).is_dir():
        return Path(name) if (Path(name) / CONFIG).is_file() else None
    return _downloaded(name)


@functools.cache
def _downloaded(name: str) -> Path | None:
    """The same of a hub id, without anything that is no tensor, text or tokenizer."""
    hub.settle()
    try:
        if cached_file(name, CONFIG, _raise_exceptions_for_missing_entries=False) is None:
            return None
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except (OSError, ValueError):  # no such model, or no network: whoever reads its configuration says so
        return None


def peft_for(field: str, value: object, why: str = "") -> ModuleType:
    """The library, which the field of the configuration needs; UserError where it is not installed."""
    try:
        import peft
    except ModuleNotFoundError as error:
        raise UserError(field, value, f"{why}peft is not installed; pip install 'rmkit[lora]'") from error
    return peft


def _are_names(value: Any) -> bool:
    return isinstance(value, list | dict) and all(isinstance(v, str) and re.fullmatch(r"[\w.]+", v) for v in value)


def _plain(held: dict[str, Any], name: str, peft: ModuleType) -> Any:
    """peft's LoraConfig of an adapter_config.json; ValueError where it asks for more than plain LoRA."""
    usual = peft.LoraConfig().to_dict()
    odd = [key for key, value in held.items() if key not in PLAIN and value and value != usual.get(key)]
    odd += ["peft_type"] if held.get("peft_type") != "LORA" else []
    odd += ["init_lora_weights"] if held.get("init_lora_weights", True) not in (True, False, "gaussian") else []
    # peft reads these as regular expressions, and one can be written that takes for ever.
    odd += [key for key in ("target_modules", "rank_pattern", "alpha_pattern") if not _are_names(held.get(key) or [])]
    saved = held.get("modules_to_save") or []
    odd += ["modules_to_save"] if not isinstance(saved, list) or {*map(str, saved)} - {"score", "classifier"} else []
    if odd:
        shown = ", ".join(f"{key} {held.get(key)!a}" for key in odd)
        hint = f"its {CONFIG} has {shown}; rmkit reads plain LoRA with a head. Merge it with peft, and give that"
        raise UserError("model.name", name, hint)
    given = {key: value for key, value in held.items() if key in PLAIN}
    # No dropout: tokens are shared. The head is no copy of peft's, but the classifier's own.
    given |= {"lora_dropout": 0.0, "modules_to_save": None, "inference_mode": False, "init_lora_weights": True}
    known = {key: value for key, value in given.items() if key in usual and key != "peft_type"}
    try:
        return peft.LoraConfig(**{**known, "task_type": "SEQ_CLS", "auto_mapping": None})
    except (TypeError, ValueError) as error:
        raise UserError("model.name", name, f"its {CONFIG} cannot be read ({brief(error)})") from error
