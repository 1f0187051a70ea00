"""AdamW whose weights may be bf16 and whose moments may be bf16 or 8 bits: a step of `rmkit_kernels.adamw_lowbit` for
each parameter, on the shard that this rank holds.

How a value is rounded depends on the seed, the step, the parameter's name and the element's place in the whole
parameter, on nothing else: any number of ranks makes the same of the same gradients, copies of a model (DDP) stay
equal, and a resumed run goes on as it would have gone. torch's fused AdamW stays in place for float32.
"""

import hashlib
import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rmkit_kernels import adamw_lowbit, scale_like

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "8bit": torch.uint8}
"""Of the moments of matrices, by --optim.states. Those of vectors and of the head are float32: they are few, and the
head sets the scale of the score."""
SCALES = ("exp_avg_scale", "exp_avg_sq_scale")


class LowBitAdamW(torch.optim.Optimizer):
    """The state of a parameter is that of torch.optim.AdamW (`step`, `exp_avg`, `exp_avg_sq`), with the scales of
    8-bit codes beside it (`exp_avg_scale`, `exp_avg_sq_scale`)."""

    def __init__(
        self, groups: list[dict[str, Any]], names: dict[nn.Parameter, str], *, lr: float, states: str, seed: int
    ) -> None:
        """`groups` as torch.optim takes them, each with its weight_decay; `names` in the classifier."""
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0})
        self._names, self._states, self._seed = names, DTYPES[states], seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= self._fresh(parameter)
        state["step"] += 1  # on the CPU: to read it waits for nothing
        step, (scale, scale_of_square) = int(state["step"]), map(state.get, SCALES)
        adamw_lowbit(
            *map(_local, (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], scale, scale_of_square)),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            decay=group["weight_decay"],
            step=step,
            offset=_offset(parameter),
            keys=_keys(self._seed, step, self._names[parameter]),
        )

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        weight = parameter.detach()
        matrix = parameter.ndim >= 2 and not self._names[parameter].startswith("score.")
        dtype = self._states if matrix else torch.float32
        # Zeros made apart: they are changed in place.
        moments = {
            key: torch.zeros_like(weight, dtype=dtype, memory_format=torch.contiguous_format)
            for key in ("exp_avg", "exp_avg_sq")
        }
        scales = {key: scale_like(weight) for key in SCALES} if dtype == torch.uint8 else {}
        return {"step": torch.tensor(0.0), **moments, **scales}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would make every state what the parameter is: its dtype is not the moments'."""
        ordered = [parameter for group in self.param_groups for parameter in group["params"]]
        self.state = defaultdict(dict)
        for i, held in state_dict["state"].items():
            device = ordered[i].device
            self.state[ordered[i]] = {key: v if key == "step" else v.to(device) for key, v in held.items()}
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group |= {key: value for key, value in saved.items() if key != "params"}


def _local(tensor: Tensor | None) -> Tensor | None:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _offset(parameter: Tensor) -> int:
    """Place of the first element of this rank's shard in the whole parameter: FSDP2 cuts rows as torch.chunk does."""
    if not isinstance(parameter, DTensor):
        return 0
    rows, row = parameter.shape[0], math.prod(parameter.shape[1:])
    (axis,) = [i for i, placement in enumerate(parameter.placements) if placement.is_shard(0)]
    chunk = -(-rows // parameter.device_mesh.size(axis))
    first = min(rows, chunk * parameter.device_mesh.get_local_rank(axis))
    assert parameter.to_local().shape[0] == min(chunk, rows - first)
    return first * row


def _keys(seed: int, step: int, name: str) -> tuple[int, int]:
    """Two 32-bit keys for the rounding of a parameter's step."""
    drawn = hashlib.blake2b(f"{seed} {step} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn[:4], "little", signed=True), int.from_bytes(drawn[4:], "little", signed=True)
