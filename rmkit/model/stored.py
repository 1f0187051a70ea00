"""What the weights are kept in: float32, or bf16 in the embedding and the decoder layers (--model.weights).

The final norm, the score head and LoRA's updates are float32 always. A bf16 weight takes part in the arithmetic that
--model.precision names: autocast uses a projection's as it is, and else it is made float32 where it is used. Under
autocast the residual stream of trained bf16 weights is bf16 too, as in plain bf16 training: what recomputation keeps of
each layer is half as much. Beside frozen ones (LoRA) it is float32, as with float32 weights.
"""

import functools
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Module = TypeVar("Module", bound=nn.Module)


def placed(module: Module, device: torch.device, weights: torch.dtype = torch.float32) -> Module:
    """Move a module and make its parameters what they are kept in there: 16-bit weights of a checkpoint are never
    widened on a GPU's host."""
    module.to(device)
    if weights == torch.float32:
        return module.float()
    for path, part in module.named_modules():
        if not all(p.is_floating_point() for p in part.parameters(recurse=False)):
            continue  # codes of 4 bits are no numbers, and their module has a forward of its own
        dtype = torch.float32 if ".lora_" in path else weights
        for name, parameter in part._parameters.items():
            if parameter is not None:
                # What stays as it was loaded may be a file's own memory.
                kept = parameter.detach().to(dtype, copy=device.type == "cpu")
                part._parameters[name] = nn.Parameter(kept, parameter.requires_grad)
        if type(part) is nn.Linear and dtype == weights:
            part.__class__ = KeptLinear
        elif isinstance(part, nn.Embedding):
            part.forward = functools.partial(_in_float32, part)
    return module


class KeptLinear(nn.Linear):
    """Its own forward under autocast; without, by float32 copies of what it holds.

    A class, and no forward of each module: torch.compile tells those apart, and would compile every layer anew.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            return functional.linear(x, self.weight, self.bias)
        return functional.linear(x, self.weight.float(), None if self.bias is None else self.bias.float())


def _in_float32(part: nn.Module, *args: Any) -> Tensor:
    """The forward of its class by float32 copies of what it holds: gradients of a token's many places are then added
    up in float32, and rounded once. Under autocast it begins a residual stream in bf16 where it is trained."""
    held = dict(part._parameters)
    try:
        part._parameters.update({name: p.float() for name, p in held.items() if p is not None})
        rows = type(part).forward(part, *args)
    finally:
        part._parameters.update(held)
    trained = held["weight"].requires_grad
    return rows.bfloat16() if trained and torch.is_autocast_enabled(rows.device.type) else rows
