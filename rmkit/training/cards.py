"""Peak rates of known GPUs, as their makers state them."""

import re

RATES = {
    r"NVIDIA B200": 2250e12,  # HGX B200 data sheet: 36 PFLOP/s sparse for eight
    r"NVIDIA H200": 989.5e12,  # H200 data sheet: 1,979 sparse
    r"NVIDIA H200 NVL": 835.5e12,  # the same: 1,671 sparse
    r"NVIDIA H100 80GB HBM3": 989.5e12,  # H100 data sheet, SXM: 1,979 sparse
    r"NVIDIA H100 PCIe": 756.5e12,  # the same: 1,513 sparse
    r"NVIDIA H100 NVL": 835.5e12,  # the same: 1,671 sparse
    r"NVIDIA A100.*": 312e12,  # A100 data sheet, all forms
    r"NVIDIA L40S": 362.05e12,  # L40S data sheet: 362.05 dense
    r"NVIDIA GeForce RTX 4090": 165.2e12,  # Ada architecture white paper, float32 accumulation
}
"""Name as CUDA has it -> FLOP/s of dense bf16 matrices. Data sheets state the double, with half of the numbers zero."""

H100 = RATES["NVIDIA H100 80GB HBM3"]


def rate_of(name: str) -> float | None:
    """Peak rate of the GPU of this name; None where it is not known."""
    return next((rate for pattern, rate in RATES.items() if re.fullmatch(pattern, name)), None)
