"""FlashAttention 2, which torch brings, or 3 in its place: which of them a training runs."""

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Literal

import torch
from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl
from transformers import PretrainedConfig

from rmkit.config import TrainConfig
from rmkit.errors import UserError, brief

Flash = Literal["fa2", "fa3"]

PACKAGE = "flash_attn_interface"
"""The name under which torch (2.11 and later) looks for the kernels of FlashAttention 3"""
HOPPER = 9
"""Major compute capability of the GPUs that they are written for"""


def chosen(
    config: TrainConfig, architecture: PretrainedConfig, device: torch.device, say: Callable[[str], None]
) -> Flash | None:
    """What --model.attention means here; None where neither applies. ValueError where what it asks for cannot be. `say`
    tells where auto leaves what is installed."""
    asked = config.model.attention
    if unfit := _unfit(config, architecture, device):
        if asked != "auto":
            raise UserError("model.attention", asked, f"{unfit}; leave it at auto")
        return None
    if asked == "fa2":
        return "fa2"
    absent = _absent(device)
    broken = None if absent else _broken()
    if (lacks := absent or broken) and asked == "fa3":
        raise UserError("model.attention", asked, f"{lacks}; fa2 needs nothing more")
    if broken:
        say(f"{broken}: FlashAttention 2 is used")
    return "fa2" if lacks else "fa3"


def _unfit(config: TrainConfig, architecture: PretrainedConfig, device: torch.device) -> str | None:
    """Why attention is computed otherwise (rmkit.model.attention)."""
    if device.type != "cuda":
        return "it needs a GPU, and there is none here"
    if config.model.precision == "fp32":
        return "it computes in 16 bits, not in float32"
    if config.batch.layout == "padded":
        return "padded rows need a mask, which it does not take"
    if getattr(architecture, "attn_logit_softcapping", None):
        return f"a {architecture.model_type} model caps its logits, which torch's kernels do not"
    return None


def _absent(device: torch.device) -> str | None:
    """What FlashAttention 3 lacks here."""
    if torch.cuda.get_device_capability(device)[0] != HOPPER:
        return f"FlashAttention 3 needs a Hopper GPU (H100, H200), and this is {torch.cuda.get_device_name(device)}"
    if find_spec(PACKAGE) is None:
        return f"the package {PACKAGE} is not installed (FlashAttention 3, the folder hopper/ of Dao-AILab's sources)"
    return None


def _broken() -> str | None:
    """Why what is installed cannot be used: it is for another build of torch, or without a backward pass."""
    try:
        activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError, OSError) as error:  # OSError: a library that cannot be loaded
        return f"{PACKAGE} cannot be used ({brief(error)})"
    restore_flash_attention_impl()
    return None


@contextlib.contextmanager
def running(flash: Flash | None) -> Iterator[None]:
    """Within the block torch computes attention with it."""
    if flash != "fa3":
        yield
        return
    activate_flash_attention_impl("FA3")
    try:
        yield
    finally:
        restore_flash_attention_impl()
