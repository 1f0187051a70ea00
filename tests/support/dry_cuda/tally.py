"""What a fake device is asked for: memory at its peak, operators by name, and what the host waits for."""

import traceback
import weakref
from collections import Counter
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDED = 512
"""Bytes to which CUDA's allocator rounds"""
FLASH_ROWS = 128
"""Rows by which flash attention's float32 scratch for dQ grows with each segment"""
WAITS = ("_local_scalar_dense", "nonzero", "item")


class Tally(TorchDispatchMode):
    """Counts while it is active. Tensors that are older are not seen: build the model under it too."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        """Bytes on the device now, and at most since `peak` was last set"""
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        """Copies between host and device that block, and values that the host reads: by operator and line of rmkit"""
        self._sizes = weakref.WeakKeyDictionary()
        self._asleep = False
        self._follow_sharding()

    def _follow_sharding(self) -> None:
        resize, propagate = torch.UntypedStorage.resize_, ShardingPropagator._propagate_tensor_meta_non_cached

        def resized(storage: torch.UntypedStorage, size: int):  # how FSDP2 frees what it gathered
            done = resize(storage, size)
            if storage in self._sizes:
                self._grow(self._sizes[storage], size)
            return done

        def propagated(*args):  # how DTensor learns shapes: on whole tensors, which are nowhere
            self._asleep = True
            try:
                return propagate(*args)
            finally:
                self._asleep = False

        torch.UntypedStorage.resize_, ShardingPropagator._propagate_tensor_meta_non_cached = resized, propagated

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes again, as operators on the local shards
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self._asleep:
            return result
        name = function._schema.name.split("::")[1]
        self.operators[name] += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda" and not isinstance(tensor, DTensor):
                self._see(tensor.untyped_storage())
        if "_varlen_attn" in name and name.endswith("backward"):
            query, segments = args[1], args[6].numel() - 1
            scratch = (query.shape[0] + FLASH_ROWS * segments) * query.shape[1] * query.shape[2] * 4
            self.peak = max(self.peak, self.held + scratch)
        if name in WAITS or _blocks(name, args, kwargs, result):
            self.waits[f"{name} at {_line_of_rmkit()}"] += 1
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._sizes:
            box = self._sizes[storage] = [0]
            weakref.finalize(storage, self._grow, box, 0)
            self._grow(box, storage.nbytes())

    def _grow(self, box: list[int], size: int) -> None:
        rounded = -(-int(size) // ROUNDED) * ROUNDED
        self.held += rounded - box[0]
        box[0] = rounded
        self.peak = max(self.peak, self.held)


def _blocks(name: str, args: tuple, kwargs: dict, result) -> bool:
    """Whether it is a copy between host and device that the host waits for."""
    if name not in ("_to_copy", "copy_") or not isinstance(result, torch.Tensor):
        return False
    source = args[1] if name == "copy_" else args[0]
    if source.device.type == result.device.type or (name == "copy_" and source.dim() == 0 and source.is_cpu):
        return False
    return not kwargs.get("non_blocking", len(args) > 2 and args[2])


def _line_of_rmkit() -> str:
    frames = [f for f in traceback.extract_stack() if "/rmkit/" in f.filename]
    return f"{Path(frames[-1].filename).name}: {frames[-1].line}" if frames else "?"
