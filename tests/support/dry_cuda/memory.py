"""The peak of a whole optimizer step on a CUDA device that computes nothing: `python -m support.dry_cuda.memory JSON`.

JSON holds the family, the architecture's values, and how it is trained. Printed: the peak, and the microbatch that
an estimate of it has to know.
"""

import json
import sys
from dataclasses import asdict
from typing import Any

import support.dry_cuda.device as device  # isort: skip (before torch)
import torch
from transformers import AutoConfig

from rmkit.config import BatchConfig, LoraConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from rmkit.distributed import sharding
from rmkit.model import pretrained
from rmkit.training.estimate import load_of
from rmkit.training.optim import adamw, clip
from support.dry_cuda.checks import GIB, faked
from support.dry_cuda.models import batch, placed


def config_of(given: dict[str, Any]) -> TrainConfig:
    """The flags of a training: states, weights, recompute and rank are given, all else is usual."""
    recompute = "on" if given["recompute"] else "off"
    return TrainConfig(
        model=ModelConfig(
            name="/no/such/folder", precision="bf16", weights=given["weights"], gradient_checkpointing=recompute
        ),
        lora=LoraConfig(rank=given["rank"]),
        batch=BatchConfig(layout="trie"),
        optim=OptimConfig(lr=1e-5, states=given["states"]),
    )


def peak(given: dict[str, Any]) -> dict[str, Any]:
    """GiB at the peak of the second of two microbatches and Adam's step, Adam's state there from the beginning."""
    config, values = config_of(given), given["values"]
    if given["ranks"] > 1:
        device.RANKS = given["ranks"]
        device.join(given["ranks"])
        mesh = sharding._mesh("cuda", 1)
        sharding._mesh = lambda *_: mesh  # one cannot be made among fake tensors
    causal = {"architectures": ["XForCausalLM"], "num_labels": 1, "pad_token_id": 0}
    architecture = AutoConfig.for_model(given["family"], **values, **causal)
    with faked() as tally:
        model = pretrained.build_model(config, architecture, values["vocab_size"], 0, lambda text: None)
        wrapped = placed(model, strategy="fsdp" if given["ranks"] > 1 else "auto")
        optimizer = adamw(model, config.optim)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # Adam's state is there from now on
        optimizer.zero_grad(set_to_none=True)
        before, tally.peak = tally.held, tally.held
        loads = []
        for seed in range(2):
            packed = batch(given["tokens"], seed=seed)
            loads.append(asdict(load_of(packed)))
            wrapped(packed, LossConfig(), 8.0).loss.backward()
        clip(model, 1.0)
        optimizer.step()
    return {"peak": tally.peak / GIB, "before": before / GIB, "load": max(loads, key=lambda load: load["tokens"])}


if __name__ == "__main__":
    print(json.dumps(peak(json.loads(sys.argv[1]))))
