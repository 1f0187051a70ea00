"""Rungs 1 and 2 of the exactness ladder on the device: every family and layout, fp32 and bf16, recomputed or not.

The truth is float64 on the CPU, one sequence at a time through plain transformers. A path may err twice as much as
plain transformers does, one sequence at a time, in the same precision on the same device (bf16: under autocast); in
float32 it may always err 1e-5 of the largest score, loss or gradient (tests/test_reward_model.py).
"""

import itertools
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from rmkit.batch.trie import pack
from rmkit.config import LossConfig
from rmkit.model.reward_model import RewardModel
from support.oracle import FAMILIES, gradients, random_pairs, reference_loss, reward_model, tiny_classifier

LAYOUTS = ("padded", "packed", "trie")
PRECISIONS = ("fp32", "bf16")
COMPILED = ("llama", "gemma2", "qwen3")
"""Families of which compiled layers are checked: half a minute each"""
WORDS = ("recomputed", "compiled")
FP32 = 1e-5
Found = tuple[Tensor, Tensor, Tensor]
"""Scores [S], loss, and all gradients as one vector; float64 on the CPU"""


def flat(module: torch.nn.Module) -> Tensor:
    return torch.cat([g.double().cpu().flatten() for g in gradients(module).values()])


def one_at_a_time(classifier: torch.nn.Module, sequences: list, pairs: list, device: torch.device, bf16: bool) -> Found:
    """Plain transformers."""
    classifier = classifier.to(device)
    classifier.zero_grad()
    ids = [torch.from_numpy(s.astype(np.int64))[None].to(device) for s in sequences]
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        scores = torch.cat([classifier(each).logits[:, -1] for each in ids])
    wide = scores.double().cpu()
    loss = reference_loss(wide, pairs)
    loss.backward()
    return wide.detach(), loss.detach(), flat(classifier)


def ours(model: RewardModel, sequences: list, pairs: list, layout: str, device: torch.device) -> Found:
    chosen, rejected = zip(*pairs, strict=True)
    model.zero_grad()
    loss, rewards, _ = model(pack(sequences, chosen, rejected, layout=layout).to(device), LossConfig())
    loss.backward()
    return rewards.double().cpu(), loss.detach().double().cpu(), flat(model)


def recompute(model: RewardModel) -> None:
    """As rmkit.model.pretrained.build_model does."""
    model.classifier.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    model.backbone.layers[-1].gradient_checkpointing = False


def compile_layers(model: RewardModel, tiny: bool) -> None:
    """As --model.compile on does; on the card by its own compiler, which no CPU has run."""
    from rmkit.model import compile as compiler

    torch._dynamo.reset()  # past its limit of recompilations it would run uncompiled, in silence
    compiler.compile_layers(model, **({"backend": "aot_eager"} if tiny else {}))


def errors(found: Found, truth: Found, bf16: bool) -> dict[str, float]:
    """Of scores, loss and gradients: the largest, over the largest magnitude; in bf16 by norms, which do not depend on
    one unlucky element."""
    if bf16:
        scores, gradient = (((a - b).norm() / b.norm()).item() for a, b in zip(found[::2], truth[::2], strict=True))
        return {"scores": scores, "gradients": gradient}
    worst = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, truth, strict=True)]
    return dict(zip(("scores", "loss", "gradients"), worst, strict=True))


def family_rows(family: str, device: torch.device, ways: list[tuple], tiny: bool) -> list[dict]:
    """Each way (precision, layout, recomputed, compiled) of one family to compute the same pairs, with its errors and
    their bounds."""
    sequences, pairs = random_pairs(np.random.default_rng(2), 4)
    cpu = torch.device("cpu")
    truth = one_at_a_time(tiny_classifier(family).double(), sequences, pairs, cpu, bf16=False)
    bounds, rows = {}, []
    for bf16 in (False, True):
        plain = errors(one_at_a_time(tiny_classifier(family), sequences, pairs, device, bf16), truth, bf16)
        bounds[bf16] = {key: max(2 * error, 0.0 if bf16 else FP32) for key, error in plain.items()}
    for precision, layout, again, compiled in ways:
        bf16 = precision == "bf16"
        model = reward_model(tiny_classifier(family), layout, bf16=bf16).to(device).train()
        if again:
            recompute(model)
        if compiled:
            compile_layers(model, tiny)
        found = errors(ours(model, sequences, pairs, layout, device), truth, bf16)
        fine = all(found[key] <= bound for key, bound in bounds[bf16].items())  # not where it is NaN
        row = {"family": family, "layout": layout, "precision": precision, "recomputed": again, "compiled": compiled}
        rows.append({**row, "errors": found, "bounds": bounds[bf16], "fine": fine})
    return rows


def plan(tiny: bool) -> list[tuple[str, list[tuple]]]:
    """Families and their ways; the compiled ones, which take longest, last."""
    families = list(FAMILIES)[:1] if tiny else list(FAMILIES)
    planned = [(family, list(itertools.product(PRECISIONS, LAYOUTS, (False, True), (False,)))) for family in families]
    if find_spec("rmkit.model.compile"):
        compiled = [("bf16", "trie", False, True), ("bf16", "trie", True, True)]
        planned += [(family, compiled) for family in COMPILED if family in families]
    return planned


def run(tiny: bool, seconds: float, leave: Callable[[dict], None]) -> dict:
    device, end = torch.device("cpu" if tiny else "cuda"), time.monotonic() + seconds
    result: dict = {"rows": [], "failures": [], "said": []}
    for family, ways in plan(tiny):
        if time.monotonic() > end:
            result["failures"].append(f"{family}: no time was left")
            continue
        result["rows"] += (rows := family_rows(family, device, ways, tiny))
        for row in rows:
            if not row["fine"]:
                what = f"{family} {row['layout']} {row['precision']}" + "".join(
                    f" {word}" for word in WORDS if row[word]
                )
                result["failures"].append(f"{what}: errors {row['errors']}, bounds {row['bounds']}")
        leave(result)
    for precision in PRECISIONS:
        ratios = [
            (row["errors"][key] / bound, f"{row['family']} {row['layout']} {key}")
            for row in result["rows"]
            for key, bound in row["bounds"].items()
            if row["precision"] == precision
        ]
        worst = max(ratios, default=(0.0, "nothing"))
        result["said"].append(f"{precision}: at worst {worst[0]:.2f} of its bound ({worst[1]})")
    families = {row["family"] for row in result["rows"]}
    compiled = sum(row["compiled"] for row in result["rows"])
    result["said"].append(
        f"{len(result['rows'])} ways, {len(families)} of {len(FAMILIES)} families, {compiled} compiled"
    )
    return result
