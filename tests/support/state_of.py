"""A few optimizer steps that do not depend on how a model is shared among ranks, and its state as whole tensors."""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from rmkit.distributed.sharding import gathered


def trained(model, optimizer, steps, seed=0):
    """Steps on gradients that only the seed decides."""
    torch.manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape).to(parameter.dtype)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        optimizer.step()


def full_state(model, optimizer):
    """Weights and Adam's state, as the files of a checkpoint name them; every rank takes part."""

    def full(tensor):
        return gathered(tensor.detach()).clone()

    held = {name: full(tensor) for name, tensor in model.classifier.state_dict().items()}
    for name, parameter in model.classifier.named_parameters():
        for key, value in optimizer.state[parameter].items():
            held[f"optimizer.{name}.{key}"] = full(value)
    return held
