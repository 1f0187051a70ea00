"""Checks on a CUDA device that computes nothing: `python -m support.dry_cuda.checks CHECK ..` prints what each found.

A check is [NAME, ARGUMENTS ..] as JSON, and so is what it found: a line each. Read by tests/test_dry_cuda.py, in a
process of its own, because the device must be there before torch. What is imported is imported once: each check runs
in a fork.
"""

import contextlib
import json
import os
import sys

import support.dry_cuda.device as device  # isort: skip (before torch)
import numpy as np
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from rmkit import train
from rmkit.batch.trie import pack
from rmkit.config import LossConfig, OptimConfig, TrainConfig
from rmkit.data import demo
from rmkit.distributed import sharding
from rmkit.distributed.sharding import in_float32
from rmkit.model.compile import compile_layers, compiling
from rmkit.model.reward_model import RewardModel
from rmkit.runtime import Stop
from rmkit.scorer import _round_projections
from rmkit.storage import export, training_state
from rmkit.storage.checkpoint import Progress
from rmkit.training.optim import adamw
from rmkit.training.record import Meter
from rmkit.training.run import Run
from support.decoders import LLAMA_3_8B
from support.dry_cuda.models import GPU, accelerator, batch, built, placed
from support.dry_cuda.tally import Tally
from support.oracle import FAMILIES, TINY, random_pairs
from support.pairs_of import batches_of, random_tokenised

GIB = 2**30
LAYOUTS = ("trie", "packed", "padded")


@contextlib.contextmanager
def faked():
    with FakeTensorMode(allow_non_fake_inputs=True), Tally() as tally:
        yield tally


def step(family: str, layout: str, recomputed: bool) -> list[str]:
    """What is wrong with a forward and a backward pass of a family."""
    sequences, pairs = random_pairs(np.random.default_rng(3), 6)
    chosen, rejected = zip(*pairs, strict=True)
    with faked() as tally:
        model = built(family, {**TINY, **FAMILIES[family]}, layout=layout, recomputed=recomputed)
        wrapped = placed(model)
        packed = pack(sequences, chosen, rejected, layout=layout).to(GPU)
        tally.operators.clear(), tally.waits.clear()
        loss, rewards, sums = wrapped(packed, LossConfig(center=0.1), 6.0)
        forward = tally.operators.copy()
        loss.backward()
        wrong = [
            f"{name} is {t.dtype} on {t.device}"
            for name, t, dtype in (
                ("loss", loss, torch.float32),
                ("rewards", rewards, torch.float32),
                ("sums", sums.values, torch.float64),
            )
            if t.dtype != dtype or t.device != GPU
        ]
        for name, p in model.named_parameters():
            g = p.grad
            if g is None or p.dtype != torch.float32 or (g.dtype, g.device, g.shape) != (p.dtype, GPU, p.shape):
                wrong.append(f"{name}: {p.dtype}, its gradient {g is not None and (g.dtype, g.device, g.shape)}")
    wrong += [f"waits: {wait}" for wait in tally.waits]
    layers = len(model.backbone.layers)
    if tally.operators["select_backward"] >= layers:
        wrong.append("gradients of select in each layer, which fill and copy")
    varlen = sum(n for name, n in forward.items() if "varlen_attn" in name)
    flash = layout != "padded" and family != "gemma2"  # whose softcap needs the package flash_attn
    if varlen != flash * layers:
        wrong.append(f"varlen attention ran {varlen} times in {layers} layers")
    again = sum(n for name, n in tally.operators.items() if "varlen_attn" in name and "backward" not in name)
    if flash and again != layers + recomputed * (layers - 1):
        wrong.append(f"varlen attention ran {again} times with recomputation {recomputed}")
    return wrong


def scored(family: str, layout: str) -> list[str]:
    """What is wrong with scoring: the self-check in float32, projections rounded once, nothing to score."""
    sequences, _ = random_pairs(np.random.default_rng(3), 6)
    with faked() as tally:
        model = built(family, {**TINY, **FAMILIES[family]}, layout=layout)
        placed(model)
        model.eval()
        with torch.no_grad():
            batches = [pack(given, layout=layout).to(model.device) for given in (sequences, [])]
            tally.waits.clear()
            with in_float32(model):
                found = [model(batches[0])]
            _round_projections(model)
            found += [model(each) for each in batches]
    wrong = [f"scores are {s.dtype} on {s.device}" for s in found if s.dtype != torch.float32 or s.device != GPU]
    return wrong + [f"waits: {wait}" for wait in tally.waits]


def families(everything: bool = False) -> dict:
    """Families, layouts, recomputation: all of them, or each family and, with llama, each layout."""
    found = {}
    for family in FAMILIES:
        for layout in LAYOUTS:
            usual = layout == "trie" or family == "llama"
            for recomputed in (False, True):
                if everything or (usual and recomputed) or (family, layout) == ("llama", "trie"):
                    found[f"{family} {layout} {recomputed}"] = step(family, layout, recomputed)
            if everything or (layout == "trie" and family in ("llama", "gemma2", "phi3")):
                found[f"{family} {layout} scored"] = scored(family, layout)
    return found


def stepped(model: RewardModel, optimizer: torch.optim.Optimizer) -> None:
    """An optimizer step on the gradients that are there, zeros where there is none."""
    for parameter in model.parameters():
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def peak(tokens: int, weights: str = "auto", states: str = "fp32", rank: int = 0) -> dict:
    """GiB on one device at the peak of training Llama-3-8B with recomputation, and while it is placed; by default all
    its state is float32."""
    with faked() as tally:
        model = built("llama", LLAMA_3_8B, recomputed=True, weights=weights, rank=rank)
        wrapped = placed(model)
        found = {"placed": tally.peak / GIB, "parameters": sum(p.numel() for p in model.parameters())}
        optimizer = adamw(model, OptimConfig(lr=1e-5, states=states))
        stepped(model, optimizer)  # Adam's state is there from now on
        for i in range(2):
            packed = batch(tokens, seed=i)
            wrapped(packed, LossConfig(), 8.0).loss.backward()
        stepped(model, optimizer)
    return {**found, "peak": tally.peak / GIB, "tokens": packed.tokens, "left": tally.held / GIB}


def sharded(layers: int, tokens: int, offload: bool, weights: str = "auto", states: str = "fp32") -> dict:
    """Training, saving and the self-check of Llama-3-8B's first layers on one of four ranks under FSDP2."""
    device.join(device.RANKS)
    mesh = sharding._mesh("cuda", 1)
    sharding._mesh = lambda *_: mesh  # one cannot be made among fake tensors
    FakeTensor.tolist = lambda scores: [0.0] * len(scores)  # nothing was computed
    tokenizer = demo.tokenizer()
    with faked() as tally:
        model = built("llama", {**LLAMA_3_8B, "num_hidden_layers": layers}, recomputed=True, weights=weights)
        wrapped = placed(model, strategy="fsdp", cpu_offload=offload)
        optimizer = adamw(model, OptimConfig(lr=1e-5, states=states))
        stepped(model, optimizer)
        for i in range(2):
            packed = batch(tokens, seed=i)
            loss = wrapped(packed, LossConfig(), 8.0).loss
            loss.backward()
        kinds = {f"{type(p.grad).__name__} {p.grad.dtype} {p.grad.device.type}" for p in model.parameters()}
        trained = tally.peak / GIB
        stepped(model, optimizer)
        taken = export.snapshot(model, tokenizer, TrainConfig(), 512)
        state = training_state.copied(model, optimizer)
    copies = [*(t for file in taken.weights.values() for t in file.values()), *state.values()]
    return {
        "peak": trained,
        "peak with saving": tally.peak / GIB,
        "gradients": sorted(kinds),
        "loss": f"{loss.dtype} {loss.device.type}",
        "copies": sorted({t.device.type for t in copies}),
        "saved": len(taken.file_of),
        "scores": len(taken.contract["self_check"]["scores"]),
    }


def waits() -> dict:
    """What the host waits for in an optimizer step of several microbatches, and how often it reads from the device."""
    reads = []
    FakeTensor.tolist = lambda values: reads.append(1) or [1.0] * len(values)  # nothing was computed
    with faked() as tally:
        model = built("llama", TINY, recomputed=True)
        run = Run(
            config=TrainConfig(optim=OptimConfig(lr=1e-5, max_steps=1)),
            accelerator=accelerator(),
            model=model,
            wrapped=placed(model),
            tokenizer=demo.tokenizer(),
            optimizer=adamw(model, OptimConfig(lr=1e-5)),
            train=batches_of(random_tokenised(24), max_tokens=120),
            test=None,
            max_length=128,
            progress=Progress(),
            plan=None,
            meter=Meter(plan=None, device=GPU, rate=None),
        )
        forwards = []
        model.register_forward_pre_hook(lambda *_: forwards.append(1))
        tally.waits.clear()
        train.train_step(run, run.microbatches(0), 0, Stop())
    return {"waits": dict(tally.waits), "microbatches": len(forwards), "reads": len(reads)}


def compiled(backend: str, weights: str = "auto", rank: int = 0) -> dict:
    """How often a backend has been asked to compile after a scoring pass and after each of five batches of other sizes,
    for all layers."""
    counter = CompileCounterWithBackend(backend)
    with FakeTensorMode(allow_non_fake_inputs=True):  # no tally: dynamo compiles under no other mode
        model = built("qwen3", {**TINY, "num_hidden_layers": 6}, recomputed=True, weights=weights, rank=rank)
        wrapped = placed(model)
        compile_layers(model, backend=counter, fullgraph=True)
        frames = []
        with compiling():
            with torch.no_grad():
                wrapped(batch(1500, prompt=100, response=100), features=True)
            frames.append(counter.frame_count)
            for seed, tokens in enumerate((2048, 3000, 2500, 2000, 2600)):
                packed = batch(tokens, seed=seed, prompt=100, response=100)
                wrapped(packed, LossConfig(), 8.0).loss.backward()
                frames.append(counter.frame_count)
    return {"frames": frames}


def main() -> None:
    """Run the checks one after the other; one that fails leaves a line with null, and its traceback."""
    for check in sys.argv[1:]:
        name, *arguments = json.loads(check)
        if (child := os.fork()) == 0:
            print(json.dumps(globals()[name](*arguments)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print("null", flush=True)


if __name__ == "__main__":
    main()
