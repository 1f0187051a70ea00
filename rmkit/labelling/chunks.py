"""Chunks of samples: what is tokenised, scored and kept at once, and the same whoever scores it."""

from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np

from rmkit.data.tokenizer import encode, render
from rmkit.labelling.index import SampleFile
from rmkit.scorer import Scorer

CHUNK = 256
"""Samples that are tokenised, scored and kept at once; a kill costs each process at most so many."""
SMALLEST_CHUNK, CHUNKS = 32, 16
"""A short file is cut into at least so many chunks, as long as they are no smaller, so that several processes help."""
LONGEST_CHUNK = 4096
"""Samples of one prompt that stay together."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Samples of some prompts as token sequences."""

    number: int
    positions: np.ndarray
    """int64 [K]: samples of the chunk, in the file's numbering"""
    twin: np.ndarray
    """int64 [K]: which of the U distinct texts each one is"""
    sequences: list[np.ndarray]
    """U token sequences"""
    group: np.ndarray
    """int64 [U]: equal where the prompt is the same"""


def chunk_bounds(starts: np.ndarray) -> list[int]:
    """Cuts of the samples in order of their prompts, G + 1 `starts`, into chunks; most keep prompts whole.

    A function of the input alone: neither the number of processes nor an interruption moves a sample to another batch,
    so every one of them gives the same scores to the last bit.
    """
    size = min(CHUNK, max(SMALLEST_CHUNK, int(starts[-1]) // CHUNKS))
    bounds = [0]
    for end in map(int, starts[1:]):
        while end - bounds[-1] > LONGEST_CHUNK:
            bounds.append(bounds[-1] + LONGEST_CHUNK)
        if end - bounds[-1] >= size:
            bounds.append(end)
    return bounds if bounds[-1] == starts[-1] else [*bounds, int(starts[-1])]


def tokenised(file: SampleFile, number: int, positions: np.ndarray, scorer: Scorer) -> Chunk:
    """Render and encode a chunk, each distinct text once. ValueError where the chat template refuses one."""
    _, first, twin = np.unique(file.index["text"][positions], return_index=True, return_inverse=True)
    texts = []
    for i in positions[first].tolist():
        try:
            texts.append(render(scorer.tokenizer, file[i].conversation))
        except jinja2.TemplateError as error:
            raise ValueError(f"{file.where(i)}: the chat template refuses this conversation: {error}") from error
    sequences = [np.array(ids, np.int32) for ids in encode(scorer.tokenizer, texts)]
    group = file.index["group"][positions[first]]
    return Chunk(number=number, positions=positions, twin=twin, sequences=sequences, group=group)


def scored(chunk: Chunk, scorer: Scorer, file: SampleFile) -> dict[str, Any]:
    """The line of a chunk in the score file. ValueError where a score is no number, with the sample that has it."""
    lengths = np.array([len(sequence) for sequence in chunk.sequences])
    fits = np.flatnonzero((lengths > 0) & (lengths <= scorer.max_length))
    found = scorer.score_tokens([chunk.sequences[i] for i in fits], chunk.group[fits])
    distinct: list[float | None] = [None] * len(lengths)
    for i, score in zip(fits.tolist(), found.tolist(), strict=True):
        if not np.isfinite(score):
            bad = int(chunk.positions[np.flatnonzero(chunk.twin == i)[0]])
            raise ValueError(f"{file.where(bad)}: the model gives it the score {score}; nothing is written")
        distinct[i] = score
    of_samples = lengths[chunk.twin]
    skipped = {
        f"over-long (more than {scorer.max_length} tokens)": int((of_samples > scorer.max_length).sum()),
        "no token": int((of_samples == 0).sum()),
    }
    return {
        "chunk": chunk.number,
        "scores": [distinct[i] for i in chunk.twin.tolist()],
        "skipped": {reason: count for reason, count in skipped.items() if count},
    }
