"""Chunks of samples, each tokenised, scored and saved at once. How a file is cut into chunks does not depend on the
number of processes."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np

from rmkit.batch.pairs import REASONS, REFUSED
from rmkit.data.left_out import LeftOut, matters
from rmkit.data.reading import LISTED
from rmkit.data.tokenizer import encode, refusal, render
from rmkit.errors import UserError, flag
from rmkit.labelling import errors
from rmkit.labelling.index import SampleFile
from rmkit.scorer import Scorer

CHUNK = 256
"""Samples of a chunk, about: a kill costs each process at most one chunk of work."""
SMALLEST_CHUNK, CHUNKS = 32, 16
"""A short file is cut into about `CHUNKS`, for several processes to share, unless they would be smaller than this."""
LONGEST_CHUNK = 4096
"""Samples of one prompt beyond which they are cut into several chunks."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Samples that are scored at once, as token sequences; each distinct text stands in it once."""

    number: int
    positions: np.ndarray
    """int64 [K]: index of each sample in the file"""
    twin: np.ndarray
    """int64 [K]: index of each sample's text among the U distinct ones"""
    sequences: list[np.ndarray]
    """The U distinct texts, tokenised: int32 [length] each"""
    group: np.ndarray
    """int64 [U]: equal where the prompt is the same"""
    refused: dict[int, str]
    """Which of the U texts the chat template refuses, whose sequences are empty, and what it says"""
    left_out: Counter[str]
    """How many distinct texts lack something of their conversation, by what the chat template leaves out"""


def chunk_bounds(starts: np.ndarray) -> list[int]:
    """Bounds of the chunks over samples ordered by prompt: chunk c holds samples bounds[c] to bounds[c + 1] of them.

    `starts` int64 [G + 1] is where each prompt's samples start. A prompt is cut only where it has more than
    `LONGEST_CHUNK` samples. The bounds depend on the input alone: neither the number of processes nor an interruption
    moves a sample to another batch, so scores are the same to the last bit.
    """
    size = min(CHUNK, max(SMALLEST_CHUNK, int(starts[-1]) // CHUNKS))
    bounds = [0]
    for end in map(int, starts[1:]):
        while end - bounds[-1] > LONGEST_CHUNK:
            bounds.append(bounds[-1] + LONGEST_CHUNK)
        if end - bounds[-1] >= size:
            bounds.append(end)
    return bounds if bounds[-1] == starts[-1] else [*bounds, int(starts[-1])]


class Refused(UserError):
    """A conversation that the chat template refuses, which --resume would meet again."""


def tokenised(file: SampleFile, number: int, positions: np.ndarray, scorer: Scorer, bad_rows: str = "stop") -> Chunk:
    """Render and encode a chunk, each distinct text once. `Refused` where the chat template refuses one, unless
    `bad_rows` is "drop"."""
    _, first, twin = np.unique(file.index["text"][positions], return_index=True, return_inverse=True)
    texts, template, missed, refused = [], LeftOut(scorer.tokenizer), Counter(), {}
    for i in positions[first].tolist():
        sample = file[i]
        try:
            texts.append(render(scorer.tokenizer, sample.conversation, sample.options))
        except jinja2.TemplateError as error:
            if bad_rows == "stop":
                way = f"{flag('data.bad_rows')} drop --overwrite starts anew and lists such completions, left out"
                raise Refused("", file.where(i), refusal(error), way) from error
            refused[len(texts)] = f"{file.where(i)}: {refusal(error)}"
            texts.append("")
            continue
        missed.update(filter(matters, template.of(sample.conversation, sample.options)))
    sequences = [np.array(ids, np.int32) for ids in encode(scorer.tokenizer, texts)]
    for i in refused:
        sequences[i] = sequences[i][:0]
    return Chunk(
        number=number,
        positions=positions,
        twin=twin,
        sequences=sequences,
        group=file.index["group"][positions[first]],
        refused=refused,
        left_out=missed,
    )


def scored(chunk: Chunk, scorer: Scorer, file: SampleFile) -> dict[str, Any]:
    """Score a chunk; its line of the score file. ValueError, naming the sample, on a score that is not finite."""
    lengths = np.array([len(sequence) for sequence in chunk.sequences])
    fits = np.flatnonzero((lengths > 0) & (lengths <= scorer.max_length))
    given = [chunk.sequences[i] for i in fits], chunk.group[fits]
    posterior, more = scorer.trust and scorer.trust.posterior, {}
    if posterior is None:
        rewards = scorer.score_tokens(*given)
    else:
        rewards, ends = scorer.score_with_features(*given)
        features = np.full((len(lengths), ends.shape[1]), np.nan, np.float32)
        features[fits] = ends
        more = errors.of_chunk(features[chunk.twin], chunk.group[chunk.twin], posterior)
    distinct: list[float | None] = [None] * len(lengths)
    for i, score in zip(fits.tolist(), rewards.tolist(), strict=True):
        if not np.isfinite(score):
            bad = int(chunk.positions[np.flatnonzero(chunk.twin == i)[0]])
            raise ValueError(f"{file.where(bad)}: the model gives it the score {score}; nothing is written")
        distinct[i] = score
    of_samples, refused = lengths[chunk.twin], np.isin(chunk.twin, list(chunk.refused))
    skipped = {
        f"over-long (more than {scorer.max_length} tokens)": int((of_samples > scorer.max_length).sum()),
        "no token": int(((of_samples == 0) & ~refused).sum()),
        REASONS[REFUSED]: int(refused.sum()),
        **{f"texts of which the template leaves out {name}": count for name, count in chunk.left_out.items()},
    }
    return {
        "chunk": chunk.number,
        "scores": [distinct[i] for i in chunk.twin.tolist()],
        "skipped": {reason: count for reason, count in skipped.items() if count},
        **({"refused": list(chunk.refused.values())[:LISTED]} if chunk.refused else {}),
        **more,
    }
