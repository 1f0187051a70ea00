"""From the last hidden states to the loss and back: bench/loss_bench.py at the width of an 8B model."""

import argparse
from collections.abc import Callable

import loss_bench


def run(tiny: bool, seconds: float, leave: Callable[[dict], None]) -> dict:
    device = "cpu" if tiny else "cuda"
    settings = argparse.Namespace(tokens=[4096, 32768], hidden=[4096], every=[256], dtypes=["bf16"], repeats=15)
    if tiny:
        settings = argparse.Namespace(tokens=[256], hidden=[64], every=[64], dtypes=["fp32"], repeats=5)
        loss_bench.PATHS.pop("compiled")  # half a minute of a compiler, for a function that is not ours
    interpreter = loss_bench.interpreter_agrees()
    bandwidth = loss_bench.copy_bandwidth(device, settings.repeats)
    rows = loss_bench.measure(settings, device, bandwidth)
    said = []
    for tokens in settings.tokens:
        both = {row["path"]: row for row in rows if row["T"] == tokens and row["mode"] == "both"}
        ours, eager = both["rmkit"], both["hf"]
        said.append(
            f"{tokens} tokens: {ours['ms']:.3g} ms, {ours['percent_of_copy']:.2g} % of copy, "
            f"{eager['ms'] / ours['ms']:.2g} x transformers' own"
        )
    return {"copy_gb_per_s": bandwidth / 1e9, "interpreter_error": interpreter, "rows": rows, "said": said}
