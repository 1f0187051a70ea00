"""Fused ops with Triton kernels: end-token gather, key/value gather, score and loss, a step of AdamW; each file holds
its PyTorch reference too."""

from rmkit_kernels._backend import Kernels
from rmkit_kernels.adamw_lowbit import adamw_lowbit, scale_like
from rmkit_kernels.gather_end_tokens import gather_end_tokens
from rmkit_kernels.gather_kv import gather_kv, kv_copies
from rmkit_kernels.score_bt_loss import bt_losses, score_bt_loss

__all__ = [
    "Kernels",
    "adamw_lowbit",
    "bt_losses",
    "gather_end_tokens",
    "gather_kv",
    "kv_copies",
    "scale_like",
    "score_bt_loss",
]
