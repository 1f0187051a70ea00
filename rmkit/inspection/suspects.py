"""Pairs whose label is suspect, judged by fits of a linear head on frozen end-token features that have not seen them.

The backbone is not trained: what it shows of a pair at its end tokens is computed once, and only the head is refitted,
fold by fold (`linear`). A model that was itself trained on these pairs has seen their labels; its features then agree
with wrong labels too, and fewer are found.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmkit.errors import UserError
from rmkit.inspection import linear, noise, subsets
from rmkit.inspection.config import MIN_PAIRS
from rmkit.inspection.facts import Facts, Row
from rmkit.inspection.floors import share
from rmkit.inspection.reading import Sample
from rmkit.pages.verdicts import sigmoid


@dataclass(frozen=True, kw_only=True)
class Judged:
    """N pairs of the sample that have a preferred side and were scored."""

    at: np.ndarray
    """int64 [N]: index of each in the sample"""
    margin: np.ndarray
    """float64 [N]: out of sample, positive where the head agrees with the label"""
    is_right: np.ndarray
    """float64 [N]: P(label is right), by the estimated noise, or P(chosen wins) where `judge` says so"""
    suspects: np.ndarray
    """int64: positions among the N, the least probable label first"""
    found: dict[str, Any]
    """What inspect.json holds"""


def judge(sample: Sample, facts: Facts, at: np.ndarray, x: np.ndarray, seed: int, asked: int | None = None) -> Judged:
    """Cross-fit the head on features x [N, H] (chosen less rejected) of the pairs `at` of the sample, and judge each.

    As many pairs are suspects as the mixture's estimate of wrong labels says, but none whose label is more likely right
    than wrong by that estimate, and none at all where it found no wrong labels, or the head is no better than a coin.
    `asked` sets another number, the worst.

    The mixture says how probable the label of a suspect is that it counted. Where their number is asked for, or the
    mixture found none, its prior would call nearly every label right; then it is P(chosen wins), what the head alone
    says of a pair that it has not seen: one that it is sure to be the other way round gets little weight.
    Raises TooFew where there are too few pairs, another UserError where nothing else can be fitted.
    """
    rows = np.array(sample.rows, np.int64)[at]
    preferred, prompt = facts["preferred"][rows], facts["prompt"][rows]
    decided = np.flatnonzero(preferred)
    at, rows, x, prompt = at[decided], rows[decided], x[decided] * preferred[decided, None], prompt[decided]
    enough(prompt)
    check(x)
    fitted = linear.cross_fitted(x, prompt, seed)
    rates = noise.estimate(fitted.margin, prompt, seed)
    e, m, s = noise.mixture(fitted.margin)
    none_found = noise.none_found(e)
    is_right = noise.right_given(fitted.margin, e, m, s)
    worst = np.argsort(fitted.margin, kind="stable")
    disagreed = int((fitted.margin < 0).sum())
    accuracy = share(linear.right(fitted.margin), prompt)
    blind = accuracy["low"] <= 0.5
    estimated = 0 if blind or none_found else min(round(e * len(at)), int((is_right < 0.5).sum()))
    count = estimated if asked is None else min(asked, len(at))
    suspects = worst[:count]
    suspect = np.zeros(len(at), bool)
    suspect[suspects] = True
    found = {
        "pairs": len(at),
        "hidden": x.shape[1],
        "folds": linear.FOLDS,
        "l2": fitted.l2,
        "accuracy": accuracy,
        "blind": blind,
        "noise": {**rates, "none_found": none_found, "at_most": 1 - accuracy["low"]},
        "disagreed": disagreed,
        "suspects": count,
        "asked": asked,
        "subsets": subsets.measure(x, prompt, facts["subset"][rows], facts.subsets.list, fitted, suspect),
    }
    if asked is not None or none_found:
        is_right = sigmoid(fitted.margin)
    return Judged(at=at, margin=fitted.margin, is_right=is_right, suspects=suspects, found=found)


class TooFew(UserError):
    """Too few pairs to judge one another: nothing is wrong with the model, and all that needs none can be told."""


def enough(prompt: np.ndarray) -> None:
    """TooFew where the pairs with a preferred side, one for each digest in `prompt`, cannot be dealt into folds."""
    prompts = len(np.unique(prompt))
    if len(prompt) < MIN_PAIRS or prompts < linear.FOLDS:
        hint = f"{len(prompt)} pairs with a preferred side, on {prompts} prompts, are too few to judge one another"
        raise TooFew("", None, f"{hint}; need {MIN_PAIRS} on at least {linear.FOLDS} prompts")


def check(x: np.ndarray) -> None:
    """UserError where no head can be fitted on these features."""
    if not np.isfinite(x).all():
        raise UserError("model.name", None, "its end states are not finite; look at its weights")
    if not np.abs(x).max() > 0:
        hint = "its end states are the same for chosen and rejected in every pair, so nothing can be told of the labels"
        raise UserError("model.name", None, hint)


def rows_of(judged: Judged, sample: Sample) -> list[Row]:
    """A row of suspects.jsonl for each suspect, worst first: why it is one, then the pair itself."""
    listed = []
    for i in judged.suspects.tolist():
        pair = sample.pairs[int(judged.at[i])]
        listed.append(
            {
                "source": pair["source"],
                "probability": float(sigmoid(judged.margin[i])),
                "margin": float(judged.margin[i]),
                "label_is_right": float(judged.is_right[i]),
                **row_of(pair),
            }
        )
    return listed


def row_of(pair: Row) -> Row:
    """A preference as a row of the form that `train` reads as explicit prompt."""
    row = {name: pair[name] for name in ("prompt", "chosen", "rejected")}
    row |= {name: pair[name] for name in ("margin", "weight", "target") if pair[name] not in (None, *DEFAULT[name])}
    row |= {name: pair[name] for name in ("subset", "id") if pair[name]}
    return row | (pair.get("options") or {})


DEFAULT = {"margin": (0.0,), "weight": (1.0,), "target": ()}
"""Values that a row need not give"""


def kept_rows(judged: Judged, sample: Sample, pairs: Iterable[Row], write: str) -> Iterator[Row]:
    """The rows of kept.jsonl, of all `pairs` in the order in which the sample counts them: suspects left out, or kept
    with the probability that their label is right as `weight` (times their own) or as `target`, the probability that
    chosen wins. Pairs beyond the sample were not judged, and stay."""
    of = {sample.rows[int(judged.at[i])]: float(judged.is_right[i]) for i in judged.suspects.tolist()}
    for i, pair in enumerate(pairs):
        row = row_of(pair)
        if i in of:
            if write == "drop":
                continue
            flipped = pair["target"] is not None and pair["target"] < 0.5
            row[write] = pair["weight"] * of[i] if write == "weight" else 1 - of[i] if flipped else of[i]
        yield row
