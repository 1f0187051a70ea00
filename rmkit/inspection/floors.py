"""Floors: what accuracy costs nothing. A reward model that does no better has learned nothing but these.

longer wins, more lists wins: the rule on every pair, and equal sides count as half. Bag of words: Bradley-Terry
logistic regression on differences of log(1 + count) of the answers' words (`linear`), cross-fitted by prompt, on the
sample. Intervals are 95 % and by prompt: pairs on one prompt are not independent (ratio estimator of a clustered
sample; Cochran, Sampling Techniques, 1977, section 3.12).
"""

import math
import re
from array import array
from collections import Counter
from typing import Any

import numpy as np
from scipy import sparse, stats

from rmkit.inspection.facts import Facts, Row, text_of
from rmkit.inspection.linear import cross_fitted, right
from rmkit.inspection.reading import Sample

MOST_WORDS = 2000
"""Words of an answer that are counted"""
RAREST = 3
"""Answers that a word stands in, at least"""
VOCABULARY = 50_000
"""Most words, the most common ones"""
FEWEST = 20
"""Pairs below which nothing is cross-validated"""
_TOKEN = re.compile(r"\w+|[^\w\s]")


def measure(facts: Facts, sample: Sample, seed: int) -> dict[str, Any]:
    """Accuracy of each floor with its interval; None where there are too few pairs."""
    decided = np.flatnonzero(facts["preferred"])
    if not len(decided):
        return {"longer wins": None, "more lists wins": None, "bag of words": None}
    sign, prompt = facts["preferred"][decided], facts["prompt"][decided]
    longer = sign * (facts["characters_chosen"] - facts["characters_rejected"])[decided]
    lists = sign * (facts["lists_chosen"] - facts["lists_rejected"])[decided]
    return {
        "longer wins": share(right(longer), prompt),
        "more lists wins": share(right(lists), prompt),
        "bag of words": bag_of_words(facts, sample, seed),
    }


def bag_of_words(facts: Facts, sample: Sample, seed: int) -> dict[str, Any] | None:
    """Cross-fitted accuracy of counting words; None below `FEWEST` pairs with a preferred side."""
    rows = np.array(sample.rows, np.int64)
    preferred = facts["preferred"][rows]
    kept = np.flatnonzero(preferred)
    prompt = facts["prompt"][rows[kept]]
    if len(kept) < FEWEST or len(np.unique(prompt)) < FEWEST // 2:
        return None
    x, words = differences([sample.pairs[i] for i in kept.tolist()])
    if not words:
        return None
    x = sparse.diags(preferred[kept].astype(np.float32)) @ x
    fitted = cross_fitted(x.tocsr(), prompt, seed)
    return share(right(fitted.margin), prompt) | {"words": len(words)}


def differences(pairs: list[Row]) -> tuple[sparse.csr_matrix, list[str]]:
    """log(1 + count) of each word in the chosen answer less that in the rejected one, float32 [N, W]; the W words."""
    index: dict[str, int] = {}
    spread: list[int] = []  # answers that each word stands in
    start, columns, values = [0], array("i"), array("f")
    for pair in pairs:
        chosen, rejected = (Counter(_words(text_of(pair[side]))) for side in ("chosen", "rejected"))
        for word in {**chosen, **rejected}:  # not a set, whose order changes from run to run
            at = index.setdefault(word, len(spread))
            if at == len(spread):
                spread.append(0)
            spread[at] += (word in chosen) + (word in rejected)
            if chosen[word] != rejected[word]:
                columns.append(at)
                values.append(math.log1p(chosen[word]) - math.log1p(rejected[word]))
        start.append(len(columns))
    shape = len(pairs), len(spread)
    matrix = sparse.csr_matrix((np.array(values, np.float32), np.array(columns, np.int32), start), shape=shape)
    common = np.argsort(-np.array(spread, np.int64), kind="stable")[:VOCABULARY]
    common = common[np.array(spread, np.int64)[common] >= RAREST]
    words = list(index)
    return matrix[:, common].tocsr(), [words[i] for i in common.tolist()]


def _words(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())[:MOST_WORDS]


def share(values: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """The mean of float [N] in [0, 1] with its interval by groups; Wilson's with the effective number of pairs, so that
    it stays within 0 and 1 and has a width where all values agree."""
    n, mean = len(values), float(values.mean())
    _, of, sizes = np.unique(group, return_inverse=True, return_counts=True)
    sums = np.bincount(of, weights=values - mean)
    groups = len(sizes)
    spread = float((sums**2).sum()) / n**2 * groups / max(1, groups - 1)
    plain = mean * (1 - mean)
    effective = min(float(n), plain / spread) if spread > 0 and plain > 0 else float(groups)
    z = float(stats.norm.ppf(0.975))
    middle = (mean + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z * math.sqrt(plain / effective + z * z / (4 * effective**2)) / (1 + z * z / effective)
    return {"pairs": n, "accuracy": mean, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}
