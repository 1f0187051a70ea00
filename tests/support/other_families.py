"""Tiny decoders beside the tested families: mixtures of experts, hybrids, and older ones of other shapes."""

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from rmkit.model.family import without_chance
from support.oracle import TINY

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
OTHERS = {
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 16, "output_router_logits": True},
    "qwen2_moe": {**EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.1, "sliding_window": 6},
    # Mamba, attention and experts by turns
    "jamba": {
        **EXPERTS,
        **{"mamba_d_state": 4, "mamba_d_conv": 3, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
        **{"expert_layer_period": 2, "expert_layer_offset": 1},
    },
    # Linear attention (gated delta rule), attention and experts
    "qwen3_next": {
        **EXPERTS,
        **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "linear_conv_kernel_dim": 3},
        **{
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    },
    "gpt2": {"n_positions": 128, "resid_pdrop": 0.1},
    "bloom": {},
}


def other_config(kind: str, **extra) -> PretrainedConfig:
    return AutoConfig.for_model(kind, **{**TINY, **OTHERS[kind], **extra})


def other_classifier(kind: str, *, seed: int = 0) -> PreTrainedModel:
    """A random classifier without chance, in float64 and training mode; attention and experts are plain eager."""
    config = other_config(kind)
    without_chance(config)
    torch.manual_seed(seed)
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return AutoModelForSequenceClassification.from_config(config, **plain).double().train()
