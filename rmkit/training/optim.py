"""AdamW, its learning-rate schedule, and the global gradient norm."""

import math

import torch
from torch import Tensor, nn

from rmkit.config import OptimConfig
from rmkit.distributed.sharding import gathered
from rmkit.model.reward_model import RewardModel
from rmkit.training.lowbit import LowBitAdamW


def adamw(model: RewardModel, config: OptimConfig, seed: int = 0) -> torch.optim.Optimizer:
    """AdamW with betas (0.9, 0.999) and eps 1e-8, as HALOs and TRL run it, over what is trained (not all under LoRA).
    The seed decides how bf16 weights and states below float32 are rounded.

    Norms, biases and the score head are not decayed unless --optim.decay-all: the head is one vector that sets the
    scale of the score, and Hugging Face's trainer leaves norms and biases out as well.
    """
    assert config.lr is not None
    names = {p: name for name, p in model.classifier.named_parameters() if p.requires_grad}
    decayed, kept = [], []
    for parameter, name in names.items():
        plain = parameter.ndim >= 2 and not name.startswith("score.")
        (decayed if plain or config.decay_all else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.states == "fp32" and all(parameter.dtype == torch.float32 for parameter in names):
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return LowBitAdamW(groups, names, lr=config.lr, states=config.states, seed=seed)


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
    limit = max_norm or math.inf
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if all(gradient.dtype == torch.float32 for gradient in gradients):
        return gathered(nn.utils.clip_grad_norm_(model.parameters(), limit))
    # The norm of a bf16 tensor would be bf16.
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
    return gathered(norm)
