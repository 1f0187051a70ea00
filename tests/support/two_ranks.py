"""What test_state.py runs on two ranks: what one process and several make of each other's checkpoints."""

import json
import os
from dataclasses import replace

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from rmkit.config import ParallelConfig, SaveConfig
from rmkit.distributed.collectives import on_every_rank, rank
from rmkit.distributed.sharding import distribute
from rmkit.errors import AgreedError
from rmkit.storage import checkpoint, export, training_state
from rmkit.storage.checkpoint import Progress, newest_whole
from rmkit.storage.export import write_model
from rmkit.storage.self_check import verify
from rmkit.training.optim import adamw
from support.saved import CONFIG, TOKENIZER, save, small
from support.state_of import full_state, trained


def model_under(strategy):
    model = small()
    distribute(model, ParallelConfig(strategy=strategy), Accelerator(cpu=True))
    return model


def wrote(strategy, folder):
    """Save after three steps, while the next ones are made; what rank 0 should find there."""
    model = model_under(strategy)
    optimizer = adamw(model, CONFIG.optim)
    trained(model, optimizer, 3)
    wanted = full_state(model, optimizer)
    torch.manual_seed(100 + rank())
    random = torch.get_rng_state()
    save(folder, Progress(step=3), model, TOKENIZER, optimizer)
    if rank() == 0:
        save_file(wanted, folder / "wanted.safetensors")
    return random


def read(strategy, folder, random=None):
    """Whether Adam's state in a checkpoint, and the generators of this rank, are what they were."""
    model = model_under(strategy)
    optimizer = adamw(model, CONFIG.optim)
    before = torch.get_rng_state()
    training_state.load(folder / "checkpoints" / "step-3" / "training", model, optimizer)
    wanted = load_file(folder / "wanted.safetensors")
    found = {name: tensor for name, tensor in full_state(model, optimizer).items() if name.startswith("optimizer.")}
    same = all(torch.equal(found[name], wanted[name]) for name in found) and len(found) == 3 * len(
        list(model.parameters())
    )
    expected = random if random is not None else None if rank() == 0 else before
    return same and (expected is None or torch.equal(torch.get_rng_state(), expected))


def rounded(strategy, folder):
    """Whether a FINAL in bf16 is the rounded model, whole, with the scores of that."""
    write_model(model_under(strategy), TOKENIZER, replace(CONFIG, save=SaveConfig(dtype="bf16")), 77, folder)
    alone = small()
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.copy_(parameter.bfloat16())
    wanted = alone.classifier.state_dict()
    held = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    same = held.keys() == wanted.keys() and all(torch.equal(held[name], wanted[name].bfloat16()) for name in held)
    return same and verify(alone, TOKENIZER, folder) is not None


def full_disk_on_one(folder, part, name):
    """Rank 1 alone cannot write a part of the checkpoint."""
    model = model_under("fsdp")
    write = getattr(part, name)

    def full(*arguments):
        if rank() == 1:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    setattr(part, name, full)
    try:
        save(folder, Progress(step=4), model, TOKENIZER, adamw(model, CONFIG.optim))
    except AgreedError as error:
        told = "No space left on device" in str(error)
        dist.barrier()  # rank 0 has deleted what was written
        left = os.listdir(folder / "checkpoints")
        dist.barrier()  # before the next one is written
        return told and left == ["step-3"]
    finally:
        setattr(part, name, write)
    return False


def main(folder):
    """Leaves what every rank found in found.json."""
    Accelerator(cpu=True)
    export.FILE_SIZE = "20KB"  # several files, so that every rank has one to write
    found = {}
    for strategy in ("ddp", "fsdp"):
        random = wrote(strategy, folder / strategy)
        for other in ("ddp", "fsdp"):
            found[f"{strategy} to {other}"] = read(other, folder / strategy, random)
    for strategy in ("ddp", "fsdp"):
        found[f"bf16 under {strategy}"] = rounded(strategy, folder / f"final-{strategy}")
    for strategy in ("ddp", "fsdp"):
        found[f"one process to {strategy}"] = read(strategy, folder / "one")
    writer = training_state.dcp.HuggingFaceStorageWriter
    for part, name in ((export, "write"), (writer, "write_data"), (checkpoint, "checksums")):
        found[f"full disk in {name}"] = full_disk_on_one(folder / "fsdp", part, name)
    said = []
    if rank() == 0:
        file = folder / "fsdp" / "checkpoints" / "step-9" / "SHA256SUMS"
        file.parent.mkdir()
        file.write_text("")
    dist.barrier()
    newest, held = newest_whole(folder / "fsdp", said.append)
    found["newest"] = newest.name == "step-3" and held["progress"]["step"] == 3 and len(said) == 1
    everyone = on_every_rank(lambda: found)
    if rank() == 0:
        (folder / "found.json").write_text(json.dumps(everyone))
