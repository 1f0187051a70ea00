"""Models by configuration alone, through the product's own building; and batches of the size of real ones."""

from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rmkit.batch.trie import PackedBatch, pack
from rmkit.config import BatchConfig, LoraConfig, ModelConfig, ParallelConfig, TrainConfig
from rmkit.distributed.sharding import distribute
from rmkit.model import precision, pretrained
from rmkit.model.reward_model import RewardModel

GPU = torch.device("cuda", 0)


def _as_loaded(name, architecture, attention, *, fresh_head):
    """What from_pretrained hands out for a bf16 checkpoint, without a file: evaluation mode and bf16 weights."""
    return AutoModelForSequenceClassification.from_config(
        architecture, attn_implementation=attention, dtype=torch.bfloat16
    ).eval()


pretrained.load_classifier = _as_loaded
precision.has_bf16 = lambda: True  # of the device that is pretended


def built(family: str, values: dict, *, layout="trie", recomputed=False, weights="auto", rank=0) -> RewardModel:
    """The model that `train` builds of a causal checkpoint, in bf16, on the host."""
    architecture = AutoConfig.for_model(
        family, **{**values, "architectures": ["XForCausalLM"], "num_labels": 1, "pad_token_id": 0}
    )
    config = TrainConfig(
        model=ModelConfig(
            name="/no/such/folder",
            gradient_checkpointing="on" if recomputed else "off",
            precision="bf16",
            weights=weights,
        ),
        batch=BatchConfig(layout=layout),
        lora=LoraConfig(rank=rank),
    )
    return pretrained.build_model(config, architecture, values["vocab_size"], 0, lambda text: None)


def accelerator(ranks: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        device=GPU, num_processes=ranks, process_index=0, reduce=lambda t, how: t.clone(), prepare=lambda m: m
    )


def placed(model: RewardModel, **parallel) -> torch.nn.Module:
    """The model on the device as `train` puts it there."""
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return distribute(model, ParallelConfig(**parallel), accelerator(ranks))


def conversations(tokens: int, seed: int = 0, prompt: int = 256, response: int = 350):
    """Sequences and pairs whose trie fills `tokens`, lengths spread as real ones are; ids below 1,000."""
    rng = np.random.default_rng(seed)
    sequences, taken = [], 0
    while True:
        lengths = [max(8, int(rng.lognormal(np.log(mean) - 0.125, 0.5))) for mean in (prompt, response, response)]
        if taken + sum(lengths) > tokens:
            return sequences, [(i, i + 1) for i in range(0, len(sequences), 2)]
        said = rng.integers(3, 1000, lengths[0])
        sequences += [np.concatenate([said, rng.integers(3, 1000, n)]) for n in lengths[1:]]
        taken += sum(lengths)


def batch(tokens: int, **how) -> PackedBatch:
    sequences, pairs = conversations(tokens, **how)
    return pack(sequences, *zip(*pairs, strict=True)).to(GPU)
