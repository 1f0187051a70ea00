"""Attention over packed rows and its gradients against float64, by the head shapes of the families.

The bound is that of tests/test_attention.py: twice the error that PyTorch's own attention makes in the same dtype, one
segment at a time, and a thousandth of the truth. What the card alone can tell stands beside it: whether a second run
gives the same bits, and whether this torch takes fewer key heads than query heads as they are.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rmkit.batch.trie import PackedBatch, pack
from rmkit.model import attention

NAMES = ("out", "query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Query heads, key heads and head size of a model; window and softcap where its layers have one."""

    model: str
    heads: int
    kv: int
    dim: int
    window: int | None = None
    softcap: float | None = None
    longest: int = 257
    """Tokens of the longest prompt. The windows are shorter than any model's, so that they bite on short rows"""

    def small(self) -> "Shape":
        window = self.window and 5
        return replace(self, heads=self.heads // self.kv, kv=1, dim=8, window=window, longest=12)


SHAPES = (
    Shape(model="Llama-3-8B", heads=32, kv=8, dim=128),
    Shape(model="Llama-3-8B long", heads=32, kv=8, dim=128, longest=2500),
    Shape(model="Llama-3.2-1B", heads=32, kv=8, dim=64),
    Shape(model="Mistral-7B", heads=32, kv=8, dim=128, window=64),
    Shape(model="Qwen2.5-0.5B", heads=14, kv=2, dim=64),
    Shape(model="Qwen3-0.6B", heads=16, kv=8, dim=128),
    Shape(model="Phi-3-mini", heads=32, kv=32, dim=96, window=64),
    Shape(model="Gemma-2-2B", heads=8, kv=4, dim=256, softcap=50.0),
    Shape(model="Gemma-2-2B window", heads=8, kv=4, dim=256, window=64, softcap=50.0),
    Shape(model="Gemma-3-1B", heads=4, kv=1, dim=256, window=64),
)


def row(shape: Shape, layout: str) -> PackedBatch:
    """Three prompts (one of a single token), each with responses of many lengths (one of a single token)."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 90, n) for n in (1, shape.longest // 2, shape.longest)]
    tails = (1, 2, 63, 128, 200) if shape.longest > 100 else (1, 2, 5)
    return pack([np.concatenate([p, rng.integers(3, 90, n)]) for p in prompts for n in tails], layout=layout)


def inputs(shape: Shape, tokens: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Query, key and value, and the gradient of the output, in bf16."""
    g = torch.Generator().manual_seed(0)
    sizes = [(1, heads, tokens, shape.dim) for heads in (shape.heads, shape.kv, shape.kv)]
    leaves = [torch.randn(size, generator=g).to(device, torch.bfloat16) for size in sizes]
    return leaves, torch.randn(1, tokens, shape.heads, shape.dim, generator=g).to(device, torch.bfloat16)


def gradients(function: Callable, leaves: list[Tensor], upstream: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output and the gradients of query, key and value."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in leaves]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(dtype))]


def compared(shape: Shape, layout: str, ends: bool, device: torch.device) -> dict:
    """Errors of one shape, layout and call: all rows, or (as in the last layer) the end tokens alone."""
    batch = row(shape, layout).to(device)
    leaves, upstream = inputs(shape, batch.tokens, device)
    if ends:
        kept = torch.zeros(batch.tokens, dtype=torch.bool, device=device)
        kept[batch.ends.rows] = True
        upstream = upstream * kept[None, :, None, None]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.attend(
            None,
            q,
            k,
            v,
            sliding_window=shape.window,
            softcap=shape.softcap,
            segments=batch.segments,
            ends=batch.ends if ends else None,
        )[0]

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attention._per_segment(q, k, v, batch.segments, shape.dim**-0.5, shape.window, shape.softcap)
        return out * kept[None, :, None, None] if ends else out

    truth = gradients(plain, leaves, upstream, torch.float64)
    torchs = gradients(plain, leaves, upstream, torch.bfloat16)
    found, again = (gradients(ours, leaves, upstream, torch.bfloat16) for _ in range(2))
    result = {"model": shape.model, "layout": layout, "ends": ends, "tokens": batch.tokens, "errors": {}}
    for name, t, p, o, a in zip(NAMES, truth, torchs, found, again, strict=True):
        norm = t.norm().item()
        error, bar = ((x.double() - t).norm().item() for x in (o, p))
        fine = error <= 2 * bar + 1e-3 * norm  # not where it is NaN
        result["errors"][name] = {"ours": error / norm, "torch": bar / norm, "fine": fine, "repeats": torch.equal(o, a)}
    return result


def unequal_heads() -> dict:
    """Whether varlen_attn of this torch takes 8 key heads for 32 query heads without enable_gqa, and rightly: torch
    2.11 checks nothing and says nothing, and rmkit repeats the keys there."""
    from torch.nn.attention.varlen import varlen_attn

    shape = SHAPES[0]
    (q, k, v), upstream = inputs(shape, 300, torch.device("cuda"))
    lengths = torch.tensor([0, 100, 300], dtype=torch.int32, device="cuda")

    def varlen(repeat: int) -> Callable:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.squeeze(0).transpose(0, 1) for x in (q, k, v))
            k, v = (x.repeat_interleave(repeat, 1) for x in (k, v))
            return varlen_attn(q, k, v, lengths, lengths, 200, 200, window_size=(-1, 0))[None]

        return call

    wanted = gradients(varlen(4), [q, k, v], upstream, torch.bfloat16)
    try:
        found = gradients(varlen(1), [q, k, v], upstream, torch.bfloat16)
        differences = [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]
    except Exception as error:
        return {"taken": False, "why": str(error)[:300]}
    return {"taken": True, "relative_difference": dict(zip(NAMES, differences, strict=True))}


def run(tiny: bool, seconds: float, leave: Callable[[dict], None]) -> dict:
    device, end = torch.device("cpu" if tiny else "cuda"), time.monotonic() + seconds
    result: dict = {"rows": [], "failures": [], "said": []}
    for shape in SHAPES:
        for layout, ends in (("trie", False), ("packed", False), ("trie", True)):
            what = f"{shape.model}, {layout}" + (", ends" if ends else "")
            if time.monotonic() > end:
                result["failures"].append(f"{what}: no time was left")
                continue
            found = compared(shape.small() if tiny else shape, layout, ends, device)
            result["rows"].append(found)
            wrong = {name: e for name, e in found["errors"].items() if not e["fine"]}
            result["failures"] += [
                f"{what}: {name} is off by {e['ours']:.1e}, torch by {e['torch']:.1e}" for name, e in wrong.items()
            ]
            leave(result)
    errors = [
        (e["ours"] / e["torch"], f"{r['model']} {name}") for r in result["rows"] for name, e in r["errors"].items()
    ]
    repeats = [e["repeats"] for r in result["rows"] for e in r["errors"].values()]
    worst = max(errors, default=(0.0, "nothing"))
    result["said"].append(f"{len(result['rows'])} calls; at worst {worst[0]:.2f} x torch's own bf16 error ({worst[1]})")
    result["said"].append(f"{sum(repeats)} of {len(repeats)} outputs and gradients repeat bit for bit")
    # Last: what it asks may end in an illegal access, after which the card answers this process no more.
    leave(result)
    result["unequal_heads"] = "no card" if tiny else unequal_heads()
    result["said"].append(f"unequal heads without enable_gqa: {result['unequal_heads']}")
    return result
