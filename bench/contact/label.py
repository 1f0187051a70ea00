"""Labelling K = 8 completions of a prompt (prompt 512, response 256, and 1024/128) beside padded batches.

bench/label_bench.py itself on Qwen3-0.6B with random weights: scores are compared before anything is timed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from label_bench import BASE, PLAIN_BF16, measure_shapes
from rich.console import Console

from contact.models import save_model, scratch

PADDED = "padded 32 bf16"
MODEL = "0.6b"


def run(tiny: bool, seconds: float, leave: Callable[[dict], None]) -> dict:
    ours = "rmkit fp32" if tiny else "rmkit bf16"
    names = [BASE, PLAIN_BF16, ours] if tiny else [BASE, PLAIN_BF16, PADDED, ours]
    settings = argparse.Namespace(
        prompts=1 if tiny else 8, k=4 if tiny else 8, rounds=1 if tiny else 3, max_tokens=None
    )
    settings.scale = 0.02 if tiny else 1.0
    with scratch(MODEL, tiny) as temporary:
        save_model(MODEL, Path(temporary), tiny)
        shapes = measure_shapes(Path(temporary), names, settings, Console(width=150))
    said = []
    for shape, found in shapes.items():
        speed = {name: row["completions_per_second"]["median"] for name, row in found["paths"].items()}
        against = PADDED if PADDED in speed else BASE
        said.append(
            f"{shape}: {ours} {speed[ours]:.1f}/s, {speed[ours] / speed[against]:.2f} x {against}, "
            f"{speed[ours] / speed[PLAIN_BF16]:.2f} x {PLAIN_BF16} (token ratio {found['tokens']['ratio']:.2f})"
        )
    return {"model": "Qwen3-0.6B", "settings": vars(settings), "rows": shapes, "said": said}
