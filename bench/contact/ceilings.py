"""What the card can do at best: bandwidth of a copy and rate of a bf16 matrix product, measured."""

from collections.abc import Callable

import torch
from loss_bench import copy_bandwidth, timed

from contact.card import data_sheet


def matmul_rate(device: str, n: int) -> float:
    """Operations a second of an n x n x n product of random numbers (zeros run faster)."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / (timed(lambda: a @ b, 10)[0] / 1e3)


def run(tiny: bool, seconds: float, leave: Callable[[dict], None]) -> dict:
    device = "cpu" if tiny else "cuda"
    result = {"copy_gb_per_s": copy_bandwidth(device, 10) / 1e9, "matmul_tflops": matmul_rate(device, 256) / 1e12}
    if tiny:
        result |= {"matmul_dtype": "fp32", "memory_gib": "no card", "data_sheet_tflops": "no card"}
    else:
        leave(result)
        result |= {"matmul_tflops": matmul_rate(device, 8192) / 1e12, "matmul_dtype": "bf16"}
        sheet = data_sheet(torch.cuda.get_device_name())
        result |= {"memory_gib": torch.cuda.mem_get_info()[1] / 2**30, "data_sheet_tflops": sheet and sheet / 1e12}
    copy, product = result["copy_gb_per_s"], result["matmul_tflops"]
    said = f"copy {copy:.0f} GB/s, {result['matmul_dtype']} matrix product {product:.3g} TFLOP/s"
    return {**result, "said": [said]}
