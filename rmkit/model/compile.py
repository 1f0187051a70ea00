"""torch.compile for the decoder layers: one compilation serves all of them, and batches of every size.

The forward of each layer is compiled, without what hangs on the layer: FSDP2's hooks gather its weights around it, and
recomputation is inside it (transformers 5.24) or around it (5.17). The last layer, which the hooks of the reward model
run on end tokens, stays as it is. Parameters keep their names. Scoring is not compiled: it starts at once.

Attention segment by segment (a CPU, float32, capped logits) loops over a batch's segments and stays outside the graphs.
Where it is recomputed too, nothing of the layer is compiled: a recomputed part is one graph or none.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from rmkit.errors import UserError
from rmkit.model.reward_model import RewardModel

KINDS = 32
"""Most compilations of a layer before torch runs it uncompiled: with and without a gradient, each kind of attention
window, a rank without pairs"""


def wanted(asked: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Whether to compile: auto does on a GPU alone. ValueError where on a CPU there is no compiler."""
    if asked == "auto":
        return device.type == "cuda"
    if asked == "on" and device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            hint = "no C++ compiler was found; install g++, or leave the layers uncompiled"
            raise UserError("model.compile", asked, hint) from error
    return asked == "on"


def compile_layers(model: RewardModel, *, repeatable: bool = False, **how) -> None:
    """Compile the forward of every decoder layer but the last, when it first runs; before the layers are sharded.

    `repeatable`: no kernel is chosen by its time, so that runs repeat bit for bit. `how` goes to torch.compile.
    """
    if repeatable:
        from torch._inductor import config

        how["options"] = {"deterministic": True} if hasattr(config, "deterministic") else {}
    # One function for all layers, so that all find what one has compiled. Of its class: sharding changes that.
    compiled = torch.compile(_forward, **{"dynamic": True, **how})
    for layer in model.layers[:-1]:
        layer.forward = functools.partial(compiled, layer)


def _forward(layer: nn.Module, *args, **kwargs) -> Tensor:
    return type(layer).forward(layer, *args, **kwargs)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Within the block torch compiles as the layers need it; what it was told before holds again afterwards."""
    import torch._dynamo

    # Without optimize_ddp: it would cut each layer's graph where DDP's buckets end; between layers is often enough.
    with torch._dynamo.config.patch(optimize_ddp=False, recompile_limit=KINDS):
        yield


@contextlib.contextmanager
def uncompiled(model: RewardModel) -> Iterator[None]:
    """Within the block the layers run as they are."""
    held = {layer: vars(layer).pop("forward") for layer in model.layers if "forward" in vars(layer)}
    try:
        yield
    finally:
        for layer, forward in held.items():
            layer.forward = forward
