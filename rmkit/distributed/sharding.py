"""Several processes on one model: DDP copies it, FSDP2 shards it. On GPUs and on CPUs (gloo) the same code runs."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rmkit.config import ParallelConfig
from rmkit.distributed.collectives import ranks
from rmkit.errors import AgreedError, UserError
from rmkit.model.compile import uncompiled
from rmkit.model.reward_model import RewardModel
from rmkit.model.stored import placed


def strategy_on(device: str, config: ParallelConfig) -> str:
    """What auto means on "cuda" or "cpu": fsdp where memory decides or a flag of its own is given, else ddp."""
    if config.strategy != "auto":
        return config.strategy
    return "fsdp" if device == "cuda" or config.replicate != 1 or config.cpu_offload else "ddp"


def distribute(model: RewardModel, config: ParallelConfig, accelerator: Accelerator) -> nn.Module:
    """Move the model to its device and share it among the ranks; the module whose forward is to be called.

    accelerate switches FSDP on for GPUs only, so `fully_shard` is called here: each decoder layer, then the root, which
    owns embedding, final norm and head and gathers them when its forward is called. The shards are what the weights are
    kept in. Under bf16 the layers are gathered in it, as autocast would round their matrices, and their gradients are
    reduced in float32. That rounds the weights of their norms too, which autocast leaves in float32: scores of one
    process and of several differ by as much as bf16 itself errs. The root, and with it the residual stream and the
    score, is gathered in float32. A group of FSDP2 has shards of one dtype: a bf16 embedding is one of its own.
    """
    device = model.compute_device = accelerator.device
    if ranks() == 1 and config.replicate <= 1 and not config.cpu_offload:
        return _placed(model, device)
    if strategy_on(device.type, config) == "ddp":
        wrapped = accelerator.prepare(_placed(model, device))
        # Ours (rotary frequencies) never change. (As an attribute: the argument has another name in each torch.)
        wrapped.broadcast_buffers = False
        return wrapped
    if not model.tested:
        hint = f"the model is a {model.config.model_type}, whose layers are not sharded; set ddp"
        raise AgreedError(UserError("parallel.strategy", "fsdp", hint))  # every rank comes here
    # Straight from the CPU: a layer is moved when it is sharded, so no device ever holds the whole model.
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if config.cpu_offload else OffloadPolicy()
    shard = functools.partial(fully_shard, mesh=_mesh(device.type, config.replicate), offload_policy=offload)
    # Inputs stay as they come: autocast rounds what a matrix product reads, and nothing else.
    gathered_in = functools.partial(MixedPrecisionPolicy, reduce_dtype=torch.float32, cast_forward_inputs=False)
    in_layers = MixedPrecisionPolicy()
    if model.bf16 or model.weights != torch.float32:
        in_layers = gathered_in(param_dtype=torch.bfloat16 if model.bf16 else torch.float32)
    for layer in model.backbone.layers:
        shard(placed(layer, device, model.weights), mp_policy=in_layers)
    if model.weights != torch.float32:
        embedding = placed(model.classifier.get_input_embeddings(), device, model.weights)
        shard(embedding, mp_policy=gathered_in(param_dtype=torch.float32))
    for part in _rest(model):
        placed(part, device)
    return shard(model)


def _placed(model: RewardModel, device: torch.device) -> RewardModel:
    """The whole model on its device, each part in what it is kept in."""
    if model.weights != torch.float32:
        for part in (*model.backbone.layers, model.classifier.get_input_embeddings()):
            placed(part, device, model.weights)
        for part in _rest(model):
            placed(part, device)
        return model
    return placed(model, device)


def _rest(model: RewardModel) -> list[nn.Module]:
    """What is kept in float32 whatever --model.weights says; the embedding too, where that says float32."""
    apart = [model.backbone, model.backbone.layers]
    if model.weights != torch.float32:
        apart.append(model.classifier.get_input_embeddings())
    parts = (*model.classifier.children(), *model.backbone.children())
    return [part for part in parts if all(part is not other for other in apart)]


def _mesh(device: str, replicate: int) -> DeviceMesh:
    """All ranks in one row, or a row for each copy of the model (HSDP: copied over rows, sharded along them)."""
    if not dist.is_initialized():  # one process, which shards nothing but may offload
        backend = "cuda:nccl,cpu:gloo" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    count = ranks()
    copies = replicate or max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    if count % copies:
        processes = f"{count} process{'es' if count > 1 else ''}"
        hint = f"{processes} cannot be split into {copies} equal groups; set a divisor of {count}"
        raise AgreedError(UserError("parallel.replicate", replicate, hint))  # every rank comes here
    if copies == 1:
        return init_device_mesh(device, (count,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (copies, count // copies), mesh_dim_names=("replicate", "shard"))


def accumulating(wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Around a microbatch: DDP waits with its all-reduce for the last one. FSDP2 reduces each, into its shard."""
    if isinstance(wrapped, nn.parallel.DistributedDataParallel) and not last:
        return wrapped.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def in_float32(model: RewardModel) -> Iterator[None]:
    """Within the block the model computes without bf16: its layers run on their float32 shards, gathered whole.

    For forward passes without a gradient, rare and short, so they are not compiled; every rank must take part.
    """
    with uncompiled(model):
        yield from _in_float32(model)


def _in_float32(model: RewardModel) -> Iterator[None]:
    layers = [m for m in model.layers if model.bf16 and isinstance(m, FSDPModule)]
    for layer in layers:
        layer.forward = functools.partial(_forward_float32, layer, dict(layer.named_parameters()))
    bf16, model.bf16 = model.bf16, False
    try:
        yield
    finally:
        model.bf16 = bf16
        for layer in layers:
            del layer.forward
        if isinstance(model, FSDPModule):
            model.reshard()  # a forward leaves the root gathered: its parameters are not those that an optimizer takes


def _forward_float32(layer: nn.Module, shards: dict[str, nn.Parameter], *args: Any, **kwargs: Any) -> Any:
    """The layer's own forward, in which the parameters that FSDP2 gathered in bf16 are changed for float32 ones."""
    gathered = dict(layer.named_parameters())
    device = next(iter(gathered.values())).device
    _put(layer, {name: nn.Parameter(shard.full_tensor().to(device)) for name, shard in shards.items()})
    try:
        return type(layer).forward(layer, *args, **kwargs)
    finally:
        _put(layer, gathered)


def _put(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, parameter)


def gathered(tensor: Tensor) -> Tensor:
    """The full tensor, of a sharded one or any other; every rank must ask for it. One that is offloaded too is gathered
    on the device that computes."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to(tensor.device_mesh.device_type).full_tensor()


@torch.no_grad()
def put_whole(tensor: Tensor, full: Tensor) -> None:
    """Give a tensor, sharded or not, the values of `full`, which every rank holds: the inverse of `gathered`."""
    if isinstance(tensor, DTensor):
        own = distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor, full = tensor.to_local(), own.to_local()
    tensor.copy_(full)
