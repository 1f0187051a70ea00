"""What the tests compare with: tiny models of every family, and one sequence at a time through plain transformers."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from rmkit.batch.trie import common_prefix, pack, sort_key
from rmkit.config import LossConfig
from rmkit.model import attention
from rmkit.model.pretrained import implementation
from rmkit.model.reward_model import RewardModel

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "num_labels": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large enough for attention to matter, so that a wrong key would show.
    "initializer_range": 0.3,
}

FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "qwen3": {},
    "gemma2": {"sliding_window": 6, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": 6},
}


def tiny_classifier(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **extra) -> PreTrainedModel:
    """A random classifier of a family, in training mode, whose attention is plain eager."""
    config = AutoConfig.for_model(family, **{**TINY, **FAMILIES[family], **extra})
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").to(dtype).train()


def reward_model(classifier: PreTrainedModel, layout: str, *, bf16: bool = False) -> RewardModel:
    """The same weights as a reward model that runs a layout (a copy: gradients are its own)."""
    attention.register()
    classifier = copy.deepcopy(classifier)
    classifier.set_attn_implementation(implementation(layout, classifier.config))
    return RewardModel(classifier, bf16=bf16)


def scores_one_by_one(classifier: PreTrainedModel, sequences: list[np.ndarray]) -> torch.Tensor:
    """Reward of each sequence, alone in its batch, by transformers' own forward; differentiable."""
    return torch.cat([classifier(torch.from_numpy(s.astype(np.int64))[None]).logits[:, -1] for s in sequences])


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradient of every parameter, by the classifier's own names; a missing one is zero."""
    named = module.classifier.named_parameters() if isinstance(module, RewardModel) else module.named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}


def reference_loss(scores: torch.Tensor, pairs: list[tuple[int, int]]) -> torch.Tensor:
    """HALOs' and TRL's loss, summed: -logsigmoid(chosen - rejected)."""
    chosen, rejected = (torch.tensor(side) for side in zip(*pairs, strict=True))
    return -torch.nn.functional.logsigmoid(scores[chosen] - scores[rejected]).sum()


def rewards_of(model: RewardModel, sequences: list[np.ndarray], layout: str = "trie") -> torch.Tensor:
    """Rewards [S] of a pass that compares nothing, as scoring runs it."""
    return model.head.rewards(model(pack(sequences, layout=layout)))


def run(model: RewardModel, sequences: list[np.ndarray], pairs: list[tuple[int, int]], layout: str):
    """Loss (summed), rewards and sums of one forward and backward pass over the pairs."""
    chosen, rejected = zip(*pairs, strict=True)
    loss, rewards, sums = model(pack(sequences, chosen, rejected, layout=layout), LossConfig())
    loss.backward()
    return loss.detach(), rewards, sums


def random_pairs(
    rng: np.random.Generator, count: int, longest: int = 20
) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Sequences with shared prompts, duplicates, prefixes of one another and a one-token one; ids 3 and up."""
    sequences, pairs = [], []
    for _ in range(count):
        prompt = rng.integers(3, 97, rng.integers(1, longest))
        sides = [np.concatenate([prompt, rng.integers(3, 97, rng.integers(1, longest))]) for _ in range(2)]
        pairs.append((len(sequences), len(sequences) + 1))
        sequences += sides
    sequences += [sequences[0].copy(), sequences[1][:3], sequences[1][:1]]
    n = len(sequences)
    return sequences, [*pairs, (n - 3, n - 2), (n - 2, n - 1)]


def trie_tokens(sequences: Sequence[np.ndarray]) -> int:
    """Tokens that the trie of these sequences stores; sorting puts longest common prefixes side by side."""
    distinct = {sort_key(s): s for s in sequences}
    ordered = [distinct[key] for key in sorted(distinct)]
    shared = sum(common_prefix(a, b) for a, b in pairwise(ordered))
    return sum(map(len, ordered)) - shared
