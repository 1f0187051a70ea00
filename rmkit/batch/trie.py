"""The batch is a trie: distinct token sequences laid out as one row in which no shared prefix stands twice.

    for tokens in sorted(distinct sequences):
        shared   = length of the common prefix with the previous sequence
        kv_index = previous kv_index[:shared] + positions of the new tokens in the row
        queries  = tokens[shared:]          # stored, at position_ids shared, shared + 1, ...
        keys     = kv_index                 # every token of the sequence, wherever it is stored
        end      = kv_index[-1]

A pair becomes [prompt | chosen | rejected] without a special case; so do K responses to one prompt, nested turns of a
dialogue and duplicates. A sequence that is the prefix of the next one stores nothing: its end lies inside the other.
The prefix is found on token ids, never on text: templates and BPE shift the boundary.

Letters: T tokens of the row, K keys over all segments, L segments, S sequences, N preferences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from rmkit.batch.labels import PairLabels, default_labels
from rmkit.config import Layout
from rmkit_kernels import kv_copies


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Which queries of the row attend to which keys: segment i's queries are rows cu_seqlens_q[i] to
    cu_seqlens_q[i + 1], its keys kv_index[cu_seqlens_k[i] : cu_seqlens_k[i + 1]], causal, aligned bottom-right."""

    cu_seqlens_q: Tensor
    """int32 [L + 1]"""
    cu_seqlens_k: Tensor
    """int32 [L + 1]"""
    kv_index: Tensor | None
    """int64 [K]; None where the keys are the row itself, in order"""
    lengths: tuple[tuple[int, int], ...]
    """(queries, keys) of each segment, as Python ints: no device is asked for them"""
    max_seqlen_q: int
    max_seqlen_k: int
    copies: tuple[Tensor, Tensor] | None = None
    """`kv_copies` of kv_index, for the backward pass on a GPU: made before the layers, for all of them"""
    made: dict = field(default_factory=dict, compare=False)
    """Cache of what attention on a CPU makes of these segments, once for all layers: masks, runs of shared prefixes"""

    def mask(self, n: int, m: int, window: int | None, device: torch.device) -> Tensor:
        """Bool [n, m]: the last n of m positions see the keys up to themselves, at most `window` of them."""
        mask = self.made.get((n, m, window))
        if mask is None:
            distance = torch.arange(m - n, m, device=device)[:, None] - torch.arange(m, device=device)
            mask = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
            self.made[n, m, window] = mask
        return mask


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The E distinct end tokens, the only rows whose output the last layer computes."""

    rows: Tensor
    """int64 [E]: where they stand in the row; no row twice"""
    segments: Segments
    """One query each, and every token of its sequence as keys"""


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Token sequences ready for one forward pass, and the preferences that compare them."""

    input_ids: Tensor
    """int64 [1, T]; padded: [S, Lmax]"""
    position_ids: Tensor
    """int64, as input_ids"""
    attention_mask: Tensor | None
    """int64 [S, Lmax] where padded, else None"""
    segments: Segments | None
    """None where padded"""
    ends: Ends | None
    """None where padded"""
    end_index: Tensor
    """int64 [S]: row of the flattened hidden states in which each sequence ends"""
    flat_tokens: int
    """Tokens of all sequences of all preferences, each written out in full"""
    chosen: Tensor
    """int64 [N]: sequence that is preferred"""
    rejected: Tensor
    """int64 [N]"""
    labels: PairLabels
    """Labels of the N preferences, as tensors"""

    @property
    def tokens(self) -> int:
        """Positions that the network computes, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on a device; copies to a GPU leave pinned memory, and the host does not wait for them."""
        moved = {f.name: _moved(getattr(self, f.name), device, self.tokens) for f in fields(self)}
        return PackedBatch(**moved)


def _moved(value, device: torch.device, tokens: int):
    if isinstance(value, Tensor):
        pinned = value.pin_memory() if device.type == "cuda" and value.is_cpu and value.numel() else value
        return pinned.to(device, non_blocking=True)
    if isinstance(value, PairLabels):
        return value.each(lambda column: _moved(column, device, tokens))
    if isinstance(value, Segments):
        tensors = {f.name: _moved(getattr(value, f.name), device, tokens) for f in fields(value)[:3]}
        listed = tensors["kv_index"]
        needed = listed is not None and device.type == "cuda" and torch.is_grad_enabled()
        copies = kv_copies(listed, tokens) if needed else None
        return replace(value, made={}, copies=copies, **tensors)
    if isinstance(value, Ends):
        return Ends(rows=_moved(value.rows, device, tokens), segments=_moved(value.segments, device, tokens))
    return value


def sort_key(tokens: np.ndarray) -> bytes:
    """Bytes that sort and compare as the token ids do: big-endian, because ids are never negative."""
    return tokens.astype(">u4").tobytes()


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Number of leading tokens that two sequences share."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n


@dataclass(frozen=True)
class _Row:
    """A layout on numpy arrays, before it becomes tensors."""

    tokens: np.ndarray
    positions: np.ndarray
    kv_index: np.ndarray | None
    lengths: tuple[tuple[int, int], ...]
    end_keys: list[np.ndarray]
    """Rows of every token of each distinct sequence; the last is its end"""
    ends: np.ndarray


def _trie_row(sequences: Sequence[np.ndarray]) -> _Row:
    keys = [sort_key(s) for s in sequences]
    distinct = dict(zip(keys, sequences, strict=True))
    ordered = sorted(distinct)
    tokens, positions, kv_indices, lengths = [], [], [], []
    keys_of: dict[bytes, np.ndarray] = {}
    prefixes: list[bytes] = []  # sequences that the coming one begins with: they store nothing of their own
    previous, previous_kv, row = np.empty(0, np.int64), np.empty(0, np.int64), 0
    for i, key in enumerate(ordered):
        if i + 1 < len(ordered) and ordered[i + 1].startswith(key):
            prefixes.append(key)
            continue
        sequence = distinct[key]
        shared = common_prefix(previous, sequence)
        new = len(sequence) - shared
        kv_index = np.concatenate([previous_kv[:shared], np.arange(row, row + new)])
        tokens.append(sequence[shared:])
        positions.append(np.arange(shared, len(sequence)))
        kv_indices.append(kv_index)
        lengths.append((new, len(sequence)))
        for held in [*prefixes, key]:
            keys_of[held] = kv_index[: len(distinct[held])]
        prefixes.clear()
        previous, previous_kv, row = sequence, kv_index, row + new
    return _Row(
        np.concatenate(tokens),
        np.concatenate(positions),
        np.concatenate(kv_indices),
        tuple(lengths),
        list(keys_of.values()),
        np.array([keys_of[key][-1] for key in keys]),
    )


def _packed_row(sequences: Sequence[np.ndarray]) -> _Row:
    lengths = [len(s) for s in sequences]
    ends = np.cumsum(lengths) - 1
    return _Row(
        np.concatenate(sequences),
        np.concatenate([np.arange(n) for n in lengths]),
        None,
        tuple((n, n) for n in lengths),
        [np.arange(end - n + 1, end + 1) for n, end in zip(lengths, ends, strict=True)],
        ends,
    )


def _segments(lengths: tuple[tuple[int, int], ...], kv_index: np.ndarray | None) -> Segments:
    queries, keys = np.array(lengths, np.int32).T
    return Segments(
        cu_seqlens_q=torch.from_numpy(np.concatenate([[0], queries.cumsum()]).astype(np.int32)),
        cu_seqlens_k=torch.from_numpy(np.concatenate([[0], keys.cumsum()]).astype(np.int32)),
        kv_index=None if kv_index is None else torch.from_numpy(kv_index),
        lengths=lengths,
        max_seqlen_q=int(queries.max()),
        max_seqlen_k=int(keys.max()),
    )


def _as_batch(row: _Row) -> dict:
    # Keys that are the row itself, in order, need no gather.
    listed = row.kv_index if len(row.lengths) > 1 else None
    end_lengths = tuple((1, len(keys)) for keys in row.end_keys)
    end_listed = np.concatenate(row.end_keys)
    in_order = len(end_listed) == len(row.tokens) and bool((np.diff(end_listed) == 1).all())
    return {
        "input_ids": torch.from_numpy(row.tokens.astype(np.int64))[None],
        "position_ids": torch.from_numpy(row.positions.astype(np.int64))[None],
        "attention_mask": None,
        "segments": _segments(row.lengths, listed),
        "ends": Ends(
            rows=torch.from_numpy(np.array([keys[-1] for keys in row.end_keys], np.int64)),
            segments=_segments(end_lengths, None if in_order else end_listed),
        ),
        "end_index": torch.from_numpy(row.ends.astype(np.int64)),
    }


def _padded(sequences: Sequence[np.ndarray], pad_token_id: int) -> dict:
    lengths = np.array([len(s) for s in sequences])
    longest = int(lengths.max())
    rectangle = np.full((len(sequences), longest), pad_token_id, np.int64)
    mask = np.arange(longest) < lengths[:, None]
    rectangle[mask] = np.concatenate(sequences)
    return {
        "input_ids": torch.from_numpy(rectangle),
        "position_ids": torch.arange(longest).repeat(len(sequences), 1),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        "segments": None,
        "ends": None,
        "end_index": torch.from_numpy(np.arange(len(sequences)) * longest + lengths - 1),
    }


def pack(
    sequences: Sequence[np.ndarray],
    chosen: Sequence[int] = (),
    rejected: Sequence[int] = (),
    *,
    layout: Layout = "trie",
    labels: PairLabels | None = None,
    pad_token_id: int = 0,
) -> PackedBatch:
    """Lay S token sequences (one-dimensional, non-empty, non-negative ids) out for one forward pass.

    `chosen` and `rejected` are N indices into the sequences, `labels` those of the N pairs as tensors (by default those
    of rows that give none).
    No sequence at all gives the batch that a rank with nothing left runs: one padding token, no ends.
    `pad_token_id` fills the rectangle of the padded layout. Raises ValueError on an empty sequence.
    """
    if any(len(s) == 0 for s in sequences):
        raise ValueError("pack: a sequence without tokens has no end to score")
    n = len(chosen)
    assert len(rejected) == n
    if len(sequences) == 0:
        row = _packed_row([np.array([pad_token_id])])
        parts = {**_as_batch(row), "end_index": torch.empty(0, dtype=torch.int64)}
    elif layout == "padded":
        parts = _padded(sequences, pad_token_id)
    else:
        parts = _as_batch(_trie_row(sequences) if layout == "trie" else _packed_row(sequences))
    lengths = [len(s) for s in sequences]
    # A rated response alone stands in for its other side, and is counted once.
    compared = [*chosen, *(j for i, j in zip(chosen, rejected, strict=True) if i != j)] if n else range(len(sequences))
    return PackedBatch(
        **parts,
        flat_tokens=sum(lengths[i] for i in compared),
        chosen=torch.tensor(chosen, dtype=torch.int64),
        rejected=torch.tensor(rejected, dtype=torch.int64),
        labels=default_labels(n) if labels is None else labels,
    )
