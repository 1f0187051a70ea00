"""LoRA through peft: low-rank updates are trained beside frozen weights, merged into them, or saved alone.

peft's layers take the place of linear ones inside the classifier, which keeps its own class: the hooks of the reward
model sit on them as on plain ones. The head is trained whole and saved with the adapter, in PEFT's own files and names
(`adapter_config.json`, `adapter_model.safetensors`), so that peft reads them without rmkit. vLLM takes no adapter that
brings a head (`modules_to_save`): serve what is merged.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rmkit.config import DEMO, LoraConfig
from rmkit.errors import UserError, brief, flag
from rmkit.model import family
from rmkit.model.adapter import HEAD, PREFIX, WEIGHTS, Adapter, adapter_in, peft_for

NAME = "default"
"""What peft calls a lone adapter inside a model"""


def check(config: LoraConfig, architecture: PretrainedConfig, name: str) -> None:
    """ValueError where --lora.* do not fit the model `name`; known before its weights are read."""
    if config.rank == 0:
        return
    peft_for("lora.rank", config.rank)
    adapter = adapter_in(name)
    if adapter is not None:
        _check_same(config, adapter)
        return
    sides = _sides(family.skeleton(architecture))
    if absent := [target for target in config.targets if target not in sides]:
        hint = f"{name} has no such linear layer; its decoder layers have {', '.join(sides)}"
        raise UserError("lora.targets", " ".join(absent), hint)
    smallest = min(config.targets or sides, key=sides.__getitem__)
    if config.rank > sides[smallest]:
        hint = f"the smaller side of {smallest} is {sides[smallest]}; set at most that"
        raise UserError("lora.rank", config.rank, hint)


def check_fit(adapter: Adapter, architecture: PretrainedConfig) -> None:
    """ValueError where an adapter's tensors are not those of its base: no adapter is read in part."""
    why = None
    try:
        with torch.device("meta"):  # whatever rank it gives, nothing is allocated
            model = _injected(family.skeleton(architecture), adapter.config)
    except Exception as error:  # none of the layers that it names, or whatever the library says of odd values
        why = brief(error)
    else:
        wanted = {saved_name(n): tuple(p.shape) for n, p in model.named_parameters() if ".lora_" in n}
        if adapter.labels is not None:
            wanted[HEAD] = (adapter.labels, architecture.hidden_size)
        for key in sorted(wanted.keys() | adapter.shapes.keys()):
            here, there = adapter.shapes.get(key), wanted.get(key)
            if here != there:
                shown = key.removeprefix(PREFIX)
                why = f"{shown} is {_shape(here)} in the adapter and should be {_shape(there)}"
                break
    if why is not None:
        raise UserError(
            "model.name",
            adapter.name,
            f"the adapter does not fit its base {adapter.base}, a {architecture.model_type} of hidden size "
            f"{architecture.hidden_size} ({why}); was it trained on another?",
        )


def put(
    classifier: PreTrainedModel,
    config: LoraConfig,
    name: str,
    adapter: Adapter | None,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Give the classifier of `name` the updates that --lora.rank asks for, or those of an adapter on it.

    Its own weights are frozen then, and the head is trained. Fresh updates are drawn from the seed, and are zero. With
    rank 0 an adapter is merged, and all weights are trained.
    """
    if adapter is None and config.rank == 0:
        return
    torch.manual_seed(seed)
    _injected(classifier, _fresh(config, classifier, name) if adapter is None else adapter.config)
    for each, parameter in classifier.named_parameters():
        parameter.requires_grad_(is_trained(each))
        if is_trained(each):  # peft makes them as the weights that they stand beside, which may be halves
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    if adapter is not None:
        held = load_file(adapter.folder / WEIGHTS)
        own = {each: saved_name(each) for each in classifier.state_dict() if is_trained(each)}
        classifier.load_state_dict({each: held[key] for each, key in own.items() if key in held}, strict=False)
    if config.rank == 0:
        merge(classifier)
        say(f"the adapter {name} is merged into its base {adapter.base}")
    else:
        count = sum(p.numel() for p in classifier.parameters() if p.requires_grad)
        of = f"the adapter {name}" if adapter else f"LoRA of rank {config.rank}"
        say(f"{of}: {count:,} parameters are trained, the others are frozen")


def merge(classifier: PreTrainedModel) -> None:
    """Add the updates to the weights and take peft's layers out: what is left is an ordinary classifier."""
    by_name = updates(classifier)
    with torch.no_grad():
        for weight, update in by_name.items():
            name = weight.removesuffix(".weight")
            layer = classifier.get_submodule(name).base_layer
            layer.weight.data = update.added(layer.weight, update.down, update.up)
            classifier.set_submodule(name, layer)
    del classifier.peft_config
    classifier.requires_grad_(True)


@dataclass(frozen=True, kw_only=True)
class Update:
    """scale * up @ down, which is added to a weight [out, in]."""

    down: Tensor
    """A, [rank, in]"""
    up: Tensor
    """B, [out, rank]"""
    scale: float

    def added(self, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """The sum with a weight, never narrower than the update; `down` and `up` are those of it, whole where it holds
        shards."""
        return weight + (up @ down) * self.scale


def updates(classifier: PreTrainedModel) -> dict[str, Update]:
    """By the name that the weight has without LoRA; empty where there is none."""
    return {
        f"{name}.weight": Update(
            down=layer.lora_A[NAME].weight.detach(), up=layer.lora_B[NAME].weight.detach(), scale=layer.scaling[NAME]
        )
        for name, layer in classifier.named_modules()
        if hasattr(layer, "lora_A")
    }


def plain_state(classifier: PreTrainedModel) -> dict[str, Tensor]:
    """The state of the classifier as it is without LoRA, updates not added."""
    held = classifier.state_dict().items()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in held if ".lora_" not in name}


def adapter_state(classifier: PreTrainedModel) -> dict[str, Tensor]:
    """Updates and head, by PEFT's own names."""
    return {saved_name(name): tensor for name, tensor in classifier.state_dict().items() if is_trained(name)}


def described(classifier: PreTrainedModel) -> dict[str, Any] | None:
    """What adapter_config.json holds of a classifier with LoRA; None without."""
    if not hasattr(classifier, "peft_config"):
        return None
    held = {**classifier.peft_config[NAME].to_dict(), "modules_to_save": ["score"], "inference_mode": True}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(held.items())}


def is_trained(name: str) -> bool:
    """Whether a parameter of a classifier with LoRA is trained, by its name."""
    return ".lora_" in name or name.startswith("score.")


def saved_name(name: str) -> str:
    """A parameter's name in PEFT's files, which leave out what the adapter is called."""
    return PREFIX + name.replace(f".{NAME}.", ".")


def _sides(classifier: PreTrainedModel) -> dict[str, int]:
    """The smaller side of each kind of linear layer in the decoder layers, by its last name."""
    layers = getattr(classifier, classifier.base_model_prefix).layers
    found: dict[str, int] = {}
    for name, layer in layers.named_modules():
        if isinstance(layer, nn.Linear):
            kind = name.rpartition(".")[2]
            found[kind] = min(found.get(kind, layer.in_features), layer.in_features, layer.out_features)
    return found


def _fresh(config: LoraConfig, classifier: PreTrainedModel, name: str) -> Any:
    alpha = _number(2 * config.rank if config.alpha is None else config.alpha)
    base = str(Path(name).resolve()) if name != DEMO and Path(name).is_dir() else name  # read from anywhere
    return peft_for("lora.rank", config.rank).LoraConfig(
        task_type="SEQ_CLS",
        base_model_name_or_path=base,
        r=config.rank,
        lora_alpha=alpha,
        target_modules=sorted(config.targets or _sides(classifier)),
    )


def _injected(classifier: PreTrainedModel, config: Any) -> PreTrainedModel:
    """The classifier with peft's layers in it; their updates are drawn from torch's generator, and are zero."""
    return peft_for("", None).inject_adapter_in_model(copy.deepcopy(config), classifier, adapter_name=NAME)


def _check_same(config: LoraConfig, adapter: Adapter) -> None:
    """ValueError where --lora.* say other than the adapter that is to be trained on."""
    held = adapter.config
    targets = held.target_modules if isinstance(held.target_modules, set) else {held.target_modules}
    for field, asked, own in (
        ("lora.rank", config.rank, held.r),
        ("lora.alpha", config.alpha, _number(held.lora_alpha)),
        ("lora.targets", sorted(config.targets) or None, sorted(map(str, targets))),
    ):
        if asked is not None and asked != own:
            asked, own = (" ".join(value) if isinstance(value, list) else value for value in (asked, own))
            hint = f"the adapter {adapter.name} has {own}; give that to train it on"
            raise UserError(field, asked, f"{hint}, or {flag('lora.rank')} 0 to merge it and train all weights")


def _number(value: float) -> float:
    """As an integer where it is one: readers of adapter_config.json expect that of alpha."""
    return int(value) if math.isfinite(value) and value == int(value) else value


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))
