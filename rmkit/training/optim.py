"""AdamW over float32 weights, its learning-rate schedule, and the global gradient norm."""

import math

import torch
from torch import Tensor, nn

from rmkit.config import OptimConfig
from rmkit.distributed.sharding import gathered
from rmkit.model.reward_model import RewardModel


def adamw(model: RewardModel, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.999) and eps 1e-8, as HALOs and TRL run it, over what is trained (not all under LoRA).

    Norms, biases and the score head are not decayed unless --optim.decay-all: the head is one vector that sets the
    scale of the score, and Hugging Face's trainer leaves norms and biases out as well.
    """
    assert config.lr is not None
    decayed, kept = [], []
    for name, parameter in model.classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim >= 2 and not name.startswith("score.")
        (decayed if plain or config.decay_all else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=True)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Rate of step 0 .. steps - 1: a line up over the warm-up, then constant, a line to 0 or half a cosine to 0."""
    assert config.lr is not None
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "linear":
        return config.lr * (1.0 - progress)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.lr


def clip(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients to a global norm of at most `max_norm` (0: leave them); the norm before, on the device.

    The norm is that of all ranks' gradients together, sharded or not.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    return gathered(norm)
