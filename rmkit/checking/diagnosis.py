"""What it means where a reader gives other scores than rmkit: each known cause with the flag that mends it."""

import math
from dataclasses import dataclass

from rmkit.checking.expected import Expected

EXACT = 1.2e-4
"""Largest difference, relative to the largest expected score (at least 1), that is round-off of float32: the geometric
mean of 3e-6, the most that was seen among readers in float32, and 5e-3, what float16 did to the same scores."""

HALF = 16 * 2**-8
"""The same for 16 bits: bf16's own rounding, 2^-8, times what layers make of it (float16 lost 10 times its own)."""

SAME, HALF_PRECISION = "same", "half precision"
SIGMOID, SOFTMAX, OFFSET = "sigmoid", "softmax", "constant offset"
BOS, ROW, TEMPLATE, OTHER = "BOS doubled", "wrong row of a binary head", "other template", "other scores"

MENDS = {
    HALF_PRECISION: "16 bits: start the server with --dtype float32 for the exact scores, or keep them: a FINAL in "
    "bf16 (--save.dtype bf16) was trained in no more",
    SIGMOID: "sigmoid: vLLM leaves the score raw where config.json says problem_type regression since its pull request "
    "23173 (August 2025); before that start it with --pooler-config '{\"use_activation\": false}'",
    SOFTMAX: "softmax: over one label it is 1.0 whatever the text says. In SGLang read the embedding of /classify or "
    "/v1/embeddings, not /v1/classify; in vLLM send use_activation false",
    OFFSET: "constant offset: SGLang gave the heads of Qwen2 and Qwen3 a random bias (its issue 38768, mended by pull "
    "request 38777); take a release with that. Until then order and margins are right, thresholds are not",
    BOS: "BOS doubled: serve FINAL with its own tokenizer (no --tokenizer of the base model), or send "
    "add_special_tokens false, or messages or ids",
    ROW: "wrong row: the reader takes a label that was never trained. Write FINAL with one label (--save.binary-head "
    "fold), or read the reward's",
    TEMPLATE: "other template: the ids give the right scores, so messages are rendered otherwise. Leave out "
    "--chat-template, add_generation_prompt and continue_final_message",
    OTHER: "other scores: neither precision, activation, BOS nor head explains them, so weights, rotary base or "
    "attention are read otherwise. bench/results/interop.json says which versions were run",
}
"""By cause: what it is, and what to do"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was seen through one door."""

    names: tuple[str, ...]
    """`SAME` alone, or one or more causes"""
    gap: float
    """Largest difference from the expected scores, once the causes are accounted for"""

    @property
    def good(self) -> bool:
        return self.names == (SAME,)

    @property
    def ways(self) -> list[str]:
        return [MENDS[name] for name in self.names if name in MENDS]


def diagnose(expected: Expected, rows: list[list[float]]) -> Finding:
    """Name what a reader's numbers are, one row a text. A row holds one score, or one of each label."""
    if any(len(row) not in (1, len(expected.reward)) for row in rows) or len({len(row) for row in rows}) != 1:
        return Finding(names=(OTHER,), gap=math.inf)
    given = expected.rewards(rows) if len(expected.reward) > 1 and len(rows[0]) > 1 else [row[0] for row in rows]
    if not all(math.isfinite(score) for score in given):
        return Finding(names=(OTHER,), gap=math.inf)
    if all(score == 1.0 for score in given) and gap(expected.scores, given) > EXACT:
        return Finding(names=(SOFTMAX,), gap=0.0)
    if (probabilities := _softmax_of_labels(expected, rows)) is not None:
        return probabilities
    explained = [(gap(scores, given), len(names), names) for names, scores in _candidates(expected)]
    exact = [(count, size, names) for size, count, names in explained if size <= EXACT]
    if exact:
        _, size, names = min(exact)
        return Finding(names=names or (SAME,), gap=size)
    offsets = [a - b for a, b in zip(given, expected.scores, strict=True)]
    middle = sum(offsets) / len(offsets)
    spread = gap(expected.scores, [score - middle for score in given])
    if len(given) > 1 and spread <= EXACT:
        return Finding(names=(OFFSET,), gap=spread)
    size, _, names = min(explained)
    if size <= HALF:
        return Finding(names=(*names, HALF_PRECISION), gap=size)
    return Finding(names=(OTHER,), gap=gap(expected.scores, given))


def of_messages(finding: Finding, by_ids: Finding | None) -> Finding:
    """The finding of the messages door, told apart by what the same reader gives for ids."""
    unexplained = OTHER in finding.names and by_ids is not None and OTHER not in by_ids.names
    return Finding(names=(TEMPLATE,), gap=finding.gap) if unexplained else finding


def gap(expected: list[float], given: list[float]) -> float:
    """Largest difference, relative to the largest expected score (at least 1)."""
    largest = max(1.0, *map(abs, expected))
    return max(abs(a - b) for a, b in zip(expected, given, strict=True)) / largest


def _candidates(expected: Expected) -> list[tuple[tuple[str, ...], list[float]]]:
    """Every score list that a known cause makes, by the names of its causes; the fewest causes first."""
    plain: list[tuple[tuple[str, ...], list[float]]] = [((), expected.scores)]
    if expected.bos_doubled is not None:
        plain.append(((BOS,), expected.bos_doubled))
    for label, weight in enumerate(expected.reward):
        if expected.by_label is not None and not weight:
            plain.append(((ROW,), [row[label] for row in expected.by_label]))
    squeezed = [((*names, SIGMOID), [_sigmoid(score) for score in scores]) for names, scores in plain]
    return plain + squeezed


def _softmax_of_labels(expected: Expected, rows: list[list[float]]) -> Finding | None:
    """The finding where rows of several labels are their softmax; else None."""
    if expected.by_label is None or len(rows[0]) == 1:
        return None
    wanted = [[math.exp(score - max(row)) for score in row] for row in expected.by_label]
    flat = [score / sum(row) for row in wanted for score in row]
    size = gap(flat, [score for row in rows for score in row])
    return Finding(names=(SOFTMAX,), gap=size) if size <= EXACT else None


def _sigmoid(score: float) -> float:
    return 1.0 / (1.0 + math.exp(-score)) if score > -700 else 0.0
