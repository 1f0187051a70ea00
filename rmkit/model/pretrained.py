"""From a path or hub id to a reward model: check the architecture, find the head, load the weights."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from rmkit.config import DEMO, TrainConfig
from rmkit.data import demo, hub
from rmkit.data.names import elsewhere
from rmkit.data.tokenizer import end_token
from rmkit.errors import UserError, brief
from rmkit.model import attention, family, lora, precision, quantised
from rmkit.model.adapter import Adapter, adapter_in
from rmkit.model.folder import INDEX, WEIGHTS, check_folder, saved_head
from rmkit.model.head import draw, fresh_head
from rmkit.model.reward_model import RewardModel

FLOAT32_BESIDE_BF16 = ("model.norm.weight", "score.weight")
"""What stays float32 under --model.weights bf16"""


def load_config(name: str) -> PretrainedConfig:
    """Configuration of a model folder or hub id; ValueError where there is none or where it cannot be trained."""
    check_folder(Path(name))
    if (adapter := adapter_in(name)) is not None:
        return _base_config(adapter)
    if not Path(name).exists():
        hub.settle()
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # whatever a library says of values that it does not expect
        where = "in that folder" if Path(name).is_dir() else "on this disk or on the hub (is there a network?)"
        hint = f"no model configuration was found {where}"
        raise UserError("model.name", name, f"{hint}{elsewhere(Path(name))}") from error
    return family.check_family(config, name)


def _base_config(adapter: Adapter) -> PretrainedConfig:
    """Configuration of an adapter's base; ValueError where there is none, or where the adapter does not fit it."""
    try:
        config = demo.model_config() if adapter.base == DEMO else load_config(adapter.base)
    except UserError as error:
        hint = f"its base {error.value}: {error.hint}"
        raise UserError("model.name", adapter.name, hint, *error.ways) from error
    if not family.tested(config):
        hint = f"its base is a {config.model_type}; adapters are read for {', '.join(family.FAMILIES)}"
        raise UserError("model.name", adapter.name, hint)
    lora.check_fit(adapter, config)
    return config


def check_length(config: PretrainedConfig, max_length: int) -> None:
    """ValueError where conversations this long would not score the same alone and in a batch.

    Dynamic NTK and LongRoPE choose their frequencies by the longest position in the batch, so past the original
    context a score would depend on its neighbours.
    """
    if max_length > family.context(config):
        hint = f"the model's context is {family.context(config)}; set at most that"
        raise UserError("data.max_length", max_length, hint)
    scaling = getattr(config, "rope_parameters", None) or {}
    for rope in [scaling, *(v for v in scaling.values() if isinstance(v, dict))]:
        original = rope.get("original_max_position_embeddings", family.context(config))
        if rope.get("rope_type") in ("dynamic", "longrope") and max_length > original:
            raise UserError(
                "data.max_length",
                max_length,
                f"beyond {original} tokens this model's {rope['rope_type']} positions "
                f"depend on the longest sequence of the batch; set at most {original}",
            )


def build_model(
    config: TrainConfig, architecture: PretrainedConfig, vocabulary: int, pad_token_id: int, say: Callable[[str], None]
) -> RewardModel:
    """Load or make the classifier that `config` asks for, with its attention set for the layout.

    The weights keep the dtype of the checkpoint, 16-bit ones mapped from its files (`load_classifier`):
    `rmkit.model.stored.placed` makes them what they are kept in where they are to compute. A fresh head, float32, is
    drawn from --seed; what kind of head it is is said. `vocabulary` grows the embedding where the tokenizer gained a
    pad token. Raises ValueError on a checkpoint that is none or not whole.
    """
    name = config.model.name
    kept = None if name == DEMO else saved_head(architecture, name)
    adapter = adapter_in(name)
    base, brings_head = (name, False) if adapter is None else (adapter.base, adapter.labels is not None)
    head = kept or fresh_head(config.model)
    architecture.num_labels = len(head.labels)
    architecture.pad_token_id = pad_token_id
    architecture.use_cache = False
    family.without_chance(architecture)
    chosen_attention = implementation(config.batch.layout, architecture)
    torch.manual_seed(config.seed)
    if base == DEMO:
        classifier = AutoModelForSequenceClassification.from_config(architecture, attn_implementation=chosen_attention)
    else:
        drawn, extra = kept is None or brings_head, quantised.loading(config)
        classifier = load_classifier(base, architecture, chosen_attention, fresh_head=drawn, **extra)
    stored = classifier.get_input_embeddings().weight.dtype
    classifier.score.float()
    if vocabulary > classifier.get_input_embeddings().num_embeddings:
        classifier.get_input_embeddings().float()  # new rows are drawn
        classifier.resize_token_embeddings(vocabulary, mean_resizing=False)
    if kept is None:
        draw(classifier, config.seed)
        say(f"{config.model.head} head drawn from seed {config.seed}")
    else:
        count = len(head.labels)
        say(f"{name} brings a head of {count} label{'s' if count > 1 else ''}; it is kept")
    lora.put(classifier, config.lora, name, adapter, config.seed, say)
    classifier.config.problem_type = "regression"
    if config.model.gradient_checkpointing == "on":  # what auto means was decided before the weights are read
        # Nothing is random, so no generator's state has to be kept for each layer.
        classifier.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        if family.tested(architecture):
            # It holds little: all but its keys and values runs on the end tokens alone (rmkit.model).
            getattr(classifier, classifier.base_model_prefix).layers[-1].gradient_checkpointing = False
    bf16 = precision.resolved(config.model.precision, "cuda" if torch.cuda.is_available() else "cpu", say) == "bf16"
    # from_pretrained hands out evaluation mode, in which transformers recomputes nothing.
    return RewardModel(
        classifier, head, bf16=bf16, weights=_kept_in(config, stored, bf16), kernels=config.model.kernels
    ).train()


def _kept_in(config: TrainConfig, stored: torch.dtype, bf16: bool) -> torch.dtype:
    """What --model.weights means for a checkpoint of `stored` weights. Under LoRA frozen ones of bf16 stay so where
    bf16 is the arithmetic: autocast would round float32 copies of them to what they are."""
    frozen = config.lora.rank > 0 and stored == torch.bfloat16 and bf16
    chosen = config.model.weights
    return torch.bfloat16 if chosen == "bf16" or (chosen == "auto" and frozen) else torch.float32


def implementation(layout: str, architecture: PretrainedConfig) -> str:
    """Name of the attention that runs a layout: ours for rows, transformers' own for the rectangle."""
    if layout != "padded":
        attention.register()
        return attention.NAME
    return family.attention_of(architecture)


def load_classifier(
    name: str, architecture: PretrainedConfig, chosen_attention: str, *, fresh_head: bool, **extra: Any
) -> PreTrainedModel:
    """transformers' classifier with the weights of a folder or hub id; only a head yet to be drawn may be missing.

    Weights that are all bf16, or all float16, stay so: mapped from the files they cost each process nothing, where
    float32 copies would cost every one twice the checkpoint. So do those of a run whose weights are kept in bf16,
    beside which final norm and head are float32. All else is what it is beside float32 weights. `extra` is for
    from_pretrained.
    """
    try:
        with _quiet():
            dtype, wide = _stored(name)
            classifier, report = AutoModelForSequenceClassification.from_pretrained(
                name,
                config=architecture,
                dtype=dtype,
                attn_implementation=chosen_attention,
                use_safetensors=True,  # no pickle is ever read from a model folder
                output_loading_info=True,
                **extra,
            )
            for key, file in wide.items():
                with safe_open(file, "pt") as tensors:
                    classifier.get_parameter(key).data = tensors.get_tensor(key)
    except Exception as error:  # whatever a library says of tensors and values that it does not expect
        raise UserError("model.name", name, f"the weights could not be loaded ({brief(error)})") from error
    if missing := sorted(set(report["missing_keys"]) - ({"score.weight"} if fresh_head else set())):
        raise UserError(
            "model.name", name, f"the checkpoint is not whole, {len(missing)} tensors are missing: {missing[0]}"
        )
    if dtype != torch.float32:
        classifier.config.dtype = torch.float32
        # Buffers (the scale of Gemma's embeddings) were rounded as the weights are. A model without any has the others.
        with init_empty_weights(include_buffers=False):
            exact = AutoModelForSequenceClassification.from_config(classifier.config)
        for name, buffer in exact.named_buffers():
            owner, _, leaf = name.rpartition(".")
            setattr(classifier.get_submodule(owner), leaf, buffer)
    return classifier


def _stored(name: str) -> tuple[torch.dtype, dict[str, str]]:
    """bf16 or float16 where all weights of a folder or hub id are, else float32. Beside bf16 ones the final norm and
    the head may be float32: these by name, and their files."""
    whole = cached_file(name, WEIGHTS, _raise_exceptions_for_missing_entries=False)
    files = [WEIGHTS] if whole else []
    if not whole and (index := cached_file(name, INDEX, _raise_exceptions_for_missing_entries=False)):
        files = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    held, file_of = {}, {}
    for file in (cached_file(name, each) for each in files):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                held[key], file_of[key] = tensors.get_slice(key).get_dtype(), file
    wide = {key: file_of[key] for key, kind in held.items() if kind == "F32" and key in FLOAT32_BESIDE_BF16}
    floats = {kind for key, kind in held.items() if "F" in kind and not (key in wide and "BF16" in held.values())}
    dtype = {("BF16",): torch.bfloat16, ("F16",): torch.float16}.get(tuple(floats), torch.float32)
    return dtype, wide if dtype == torch.bfloat16 else {}


def pad_at_end(architecture: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The pad token of a classifier's config.json where it ends conversations too; None elsewhere.

    transformers scores the last token that is no pad token, so a head that it or TRL trained has read the one before;
    OpenRLHF, HALOs and the servers score the last token. The files of such a model do not say which it was. To be asked
    before `build_model`, which gives the configuration another pad token.
    """
    return architecture.pad_token_id if architecture.pad_token_id == end_token(tokenizer) else None


PAD_AT_END = (
    "{name}: its pad token ends every conversation too, and its files do not say which token its head was trained on: "
    "TRL and transformers score the one before the pad token, OpenRLHF, HALOs and servers the last"
)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of missing and unused weights: we check it ourselves and say what matters."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
