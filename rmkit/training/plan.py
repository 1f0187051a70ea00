"""The plan of a training, known before its weights are read: what it takes, and what would make it fit."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from transformers import PretrainedConfig

from rmkit.batch.build import Batches
from rmkit.batch.pairs import TokenisedPairs
from rmkit.batch.planner import pair_cost_of
from rmkit.config import DEMO, TrainConfig
from rmkit.distributed.collectives import rank, ranks
from rmkit.distributed.sharding import strategy_on
from rmkit.runtime import full
from rmkit.training.cards import H100, rate_of
from rmkit.training.estimate import Load, Memory, Shape, Way, memory, shape_of
from rmkit.training.workload import SAMPLED, Workload, workload

GIB = 2**30
MARGIN, CONTEXT = 1.05, 1.0
"""A step fits where its estimate, and as much more as an estimate may be off (bench/results/memory.json), leave this
many GiB to CUDA itself: its context, and the workspaces of cuBLAS and NCCL."""
AT_START = 8
"""Steps that a training plans before it says what it takes"""
LORA_RANK = 16
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What is trained on."""

    count: int
    kind: str
    """cuda or cpu"""
    memory: float | None
    """GiB of each; None where it is not known"""
    rate: float | None
    """FLOP/s of each at its peak; None where it is not known"""
    name: str


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Other flags for the same training, and how it then holds the model."""

    flags: tuple[tuple[str, ...], ...]
    way: Way
    load: Load
    memory: Memory

    @property
    def shown(self) -> str:
        return " ".join(word for flag in self.flags for word in flag)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training, the devices it runs on, and what it takes of them."""

    config: TrainConfig
    way: Way
    stored_bf16: bool
    """Whether the checkpoint is bf16 and computes in it: its frozen weights stay so under LoRA"""
    shape: Shape
    devices: Devices
    workload: Workload
    longest: int
    """Tokens that every pair fits into"""

    @cached_property
    def memory(self) -> Memory:
        return memory(self.shape, self.way, self.workload.load)

    @property
    def fits(self) -> bool:
        return _fits(self.memory, self.devices)

    def decided(self) -> "Plan":
        """The same with --model.gradient-checkpointing decided: on where a GPU does not hold the step without."""
        if self.config.model.gradient_checkpointing != "auto":
            return self
        recompute = self.devices.kind == "cuda" and not self.fits
        model = replace(self.config.model, gradient_checkpointing="on" if recompute else "off")
        return replace(self, config=replace(self.config, model=model), way=replace(self.way, recompute=recompute))

    def line(self) -> str:
        """What a training says of its memory."""
        m, d = self.memory, self.devices
        if d.kind == "cpu":
            # What CPUs keep for the backward pass is another matter, and was not counted.
            held = m.weights + m.states + self.gradients
            return f"memory: weights, gradients and Adam's state take {gib(held)}, activations beside"
        parts = f"weights {gib(m.weights)}, gradients {gib(m.gradients)}, Adam {gib(m.states)}"
        parts += f", gathered {gib(m.gathered)}" if m.gathered else ""
        of = f" of {d.memory:.1f}" if d.memory else ""
        # No peak with 4-bit weights was ever counted: bitsandbytes needs a GPU.
        roughly = "" if self.shape.counted and not self.way.four_bit else " roughly"
        return f"memory, estimated{roughly}: {gib(m.peak)}{of} on each GPU ({parts}, activations {gib(m.activations)})"

    @property
    def gradients(self) -> float:
        """Bytes of all gradients on a device, whether they are there at the peak or not."""
        return memory(self.shape, self.way, replace(Load.of_nothing(), tokens=1, microbatches=2)).gradients

    def offers(self, below: float | None = None) -> Iterator[Offer]:
        """Other flags that fit, the cheapest first; none that are others with flags more or less.

        The order is: what costs time alone (recomputation, smaller microbatches), what rounds more, what trains less,
        more GPUs, what waits for the CPU. `below`: bytes that they have to stay under besides.
        """
        seen: list[set[str]] = []
        for offer in self._changes():
            kinds = {flag[0] for flag in offer.flags}
            small = below is None or offer.memory.peak <= below
            if not (kinds and small and _fits(offer.memory, self.devices)):
                continue
            if not any(other <= kinds or kinds <= other for other in seen):
                seen.append(kinds)
                yield offer

    def _changes(self) -> Iterator[Offer]:
        """Every choice of other flags; the last of these lists is the cheapest to change."""
        way, n, load = self.way, self.devices.count, self.workload.load
        lists: list[list[tuple[tuple[str, ...], dict[str, Any]]]] = [[((), {})] for _ in range(7)]
        offload, gpus, lora, weights, states, budgets, again = lists
        splits = not way.four_bit  # fsdp cannot shard 4-bit weights
        if splits and not way.offload:
            offload.append((("--parallel.cpu-offload",), {"offload": True, "sharded": True}))
        more = (2, 4, 8) if splits else ()
        gpus += [(("with", f"{n * k} GPUs"), {"shards": way.shards * k, "sharded": True}) for k in more]
        if not way.rank and self.config.model.name != DEMO:
            frozen = {"weights": "bf16"} if self.stored_bf16 and self.config.model.weights == "auto" else {}
            lora.append((("--lora.rank", str(LORA_RANK)), {"rank": LORA_RANK, **frozen}))
        if way.weights == "fp32":
            weights.append((("--model.weights", "bf16"), {"weights": "bf16"}))
        if way.states != "8bit":
            states.append((("--optim.states", "8bit"), {"states": "8bit"}))
        for k in (2, 4, 8, 16):
            if (tokens := load.tokens // k) >= max(self.longest, self.config.data.max_length or 0):
                budgets.append((("--batch.max-tokens", str(tokens)), {"share": 1 / k}))
        if not way.recompute:
            again.append((("--model.gradient-checkpointing", "on"), {"recompute": True}))
        for parts in product(*lists):
            changes = {key: value for _, change in parts for key, value in change.items()}
            smaller = _scaled(load, changes.pop("share", 1.0))
            other = replace(way, **changes)
            flags = tuple(flag for flag, _ in reversed(parts) if flag)
            yield Offer(flags=flags, way=other, load=smaller, memory=memory(self.shape, other, smaller))


def made(
    config: TrainConfig, architecture: PretrainedConfig, pairs: TokenisedPairs, processes: int, at_most: int = SAMPLED
) -> Plan:
    """The plan of training on these pairs with the devices of this run, or with those that --plan.* describe; at most
    so many steps are planned."""
    shape, devices = shape_of(architecture), _devices(config, processes)
    stored_bf16 = architecture.dtype == torch.bfloat16 and _in_bf16(config, devices)
    head = shape.queries // shape.heads
    batches = Batches(
        items=pairs,
        config=config.batch,
        pad_token_id=0,
        pair_cost=pair_cost_of(shape.layers, shape.heads, head, shape.layers * shape.layer),
        ranks=devices.count,
    )
    return Plan(
        config=config,
        way=_way(config, devices, stored_bf16),
        stored_bf16=stored_bf16,
        shape=shape,
        devices=devices,
        workload=workload(batches, config, at_most),
        longest=int(pairs.lengths.length[pairs.lengths.place].sum(1).max()),
    )


def at_start(
    config: TrainConfig, architecture: PretrainedConfig, pairs: TokenisedPairs, processes: int, say: Say
) -> Plan:
    """The plan of a training that starts, told in a line; what auto means is decided, and said where it costs time."""
    asked = made(config, architecture, pairs, processes, AT_START)
    plan = asked.decided()
    say(plan.line())
    if plan.way.recompute and not asked.way.recompute:
        say("layers are recomputed in the backward pass, since the step would not fit without; it costs a third more")
    return plan


def _devices(config: TrainConfig, processes: int) -> Devices:
    plan, here = config.plan, torch.cuda.is_available()
    asked = plan.gpus is not None or plan.memory is not None
    name = torch.cuda.get_device_name() if here else "H100 SXM" if asked else "CPU"
    held = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB if here else None
    rate = rate_of(name) if here else H100 if asked else None
    return Devices(
        count=plan.gpus or processes,
        kind="cuda" if here or asked else "cpu",
        memory=plan.memory or held,
        rate=plan.rate * 1e12 if plan.rate else rate,
        name=name,
    )


def _in_bf16(config: TrainConfig, devices: Devices) -> bool:
    return config.model.precision == "bf16" or (config.model.precision == "auto" and devices.kind == "cuda")


def _way(config: TrainConfig, devices: Devices, stored_bf16: bool) -> Way:
    """How the flags hold the model; auto recomputes nothing here (`Plan.decided`)."""
    model, parallel, n = config.model, config.parallel, devices.count
    frozen = config.lora.rank > 0 and stored_bf16
    several = n > 1 or parallel.replicate > 1 or parallel.cpu_offload
    sharded = several and strategy_on(devices.kind, parallel) == "fsdp"
    return Way(
        states=config.optim.states,
        weights="bf16" if model.weights == "bf16" or (model.weights == "auto" and frozen) else "fp32",
        bf16=_in_bf16(config, devices),
        recompute=model.gradient_checkpointing == "on",
        rank=config.lora.rank,
        targets=config.lora.targets,
        four_bit=model.load == "4bit",
        shards=max(1, n // max(1, parallel.replicate)) if sharded else 1,
        sharded=sharded,
        offload=parallel.cpu_offload,
    )


def _fits(m: Memory, devices: Devices) -> bool:
    return devices.memory is None or m.peak / GIB * MARGIN + CONTEXT <= devices.memory


def _scaled(load: Load, share: float) -> Load:
    """The load of a smaller microbatch."""
    if share == 1.0:
        return load
    counts = {key: int(getattr(load, key) * share) for key in ("tokens", "pairs", "gathered", "end_keys")}
    rows = {key: max(1, int(getattr(load, key) * share)) for key in ("segments", "ends")}
    return replace(load, **counts, **rows, microbatches=max(2, round(load.microbatches / share)))


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


@contextlib.contextmanager
def told_if_full(plan: Plan) -> Iterator[None]:
    """Within the block a full GPU is a user's error that says what to change. Each rank tells it for itself: others may
    be waiting for this one in a collective, where nothing can be agreed on with them."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # ValueError: what says that weights could not be loaded, and why
        if full(error) != "GPU":
            raise
        # What was tried did not fit, whatever its estimate: there may be others on the GPU, or holes in its memory.
        offer = next(plan.offers(below=0.9 * plan.memory.peak), None)
        mend = f"give {offer.shown} ({gib(offer.memory.peak)})" if offer else "take a smaller model, or larger GPUs"
        of = f" of {plan.devices.memory:.1f}" if plan.devices.memory else ""
        where = f"rank {rank()}: " if ranks() > 1 else ""
        estimated = f"the estimate was {gib(plan.memory.peak)}{of}"
        raise ValueError(f"{where}the memory of the GPU is full; {estimated}: {mend}") from error
