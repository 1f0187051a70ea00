"""Families of models: which of them run in every layout, which as a rectangle alone, and which are refused by name.

In a trie or a packed row a token sees others through `rmkit.model.attention` alone, so rows are exact only where causal
softmax attention is all that mixes tokens, and each such family is one of the exactness tests. A rectangle padded at
its end needs less: that no token sees a later one. Every decoder of transformers is such a model, mixture of experts,
state space or linear attention within it or not.
"""

import copy
import inspect
import re

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rmkit.config import Layout, TrainConfig
from rmkit.errors import UserError, brief, flag

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
"""Model types that the exactness tests cover in every layout: causal softmax attention in every layer, and nothing else
that mixes tokens"""
EXPERTS = ("qwen3_moe", "qwen2_moe", "mixtral")
"""Those that the tests cover in every layout too, layers left as they are: experts are chosen for each token by its own
state, and only attention mixes tokens"""
BY_CHANCE = {"phimoe": "its routers draw experts at random in training (sparsemixer), so no step would repeat"}
"""Decoders that can only be scored with, and why: no flag of theirs takes the chance out"""
WITHOUT_LIMIT = 1 << 20
"""The context, in tokens, of a model whose configuration gives none (Bloom, MPT: positions are distances)"""


def tested(config: PretrainedConfig) -> bool:
    """Whether it is of a family whose layers are known: the last runs on end tokens alone, all can be taken apart."""
    return config.model_type in FAMILIES


def context(config: PretrainedConfig) -> int:
    """The longest conversation that the model has positions for."""
    return getattr(config, "max_position_embeddings", None) or WITHOUT_LIMIT


def sizes(config: PretrainedConfig) -> tuple[int, int, int]:
    """Decoder layers, heads of attention, and the width of one."""
    heads = getattr(config, "num_attention_heads", None) or 1
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, heads, head


def check_family(config: PretrainedConfig, name: str) -> PretrainedConfig:
    """The configuration, if it is of a decoder whose last token is scored by one linear layer; else ValueError."""
    if not tested(config) and (why := _unfit(config)):
        hint = (
            f"it is a {config.model_type} model. {why}. Any decoder runs that has a classifier in transformers; "
            f"tested families: {', '.join((*FAMILIES, *EXPERTS))}"
        )
        raise UserError("model.name", name, hint)
    if getattr(config, "use_bidirectional_attention", False):
        raise UserError("model.name", name, "its attention is bidirectional, so prefixes cannot be shared")
    return config


def check_layout(config: PretrainedConfig, layout: str) -> None:
    """ValueError where rows of a layout are not known to be exact for the family."""
    if layout != "padded" and layout_of(config) == "padded":
        hint = (
            f"the model is a {config.model_type}. Without padding it is exact only where tokens are mixed by causal "
            "softmax attention alone (no state space, linear attention or convolution), which is tested for "
            f"{', '.join((*FAMILIES, *EXPERTS))}; set {flag('batch.layout')} padded"
        )
        raise UserError("batch.layout", layout, hint)


def layout_of(config: PretrainedConfig) -> Layout:
    """The best layout that is exact for the family."""
    return "trie" if config.model_type in (*FAMILIES, *EXPERTS) else "padded"


def check_training(config: TrainConfig, architecture: PretrainedConfig) -> None:
    """ValueError where the layout is not exact for the family, or a flag takes its decoder layers apart."""
    if why := BY_CHANCE.get(architecture.model_type):
        raise UserError("model.name", config.model.name, f"it is a {architecture.model_type}: {why}")
    check_layout(architecture, config.batch.layout)
    if tested(architecture):
        return
    for field, given, other in (
        ("lora.rank", config.lora.rank, 0),
        ("model.weights", config.model.weights == "bf16" and "bf16", "fp32"),
        ("model.compile", config.model.compile == "on" and "on", "off"),
        ("parallel.strategy", config.parallel.needs_fsdp and "fsdp", "ddp"),
    ):
        if given:
            hint = f"the model is a {architecture.model_type}, and this is tested for {', '.join(FAMILIES)}; set"
            raise UserError(field, given, f"{hint} {flag(field)} {other}")


def without_chance(config: PretrainedConfig) -> None:
    """Take out of a configuration what is random in training, dropout and the jitter of routers: TRL does so too, and
    a token that sequences share, or the score of a sequence, is exact only without."""
    names = ("attention_dropout", "resid_pdrop", "embd_pdrop")
    if not tested(config):
        names = tuple(name for name in config.to_dict() if re.search("drop|jitter", name))
    for name in names:
        if isinstance(value := getattr(config, name, 0.0), float) and value > 0.0:
            setattr(config, name, 0.0)


def attention_of(config: PretrainedConfig) -> str:
    """transformers' own attention for a rectangle: SDPA, unless the scores are capped or the model has its own."""
    if getattr(config, "attn_logit_softcapping", None):
        return "eager"  # SDPA has no softcap
    return "sdpa" if tested(config) or getattr(_classifier(config), "_supports_sdpa", False) else "eager"


def taken(backbone: nn.Module, **inputs: object) -> dict[str, object]:
    """Those of the inputs that the forward of a backbone takes: Bloom has no positions, OpenAI's GPT no cache."""
    known = inspect.signature(type(backbone).forward).parameters
    return {name: value for name, value in inputs.items() if name in known}


def as_saved(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model under the names that its checkpoints have, and every reader but transformers 5 expects:
    those of experts one by one, which transformers 5 holds as one tensor a layer."""
    if tested(model.config):
        return state
    return revert_weight_conversion(model, {name: tensor.detach() for name, tensor in state.items()})


def skeleton(architecture: PretrainedConfig) -> PreTrainedModel:
    """The classifier without weights, to look at its layers; ValueError where the configuration makes none."""
    try:
        with torch.device("meta"):
            # Whatever attention the file asks for, which may not be installed: ours takes its place.
            return AutoModelForSequenceClassification.from_config(
                copy.deepcopy(architecture), attn_implementation="eager"
            )
    except Exception as error:  # whatever a library says of values that it does not expect
        name = architecture.name_or_path or architecture.model_type
        raise UserError("model.name", name, f"its configuration cannot be used ({brief(error)})") from error


def _classifier(config: PretrainedConfig) -> type | None:
    """transformers' class of sequence classifiers for a configuration; None where there is none."""
    return AutoModelForSequenceClassification._model_mapping.get(type(config), None)


def _unfit(config: PretrainedConfig) -> str:
    """Why a model cannot be run, "" where it can."""
    if (kind := _classifier(config)) is None:
        return "transformers has no sequence classifier of it"
    if config.get_text_config() is not config:
        return "It has parts that are no text model (images, sound, an encoder); give its text model alone"
    if getattr(config, "is_encoder_decoder", False):
        return "It is an encoder with a decoder, whose tokens see later ones"
    head = getattr(skeleton(config), "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return f"{kind.__name__} has a head of its own (an encoder's, mostly), not one row that scores the last token"
    return ""
