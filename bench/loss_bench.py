"""From the last hidden states to the loss and back: rmkit's kernels beside what PyTorch does without them.

    hf        the head on all T tokens, then the end tokens, then BCE: transformers' own way
    gather    the end tokens first, then head and BCE, eager
    compiled  the same under torch.compile
    rmkit     gather_end_tokens and score_bt_loss (Triton on a GPU, their PyTorch references on a CPU)

    python bench/loss_bench.py                                             # the sweeps that suit this machine
    python bench/loss_bench.py --tokens 4096 32768 --hidden 4096 --every 256 --dtypes bf16

Every path first has to give the scores and gradients of float64, or it is not timed. Times are medians with the 20 %
and 80 % quantiles; on a GPU by triton.testing.do_bench, which clears the L2 cache before each run. "% of copy" is
the bytes that no path can avoid (below), over the time, over the bandwidth of a copy measured in the same run:

    forward   S H e + H e              rows of the end tokens and the weight, read
    backward  S H e + 2 H e + T H e    those again, and both gradients, written
    both      their sum                e bytes per element, S sequences on T tokens of H features

Triton's interpreter is checked on a CPU, on a small case, and never timed. Writes bench/results/NAME.json and .png.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the programs do, before torch is loaded

import torch
import torch.nn.functional as F

# Read when rmkit_kernels decorates its kernels.
os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"

import torch._dynamo.config
import torch._functorch.config
from rich.console import Console
from rich.table import Table

from rmkit.runtime import environment
from rmkit_kernels import gather_end_tokens, score_bt_loss
from rmkit_kernels._backend import triton_on_cpu

GPU = torch.cuda.is_available()
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOLERANCE = {"bf16": 2e-2, "fp32": 1e-4}
"""Largest error, over the largest magnitude of the truth: a few units in the last place of each dtype's scores."""
MODES = ("forward", "backward", "both")
# The backward pass alone is timed on one graph again and again, whose buffers must survive.
torch._functorch.config.donated_buffer = False
# A compilation per case: beyond the default of 8 Dynamo would run "compiled" eagerly, in silence.
torch._dynamo.config.recompile_limit = 256


def bce(scores: torch.Tensor) -> torch.Tensor:
    gaps = scores[0::2] - scores[1::2]
    return F.binary_cross_entropy_with_logits(gaps, torch.ones_like(gaps), reduction="sum") / gaps.shape[0]


def hf(hidden, weight, end_index, pairs):
    scores = F.linear(hidden, weight)[:, 0][end_index].float()
    return bce(scores), scores


def gather(hidden, weight, end_index, pairs):
    scores = F.linear(hidden[end_index], weight)[:, 0].float()
    return bce(scores), scores


def rmkit(hidden, weight, end_index, pairs):
    return score_bt_loss(gather_end_tokens(hidden, end_index), weight[0], *pairs, 0.0, pairs[0].shape[0])[:2]


PATHS = {"hf": hf, "gather": gather, "compiled": torch.compile(gather, dynamic=False), "rmkit": rmkit}


def example(T: int, H: int, S: int, dtype: torch.dtype, device: str) -> tuple:
    torch.manual_seed(0)
    hidden = torch.randn(T, H, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(1, H, device=device) / H**0.5).to(dtype).requires_grad_()
    ends = torch.randperm(T, device=device)[:S].sort().values
    order, ones = torch.arange(S, device=device), torch.ones(S // 2, device=device)
    return hidden, weight, ends, (order[0::2], order[1::2], torch.zeros_like(ones), ones, ones)


def disagreement(path: Callable, case: tuple) -> float:
    """Largest error of scores and gradients against float64, each over the largest magnitude of the truth."""
    hidden, weight, ends, _ = case
    rows, head = hidden.detach()[ends].double().requires_grad_(), weight.detach().double().requires_grad_()
    true_scores = (rows * head).sum(-1)
    true = [true_scores.detach(), *torch.autograd.grad(bce(true_scores), (rows, head))]
    loss, scores = path(*case)
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    if grad_hidden.count_nonzero() != grad_hidden[ends].count_nonzero():
        return float("inf")
    ours = (scores.detach(), grad_hidden[ends], grad_weight)
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(ours, true, strict=True))


def actions(path: Callable, case: tuple) -> dict[str, Callable]:
    """What each mode times. forward builds the graph, as training does; both frees it."""
    inputs = case[:2]
    loss = path(*case)[0]
    return {
        "forward": lambda: path(*case)[0],
        "backward": lambda: torch.autograd.grad(loss, inputs, retain_graph=True),
        "both": lambda: torch.autograd.grad(path(*case)[0], inputs),
    }


def timed(action: Callable, repeats: int) -> list[float]:
    """Median, 20 % and 80 % quantile in milliseconds."""
    if GPU:
        from triton.testing import do_bench

        return list(do_bench(action, warmup=50, rep=200, quantiles=[0.5, 0.2, 0.8]))
    for _ in range(3):
        action()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - begin))
    fifths = statistics.quantiles(times, n=5)
    return [statistics.median(times), fifths[0], fifths[3]]


def peak_and_launches(action: Callable) -> tuple[float | None, int | None]:
    """Extra MiB at the peak, and kernels and memsets launched; both only where a GPU counts them."""
    if not GPU:
        return None, None
    from torch.profiler import ProfilerActivity, profile

    action()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        action()
        torch.cuda.synchronize()
    return peak, sum(event.device_type == torch.autograd.DeviceType.CUDA for event in trace.events())


def copy_bandwidth(device: str, repeats: int) -> float:
    """Bytes per second of a copy, read and written bytes counted."""
    source = torch.ones(2**28 if GPU else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (timed(lambda: target.copy_(source), repeats)[0] / 1e3)


def sweep(args: argparse.Namespace) -> list[tuple[int, int, int, str]]:
    """(T, H, S, dtype): T at the first H, then H and then S / T at one T in the middle."""
    T, H, every = args.tokens[len(args.tokens) // 2], args.hidden[0], args.every[0]
    cases = [(t, H, t // every) for t in args.tokens]
    cases += [(T, h, T // every) for h in args.hidden] + [(T, H, T // e) for e in args.every]
    return [(*case, dtype) for dtype in args.dtypes for case in dict.fromkeys(cases)]


def interpreter_agrees() -> float | None:
    """Triton's kernels in the interpreter on a small case; correctness only. None on a GPU, which runs them."""
    if GPU:
        return None
    with triton_on_cpu():
        error = disagreement(rmkit, example(96, 130, 10, torch.float32, "cpu"))
    if not error <= TOLERANCE["fp32"]:
        raise SystemExit(f"Triton's interpreter is off by {error:.2g}: nothing was timed")
    return error


def measure(args: argparse.Namespace, device: str, bandwidth: float) -> list[dict]:
    rows = []
    for T, H, S, dtype in sweep(args):
        case = example(T, H, S, DTYPES[dtype], device)
        e = DTYPES[dtype].itemsize
        least = {"forward": S * H * e + H * e, "backward": S * H * e + 2 * H * e + T * H * e}
        least["both"] = sum(least.values())
        for name, path in PATHS.items():
            error = disagreement(path, case)
            if not error <= TOLERANCE[dtype]:
                raise SystemExit(f"{name} at T {T} H {H} S {S} {dtype} is off by {error:.2g} from float64: not timed")
            for mode, action in actions(path, case).items():
                median, low, high = timed(action, args.repeats)
                peak, launches = peak_and_launches(action)
                percent = 100 * least[mode] / (median / 1e3) / bandwidth
                rows.append({"T": T, "H": H, "S": S, "dtype": dtype, "path": name, "mode": mode, "error": error})
                rows[-1] |= {"ms": median, "ms_20": low, "ms_80": high, "percent_of_copy": percent}
                rows[-1] |= {"least_bytes": least[mode], "peak_mib": peak, "launches": launches}
    return rows


def table(rows: list[dict]) -> Table:
    shown = Table(
        "T", "H", "S", "dtype", "mode", "path", "ms (20 %, 80 %)", "% of copy", "peak MiB", "launches", "error"
    )
    for row in sorted(rows, key=lambda row: MODES.index(row["mode"])):
        time_text = f"{row['ms']:.4g} ({row['ms_20']:.4g}, {row['ms_80']:.4g})"
        counted = ["-" if row[key] is None else f"{row[key]:.4g}" for key in ("peak_mib", "launches")]
        where = [str(row[key]) for key in ("T", "H", "S", "dtype", "mode", "path")]
        shown.add_row(*where, time_text, f"{row['percent_of_copy']:.1f}", *counted, f"{row['error']:.1e}")
    return shown


def plot(rows: list[dict], file: Path) -> None:
    """Time (and, on a GPU, peak memory) of forward and backward together over T."""
    import matplotlib.pyplot as plt

    first = rows[0]
    keys = {"ms": "ms"} | ({"peak_mib": "peak extra MiB"} if GPU else {})
    figure, axes = plt.subplots(1, len(keys), figsize=(5 * len(keys), 4), squeeze=False)
    for (key, label), axis in zip(keys.items(), axes[0], strict=True):
        for name in PATHS:
            line = [row for row in rows if row["path"] == name and row["mode"] == "both" and row["H"] == first["H"]]
            line = [
                row
                for row in line
                if row["dtype"] == first["dtype"] and row["T"] // row["S"] == first["T"] // first["S"]
            ]
            axis.loglog([row["T"] for row in line], [row[key] for row in line], marker="o", label=name)
        axis.set(xlabel="T (tokens)", ylabel=label, title=f"forward + backward, H {first['H']}, {first['dtype']}")
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tokens = [4096, 8192, 16384, 32768, 65536, 131072] if GPU else [1024, 2048, 4096]
    parser.add_argument("--tokens", type=int, nargs="+", default=tokens, help="T of the packed row")
    parser.add_argument(
        "--hidden", type=int, nargs="+", default=[4096, 896, 2048, 8192] if GPU else [896, 256], help="H"
    )
    parser.add_argument("--every", type=int, nargs="+", default=[256, 64, 2048] if GPU else [64, 256], help="T / S")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=15, help="timed runs on a CPU, at least 5")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; one, for the others of a shared one stall")
    parser.add_argument("--name", default="loss_gpu" if GPU else "loss_cpu", help="of the files under bench/results")
    args = parser.parse_args()
    if args.repeats < 5 or min(args.tokens) < 2 * max(args.every):
        parser.error("--repeats must be at least 5, and each of --tokens at least twice each of --every (one pair)")
    device = "cuda" if GPU else "cpu"
    torch.set_num_threads(args.threads)
    interpreter = interpreter_agrees()
    bandwidth = copy_bandwidth(device, args.repeats)
    rows = measure(args, device, bandwidth)
    console = Console(width=max(Console().width, 132))
    console.print(table(rows))
    console.print(f"copy: {bandwidth / 1e9:.1f} GB/s, read and written bytes counted")
    if interpreter is not None:
        console.print(
            f"Triton kernels: interpreter correct to {interpreter:.1e}, not timed; rmkit above is the CPU path"
        )
    result = {"environment": environment(torch.device(device), 1), "copy_gb_per_s": bandwidth / 1e9}
    result |= {"interpreter_error": interpreter, "rows": rows}
    file = Path(__file__).parent / "results" / f"{args.name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(rows, file.with_suffix(".png"))
    last = [row for row in rows if row["mode"] == "both" and row["T"] == max(args.tokens)]
    last = [row for row in last if row["H"] == args.hidden[0] and row["S"] == row["T"] // args.every[0]]
    ms = {f"{row['path']}_{row['dtype']}": round(row["ms"], 4) for row in last}
    print(json.dumps({"file": str(file), "device": result["environment"]["device"], "T": max(args.tokens), "ms": ms}))


if __name__ == "__main__":
    main()
