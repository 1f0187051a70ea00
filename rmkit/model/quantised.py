"""4-bit base weights under LoRA (`--model.load 4bit`), through bitsandbytes: nf4 with double quantisation, as QLoRA.

Weights of 4 bits are read, not trained, and FINAL is the adapter alone: to merge it is to round the sum to 4 bits, or
to add it to weights that the run has not seen. TRL leaves the adapter too, and it runs on the base as it is.
"""

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from rmkit.config import TrainConfig
from rmkit.errors import UserError, flag


def check(config: TrainConfig, processes: int) -> None:
    """ValueError where this machine cannot do --model.load 4bit; known before any weights are read. A plan needs no GPU
    here, but those that it is for have to do it."""
    if config.model.load != "4bit":
        return
    if not config.plan.only and not torch.cuda.is_available():
        raise UserError("model.load", "4bit", "it needs a GPU, and there is none here; leave it out")
    if not config.plan.only and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("model.load", "4bit", "bitsandbytes is not installed; pip install bitsandbytes")
    if (config.plan.gpus or processes) > 1 and config.parallel.strategy != "ddp":
        hint = f"fsdp, the default of several GPUs, cannot shard 4-bit weights; set {flag('parallel.strategy')} ddp"
        raise UserError("model.load", "4bit", hint)


def loading(config: TrainConfig) -> dict[str, Any]:
    """What from_pretrained is given besides: nothing, or the quantisation of all linear layers but the head."""
    if config.model.load != "4bit":
        return {}
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if config.model.precision == "fp32" else torch.bfloat16,
        llm_int8_skip_modules=["score"],  # of 4 bits too, whatever it is called
    )
    return {"quantization_config": quantisation}


def is_4bit(classifier: PreTrainedModel) -> bool:
    """Whether its linear layers hold 4-bit weights."""
    return bool(getattr(classifier, "is_loaded_in_4bit", False))
