"""--deterministic: on a GPU the same run again gives the same weights, bit for bit."""

import contextlib
import os
from collections.abc import Iterator

import torch

from rmkit.errors import UserError

WORKSPACE, FIXED = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""Without one of these cuBLAS may sum in another order each time; it reads the variable when it is first used"""


@contextlib.contextmanager
def repeatable(asked: bool) -> Iterator[None]:
    """Within the block CUDA's kernels sum in the same order each time, where it is asked for.

    FlashAttention's backward pass adds dQ in order then, instead of as its blocks finish. rmkit's own kernels use no
    atomics and always do. On a CPU nothing changes: with one number of threads a training repeats.
    """
    if not asked or not torch.cuda.is_available():
        yield
        return
    before = os.environ.get(WORKSPACE)
    if before not in FIXED and torch.cuda.is_initialized():
        hint = f"this process has used CUDA before; set {WORKSPACE}={FIXED[0]} in its environment when it starts"
        raise UserError("deterministic", None, hint)
    on, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    os.environ[WORKSPACE] = before if before in FIXED else FIXED[0]
    torch.use_deterministic_algorithms(True)
    # It would write to every new tensor, and nothing here reads one before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled
        if before is None:
            del os.environ[WORKSPACE]
        else:
            os.environ[WORKSPACE] = before
