"""What test_lowbit.py runs on two ranks: bf16 weights and 8-bit states, shared and saved, are those of one process."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from rmkit.config import OptimConfig, ParallelConfig
from rmkit.distributed.collectives import on_every_rank, rank
from rmkit.distributed.sharding import distribute
from rmkit.storage import training_state
from rmkit.storage.checkpoint import Progress
from rmkit.training.optim import adamw
from support.saved import TOKENIZER, save, small
from support.state_of import full_state, trained

OPTIM = OptimConfig(lr=0.01, states="8bit")


def shared(strategy: str):
    """A model with bf16 weights and its optimizer, as a run of this strategy has them."""
    model = small()
    model.weights = torch.bfloat16
    distribute(model, ParallelConfig(strategy=strategy), Accelerator(cpu=True))
    return model, adamw(model, OPTIM, seed=3)


def after(strategy: str, steps: int):
    model, optimizer = shared(strategy)
    trained(model, optimizer, steps)
    return model, optimizer


def read(strategy: str, folder: Path) -> dict:
    """The optimizer's state, whole, that a fresh run reads from a checkpoint."""
    model, optimizer = shared(strategy)
    training_state.load(folder / "training", model, optimizer)
    return {name: tensor for name, tensor in full_state(model, optimizer).items() if name.startswith("optimizer.")}


def differing(found: dict, wanted: dict) -> list[str]:
    return [n for n in found if found[n].dtype != wanted[n].dtype or not torch.equal(found[n], wanted[n])]


def main(folder: Path) -> None:
    """Leaves in found.json what differs from the state that one process left in wanted.safetensors."""
    Accelerator(cpu=True)
    wanted, found = load_file(folder / "wanted.safetensors"), {}
    for strategy in ("ddp", "fsdp"):
        model, optimizer = after(strategy, 3)
        found[strategy] = differing(full_state(model, optimizer), wanted)
        save(folder / strategy, Progress(step=3), model, TOKENIZER, optimizer)
    for written in ("one", "ddp", "fsdp"):
        for strategy in ("ddp", "fsdp"):
            held = read(strategy, folder / written / "checkpoints" / "step-3")
            found[f"{written} to {strategy}"] = differing(held, wanted) or (not held and ["nothing"])
    everyone = on_every_rank(lambda: found)
    if rank() == 0:
        (folder / "found.json").write_text(json.dumps(everyone))
