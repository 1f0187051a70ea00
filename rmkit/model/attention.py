"""Attention over a packed row: one function, registered with transformers, no patched models.

Segment i's queries attend to the keys that `Segments.kv_index` lists for it, causal and aligned bottom-right, so that
a suffix sees the whole prefix that another sequence stored. In training never by merging two calls through their
log-sum-exp: its gradient is dropped in silence by flash kernels. (Scoring on a CPU does: rmkit.model.attention_cpu.)

CUDA in bf16 or fp16: torch.nn.attention.varlen (flash). Softcap (Gemma 2) on CUDA: the flash_attn package where it is
installed. Everything else, and every CPU: one SDPA call a segment, exact in any dtype.
"""

import inspect
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from rmkit.batch.trie import Ends, Segments
from rmkit.model.attention_cpu import attend_shared
from rmkit_kernels import Kernels, gather_kv

NAME = "rmkit"


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: Segments | None = None,
    ends: Ends | None = None,
    kernels: Kernels = "auto",
    **unused,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each layer: query [1, Hq, T, D], key and value [1, Hkv, T, D].

    Returns ([1, T, Hq, D], None). `segments` is handed to the backbone beside input_ids and arrives here as it is.
    `ends` comes with the last layer only: no more than these rows are computed, the others are zero.
    A sliding window W lets a query see the W newest keys, itself included (transformers' convention).
    Raises ValueError where the call is none that this layout can express exactly.
    """
    if segments is None:
        raise ValueError(f'attention "{NAME}" was called without segments: call the model through rmkit.model')
    if torch.is_autocast_enabled(query.device.type):
        # The rotary embedding promotes queries and keys to the float32 of the residual stream.
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    if dropout:
        raise ValueError("attention dropout is not exact over shared tokens: set attention_dropout to 0")
    if attention_mask is not None or query.shape[0] != 1:
        raise ValueError(f'attention "{NAME}" takes one packed row without a mask, got query {tuple(query.shape)}')
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    tokens = query.shape[2]
    if ends is not None:
        query, segments = query.index_select(2, ends.rows), ends.segments
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and (softcap is None or _flash_attn()):
        out = _varlen(query, key, value, segments, scale, sliding_window, softcap, kernels)
    else:
        out = _segment_by_segment(query, key, value, segments, scale, sliding_window, softcap)
    if ends is not None:
        out = out.new_zeros(1, tokens, *out.shape[2:]).index_copy(1, ends.rows, out)
    return out, None


def register() -> None:
    """Make the function known to transformers as attn_implementation "rmkit"."""
    AttentionInterface.register(NAME, attend)


@torch.compiler.disable(reason="it loops over the segments: every batch would be another program")
def _segment_by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    if not _prefixes_at_once(query, segments, window, softcap):
        return _per_segment(query, key, value, segments, scale, window, softcap)
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    return attend_shared(query, key, value, segments, scale)


def _prefixes_at_once(query: Tensor, segments: Segments, window: int | None, softcap: float | None) -> bool:
    """Whether rmkit.model.attention_cpu applies: scoring on a CPU, plain softmax over all keys."""
    plain = softcap is None and (window is None or segments.max_seqlen_k <= window)
    return plain and query.device.type == "cpu" and segments.kv_index is not None and not torch.is_grad_enabled()


def _per_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    if segments.kv_index is not None:
        key, value = key.index_select(2, segments.kv_index), value.index_select(2, segments.kv_index)
    queries, keys = zip(*segments.lengths, strict=True)
    rows = []
    for q, k, v in zip(query.split(queries, 2), key.split(keys, 2), value.split(keys, 2), strict=True):
        n, m = q.shape[2], k.shape[2]
        if softcap is not None:
            rows.append(_softcapped(q, k, v, segments.mask(n, m, window, q.device), scale, softcap))
        elif (n == m or n == 1) and (window is None or m <= window):
            # One query is the last of its keys and sees them all.
            rows.append(F.scaled_dot_product_attention(q, k, v, is_causal=n > 1, scale=scale, enable_gqa=True))
        else:
            # is_causal is aligned top-left in SDPA, so unequal lengths need the mask written out.
            mask = segments.mask(n, m, window, q.device)
            rows.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True))
    return torch.cat(rows, 2).transpose(1, 2)


def _softcapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """Gemma 2's attention, step by step as transformers' eager path: cap the logits, softmax in float32."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    logits = torch.tanh(q @ k.transpose(-1, -2) * scale / softcap) * softcap
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    probabilities = logits.masked_fill(~mask, float("-inf")).softmax(-1, dtype=wide)
    return probabilities.to(v.dtype) @ v


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
    softcap: float | None,
    kernels: Kernels,
) -> Tensor:
    # squeeze, not [0], whose gradient is a fresh tensor of zeros with a copy in it.
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    if segments.kv_index is not None:
        k, v = gather_kv(k, v, segments.kv_index, segments.copies, kernels=kernels)
    cu_q, cu_k = segments.cu_seqlens_q, segments.cu_seqlens_k
    lengths = segments.max_seqlen_q, segments.max_seqlen_k
    # Flash windows count from the bottom-right diagonal; (W - 1, 0) is W keys with the query's own.
    left_right = (-1 if window is None else window - 1, 0)
    if softcap is not None:
        out = _flash_attn()(
            q=q.contiguous(),
            k=k.contiguous(),
            v=v.contiguous(),
            cu_seqlens_q=cu_q,
            cu_seqlens_k=cu_k,
            max_seqlen_q=lengths[0],
            max_seqlen_k=lengths[1],
            softmax_scale=scale,
            causal=True,
            window_size=left_right,
            softcap=softcap,
        )
        return out[None]
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 has no enable_gqa and does not check the head counts: give it equal ones. From 2.12 on it must be
    # asked for. (2.10 and older took is_causal in place of the window; pyproject.toml excludes them.)
    if _varlen_has_gqa():
        heads = {"enable_gqa": True}
    else:
        groups = q.shape[1] // k.shape[1]
        k, v, heads = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), {}
    out = varlen_attn(q, k, v, cu_q, cu_k, *lengths, scale=scale, window_size=left_right, **heads)
    return out[None]


@cache
def _varlen_has_gqa() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


@cache
def _flash_attn():
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func
