"""Standard errors of labelled samples, and of the differences of two samples of one prompt.

Which samples form pairs is known when all are scored, and end states are too large to keep until then. So with the
scores of a chunk the covariance [K, K] of the rewards of each prompt's K samples is kept, 4 K bytes a sample, from
which the standard error of any difference follows.
"""

import base64
from typing import Any

import numpy as np

from rmkit.labelling.partial import PartialScores
from rmkit.model.posterior import Posterior

MANY = 512
"""Samples of one prompt beyond which no covariance is kept: differences have no standard error then."""


def of_chunk(features: np.ndarray, group: np.ndarray, posterior: Posterior) -> dict[str, Any]:
    """What a chunk's line of the score file holds besides, as JSON: "se" of each sample (null where it is not scored)
    and "covariances", each with the place of its prompt's first sample.

    `features` float [K, H] are the end states of the chunk's samples, NaN where one is not scored; those of a prompt,
    equal in `group` [K], stand together.
    """
    scored = np.isfinite(features).all(1)
    se: list[float | None] = [None] * len(features)
    for i, error in zip(np.flatnonzero(scored).tolist(), posterior.reward_se(features[scored]).tolist(), strict=True):
        se[i] = error
    covariances = []
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    for start, end in zip(starts.tolist(), np.append(starts[1:], len(group)).tolist(), strict=True):
        of = features[start:end][scored[start:end]].astype(np.float64)
        if 2 <= len(of) <= MANY:
            # Centred: what the samples have in common cancels out of every difference.
            held = np.full((end - start,) * 2, np.nan, "<f4")
            held[np.ix_(scored[start:end], scored[start:end])] = posterior.covariance(of - of.mean(0))
            text = base64.b64encode(held.tobytes()).decode()
            covariances.append({"start": start, "samples": end - start, "float32": text})
    return {"se": se, "covariances": covariances}


class Errors:
    """The standard errors of all samples of a labelling; those of differences are read from the disk, a chunk at a
    time."""

    def __init__(self, partial: PartialScores, order: np.ndarray, bounds: list[int]) -> None:
        """Chunk c holds the samples order[bounds[c] : bounds[c + 1]]."""
        self.se = np.full(len(order), np.nan, np.float32)
        """float32 [N]: NaN where a sample is not scored"""
        self._partial, self._bounds = partial, np.array(bounds)
        self._rank_of = np.empty(len(order), np.int64)
        self._rank_of[order] = np.arange(len(order))
        self._at: dict[int, Any] = {}
        self._read: tuple[int, list[dict]] = (-1, [])
        for at, line in partial.placed():
            c = line["chunk"]
            if c not in self._at:
                self._at[c] = at
                self.se[order[bounds[c] : bounds[c + 1]]] = [np.nan if s is None else s for s in line["se"]]

    def of_differences(self, positions: np.ndarray) -> np.ndarray | None:
        """Standard errors [K, K] of the differences of K samples of one prompt; None where they were not kept together:
        the prompt has more than `MANY` samples."""
        places = self._rank_of[positions]
        chunk = np.searchsorted(self._bounds, places, "right") - 1
        if (chunk != chunk[0]).any():
            return None
        inside = places - self._bounds[chunk[0]]
        if self._read[0] != chunk[0]:
            self._read = int(chunk[0]), self._partial.line_at(self._at[int(chunk[0])])["covariances"]
        for held in self._read[1]:
            start, count = held["start"], held["samples"]
            if start <= inside.min() and inside.max() < start + count:
                matrix = np.frombuffer(base64.b64decode(held["float32"]), "<f4").reshape(count, count)
                of = matrix[np.ix_(inside - start, inside - start)].astype(np.float64)
                variance = np.diag(of)
                return np.sqrt(np.maximum(variance[:, None] + variance[None, :] - 2 * of, 0.0))
        return None
