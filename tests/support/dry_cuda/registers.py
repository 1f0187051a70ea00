"""Registers and spilled bytes of every Triton kernel at its own block sizes, as ptxas counts them; printed as JSON.

No GPU is needed: Triton compiles for one that it is told of, and brings NVIDIA's assembler. Not under its interpreter,
so a process of its own: `python -m support.dry_cuda.registers`.
"""

import importlib
import json
import os
import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

HOPPER, AMPERE = 90, 80
KV, ENDS, LOSS, ADAMW = (
    importlib.import_module(f"rmkit_kernels.{name}")
    for name in ("gather_kv", "gather_end_tokens", "_score_bt_loss_triton", "adamw_lowbit")
)
INDICES = ("chosen_ptr", "rejected_ptr", "end_index_ptr", "kv_index_ptr", "order_ptr", "start_ptr")
FLOATS = ("loss", "stats", "scores", "grad_scores", "grad_loss", "margin", "target", "pair_weight")
FLOATS += ("m_scale", "v_scale")
NUMBERS = ("center", "normalizer", "step_size", "keep", "rate1", "beta2", "rate2", "correction", "eps")
MOMENTS = {8: "*u8", 16: "*bf16", 32: "*fp32"}
CONTIGUOUS = ("stride_hh", "stride_oh", "stride_kd", "stride_vd", "stride_eh", "stride_wh")

IN_ROWS = {"BLOCK_T": KV.BLOCK_T, "BLOCK_W": KV.BLOCK_W}
IN_STEP = {"WEIGHT_16": True, "BLOCK": ADAMW.BLOCK, "BLOCKS": ADAMW.BLOCKS}
AT_ENDS = {"BLOCK_T": ENDS.BLOCK_T, "BLOCK_H": ENDS.BLOCK_H, "BLOCK_S": ENDS.BLOCK_S}
KERNELS = {
    "gather_kv": (KV._forward_kernel, {"D": 128, **IN_ROWS}, 4),
    "gather_kv of heads of 96": (KV._forward_kernel, {"D": 96, **IN_ROWS}, 4),
    "gather_kv backward": (KV._backward_kernel, {"D": 128, **IN_ROWS}, 4),
    "gather_end_tokens": (ENDS._forward_kernel, {"BLOCK_H": ENDS.BLOCK_H}, 4),
    "gather_end_tokens backward": (ENDS._backward_kernel, AT_ENDS, 8),
    "score": (LOSS._score_kernel, {"BLOCK_H": LOSS.BLOCK_H}, 4),
    "loss": (LOSS._loss_kernel, {"BLOCK_N": LOSS.BLOCK_N}, 4),
    "loss backward": (LOSS._grad_scores_kernel, {"BLOCK_S": LOSS.BACKWARD_S, "BLOCK_N": LOSS.BACKWARD_N}, 4),
    "score backward": (LOSS._grad_kernel, {"BLOCK_S": LOSS.WEIGHT_S, "BLOCK_H": LOSS.WEIGHT_H}, 4),
    "adamw of bf16 states": (ADAMW._kernel, {"KIND": 16, **IN_STEP}, 8),
    "adamw of 8bit states": (ADAMW._kernel, {"KIND": 8, **IN_STEP}, 8),
}
"""Each with its constants and warps, as the files that launch them give them"""


def compiled(kernel, constants: dict, warps: int, floats: str, capability: int) -> dict[str, int]:
    """What ptxas says of a kernel, specialised as the JIT would: aligned pointers, contiguous last axes."""
    constants = {**constants, **{name: 1 for name in CONTIGUOUS if name in kernel.arg_names}}
    types, hints = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name in INDICES:
            types[name] = "*i64"
        elif name in ("m_ptr", "v_ptr") and "KIND" in constants:
            types[name] = MOMENTS[constants["KIND"]]
        elif name.endswith("_ptr"):
            types[name] = "*fp32" if name.startswith(FLOATS) else floats
        else:
            types[name] = "fp32" if name in NUMBERS else "i32"
        if types[name].startswith("*") or name in ("H", "W") or (name.startswith("stride") and name not in constants):
            hints[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constexprs=constants, attrs=hints)
    ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}).asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        architecture = re.search(r"\.target (\w+)", ptx)[1]
        asked = [get_ptxas(capability).path, "-v", f"--gpu-name={architecture}", file.name, "-o", os.devnull]
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stderr
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    return {"registers": int(re.search(r"Used (\d+) registers", told)[1]), "spilled": max(map(int, spilled.groups()))}


def main() -> None:
    found = {}
    for name, (kernel, constants, warps) in KERNELS.items():
        for floats in ("*bf16", "*fp32"):
            for capability in (HOPPER, AMPERE):
                found[f"{name} {floats} sm_{capability}"] = compiled(kernel, constants, warps, floats, capability)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
