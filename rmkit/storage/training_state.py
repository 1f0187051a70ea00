"""The state of training besides the weights: the optimizer's, and the random generators of every rank.

torch.distributed.checkpoint writes and reads it as safetensors files (its default is a pickle). Each rank writes its
shards with their place in the whole tensor, and any number of ranks can read them, sharded or not. Moments of any dtype
have the shape of their parameter; scales of 8-bit ones fewer columns, and the same shards along the rows.
"""

import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from rmkit.distributed.collectives import rank, ranks
from rmkit.errors import brief
from rmkit.model.reward_model import RewardModel
from rmkit.storage import host
from rmkit_kernels import scale_like

# torch warns when a process saves or loads alone, which is meant here. Not in a `with` block: threads share filters.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

RANDOM = ("cpu", "cuda")


def copied(model: RewardModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """A copy of the state on the CPU: `optimizer.PARAMETER.KEY`, sharded as the parameter, and `random.RANK.DEVICE`."""
    state = {
        f"optimizer.{name}.{key}": host.copied(value)
        for name, parameter in model.classifier.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    host.wait()
    state[f"random.{rank()}.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        state[f"random.{rank()}.cuda"] = torch.cuda.get_rng_state()
    return state


def write(
    state: dict[str, Tensor], folder: Path, file_of: dict[str, str], group: dist.ProcessGroup | None = None
) -> list[Path]:
    """Write this rank's part of what `copied` returned; the paths of the files. All ranks of `group` take part.

    The state is split into files as the parameters are in `file_of`, because a file is built in memory before it is
    written.
    """
    number = {file: i for i, file in enumerate(sorted(set(file_of.values())), start=1)}
    mapping = {name: number.get(file_of.get(name.partition(".")[2].rpartition(".")[0], ""), 1) for name in state}
    mapping |= {f"random.{r}.{device}": 1 for r in range(ranks()) for device in RANDOM}
    writer = dcp.HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=mapping, save_distributed=True)
    # Nothing is left to copy from a GPU: by default it would wait for the stream that trains, once for every tensor.
    writer.per_thread_copy_ahead = 0
    try:
        dcp.save(state, storage_writer=writer, process_group=group, no_dist=group is None)
    except dcp.api.CheckpointException as failed:  # not an Exception
        raise next(iter(failed.failures.values()))[0] from None
    return sorted(folder.glob(f"shard-{rank() + 1:05d}-*"))


def load(folder: Path, model: RewardModel, optimizer: torch.optim.Optimizer) -> None:
    """Load the state of the optimizer and the random generators from `folder`.

    Each rank reads what it needs from all files. A rank whose number did not exist when the state was written keeps its
    generators as they are. Raises ValueError where a parameter has no state, or where the files cannot be read.
    """
    try:
        _load(folder, model, optimizer)
    except (ValueError, OSError):
        raise
    except (Exception, dcp.api.CheckpointException) as error:  # tensors of another shape, a header that is none
        raise ValueError(f"{folder}: the state of training cannot be read ({brief(error)})") from error


def _load(folder: Path, model: RewardModel, optimizer: torch.optim.Optimizer) -> None:
    reader = dcp.HuggingFaceStorageReader(str(folder))
    held = reader.read_metadata().state_dict_metadata
    parameters = {name: p for name, p in model.classifier.named_parameters() if p.requires_grad}
    state = {}
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for name, saved in held.items():
        kind, _, rest = name.partition(".")
        owner, _, key = rest.rpartition(".")
        dtype = saved.properties.dtype
        if kind == "optimizer":
            if owner not in parameters:
                raise ValueError(f"{folder}: it holds optimizer state of {owner}, which the model does not have")
            state[name] = _blank(parameters[owner].detach(), key, saved)
            by_parameter.setdefault(owner, {})[key] = state[name]
        elif owner == str(rank()):
            state[name] = torch.zeros(saved.size, dtype=dtype)
    if by_parameter and (absent := parameters.keys() - by_parameter.keys()):
        raise ValueError(f"{folder}: it holds no optimizer state of {min(absent)}")
    dcp.load(state, storage_reader=reader, no_dist=True)  # each rank by itself: there is nothing to agree on
    if (name := f"random.{rank()}.cpu") in state:
        torch.set_rng_state(state[name])
    if (name := f"random.{rank()}.cuda") in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state[name])
    name_of = {parameter: name for name, parameter in parameters.items()}
    ordered = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    numbered = {i: by_parameter[name] for i, name in enumerate(ordered) if name in by_parameter}
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})


def _blank(parameter: Tensor, key: str, saved: TensorStorageMetadata) -> Tensor:
    """Zeros for a value of a parameter's state, sharded as the parameter is; the count of steps is one number."""
    dtype = saved.properties.dtype
    if saved.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=dtype)
    scales = scale_like(parameter) if key.endswith("_scale") else None
    return scales if scales is not None and saved.size == scales.shape else torch.zeros(saved.size, dtype=dtype)
