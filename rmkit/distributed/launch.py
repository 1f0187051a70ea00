"""Start and end of the processes of a run, and the message when one is lost."""

import os
import re
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from rmkit.config import TrainConfig
from rmkit.distributed.collectives import ranks
from rmkit.distributed.sharding import strategy_on

TIMEOUT = timedelta(minutes=30)
"""How long a process waits in a step for the others: longer than their slowest save or evaluation. One that dies is
noticed at once: by the launcher, and on CPUs by its closed connection."""

ROLL_CALL = 5.0
"""Seconds for which the processes that have lost one wait for each other's answer."""

SWITCHES = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_DYNAMO_BACKEND",
)
"""How `accelerate launch` hands the engines of its configuration file to a program. Ours are chosen by flags, and
transformers leaves the weights out on every process but one where it finds the first."""


def overruled(config: TrainConfig) -> list[str]:
    """A sentence for each thing that accelerate's configuration asks for and the flags of a training do not do."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = config.model.precision == "bf16" or (config.model.precision == "auto" and device == "cuda")
    fsdp = strategy_on(device, config.parallel) == "fsdp"
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    ignored = []
    if precision != "no" and not (precision == "bf16" and bf16):
        ignored.append((f"mixed precision {precision}", f"--model.precision {'bf16' if bf16 else 'fp32'} holds"))
    if _on("ACCELERATE_USE_FSDP"):
        if not fsdp:
            ignored.append(("FSDP", "--parallel.strategy ddp holds; give --parallel.strategy fsdp"))
        if _on("FSDP_OFFLOAD_PARAMS") and not config.parallel.cpu_offload:
            ignored.append(("parameters on the CPU", "give --parallel.cpu-offload"))
        if _on("FSDP_ACTIVATION_CHECKPOINTING") and config.model.gradient_checkpointing != "on":
            ignored.append(("activation checkpointing", "give --model.gradient-checkpointing on"))
        if "HYBRID" in os.environ.get("FSDP_SHARDING_STRATEGY", "") and config.parallel.replicate == 1:
            ignored.append(("hybrid sharding", "give --parallel.replicate 0, a copy of the model on each node"))
    used = "ddp" if not fsdp else "fsdp"
    for variable, engine in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if _on(variable):
            ignored.append((engine, f"--parallel.strategy {used} holds"))
    if _on("ACCELERATE_USE_PARALLELISM_CONFIG"):
        ignored.append(("a parallelism configuration", f"--parallel.replicate {config.parallel.replicate} holds"))
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        ignored.append(("torch.compile", f"--model.compile {config.model.compile} holds"))
    return [f"accelerate's configuration asks for {what}, which is not done: {why}" for what, why in ignored]


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def grow_segments() -> None:
    """Have CUDA's allocator grow its segments, unless the user says otherwise.

    It sets an environment variable, so it is for our own programs, before they use CUDA.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name
        # Every microbatch has shapes of its own, which would leave holes in the GPU's memory that fit no later one.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def start(timeout: timedelta = TIMEOUT) -> Accelerator:
    """Join the processes that torchrun or accelerate launch started, or be the only one.

    Of accelerate's configuration only what it says about processes and devices is used.
    """
    for variable in SWITCHES:
        os.environ.pop(variable, None)
    cuda = torch.cuda.is_available()
    # gloo beside nccl: for what is agreed on, saved and offloaded on the CPU.
    backend = {"backend": "cuda:nccl,cpu:gloo"} if cuda and "LOCAL_RANK" in os.environ else {}
    # DDP's gradients lie in the buckets that it sends: 4 bytes a parameter less.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    group = InitProcessGroupKwargs(timeout=timeout, **backend)
    # Without a GPU accelerate makes a process group only when told that CPUs are meant.
    return Accelerator(cpu=not cuda, kwargs_handlers=[group, ddp])


def end(accelerator: Accelerator) -> None:
    """Leave the other processes, when all have come so far."""
    if ranks() > 1:
        dist.barrier()
        # gloo's threads need Python's lock to let go of the last tensors; the end of the group waits for the threads
        # with the lock held, which hangs unless they have had it before.
        time.sleep(0.1)
    accelerator.end_training()


def lost(error: BaseException) -> str | None:
    """The sentence for an error that comes from another process's end; None where it comes from something else."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return None
    silent = ", ".join(map(str, _silent_ranks()))
    who = f"rank {silent} has ended or does not answer" if silent else "every rank answers still"
    # gloo's place in its source, and its guesses, left out.
    why = re.sub(r"^\[\S+\] ", "", str(error).strip().splitlines()[0]).split(". ")[0]
    return f"The connection to another process was lost: {who}. Its own words, if any, stand in its log. ({why})"


def _silent_ranks() -> list[int]:
    """Ranks that do not answer a roll call of all that notice the loss."""
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    answers = [f"rmkit/roll-call/{attempt}/{each}" for each in range(int(os.environ["WORLD_SIZE"]))]
    try:
        socket.create_connection(where, ROLL_CALL).close()  # TCPStore tells a failure at length, with its C++ stack
        store = dist.TCPStore(*where, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=ROLL_CALL))
        store.set(answers[int(os.environ["RANK"])], "here")
        end = time.monotonic() + ROLL_CALL
        while (silent := [i for i, key in enumerate(answers) if not store.check([key])]) and time.monotonic() < end:
            time.sleep(0.1)
        return silent
    except (OSError, RuntimeError):
        return [0]  # without torchrun the first rank keeps the store, which ends with it
