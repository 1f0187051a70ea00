"""From scores to feedback records: which samples of a prompt form pairs, the threshold, and the fields of each record.

Pure functions. Rules and schemas are those of HALOs' labeller (`train/label.py`), with its faults mended: no sample is
paired with itself, a tie makes no pair, and sample_id, generator and dataset are kept.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from rmkit.labelling.samples import Sample

Feedback = Literal["scalar", "binary", "pairwise", "best"]
Pairing = Literal["max", "min", "random", "all"]
Format = Literal["halos", "trl", "openrlhf"]
Record = dict[str, Any]

TIE = 1e-12
"""Gaps within this of the smallest one count as equal to it (HALOs)."""


def number_of(threshold: str | None, feedback: Feedback) -> float | Literal["mean", "median"]:
    """--threshold as a number, or "mean" or "median", which are taken over the scores later.

    By default the median for binary and 0 for pairwise. Raises ValueError where the feedback has no such threshold.
    """
    if feedback in ("scalar", "best"):
        if threshold is not None:
            raise ValueError(f"--threshold {threshold}: {feedback} feedback has none; leave it out")
        return 0.0
    if threshold is None:
        return "median" if feedback == "binary" else 0.0
    if threshold in ("mean", "median"):
        if feedback == "pairwise":
            raise ValueError(
                f"--threshold {threshold}: for pairwise feedback set a number, the gap of a pair; {threshold} is for "
                "--feedback binary"
            )
        return threshold
    try:
        number = float(threshold)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        words = ", mean or median" if feedback == "binary" else ""
        raise ValueError(f"--threshold {threshold}: set a finite number{words}")
    if feedback == "pairwise" and number < 0:
        raise ValueError(f"--threshold {threshold}: a gap is never negative; set 0 or more")
    return number


def bar(threshold: float | Literal["mean", "median"], scores: np.ndarray) -> float:
    """The reward from which a sample is desirable; mean and median are over all scored samples."""
    if isinstance(threshold, float):
        return threshold
    scored = scores[~np.isnan(scores)].astype(np.float64)
    if len(scored) == 0:
        return 0.0
    return float(scored.mean() if threshold == "mean" else np.median(scored))


def pairs_of(
    scores: np.ndarray, pairing: Pairing, threshold: float, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Pairs (better, worse) of indices into one prompt's scores, float64 [K].

    max: best and worst. random: neighbours in a shuffled order; of an odd number the last is left out. all: every pair.
    These three keep gaps > threshold. min: no pair where best - worst <= threshold, else the pairs with the smallest
    gap that is >= threshold. A gap of 0 makes no pair, whatever the threshold.
    """
    if len(scores) < 2:
        return
    if pairing == "random":
        order = rng.permutation(len(scores)).tolist()
        candidates = zip(order[::2], order[1::2], strict=False)
    elif pairing == "max":
        candidates = [(int(scores.argmax()), int(scores.argmin()))]
    elif pairing == "min":
        yield from _closest(scores, threshold)
        return
    else:
        candidates = ((i, j) for i in range(len(scores)) for j in range(i + 1, len(scores)))
    for i, j in candidates:
        better, worse = (i, j) if scores[i] >= scores[j] else (j, i)
        if scores[better] - scores[worse] > threshold:
            yield better, worse


def _closest(scores: np.ndarray, threshold: float) -> Iterator[tuple[int, int]]:
    if scores.max() - scores.min() <= threshold:
        return
    order = np.argsort(scores, kind="stable")
    rising = scores[order]
    smallest = np.inf
    for i in range(len(rising)):
        gaps = rising[i + 1 :] - rising[i]
        wide = gaps[(gaps >= threshold) & (gaps > 0)]
        smallest = min(smallest, wide.min(initial=np.inf))
    for i in range(len(rising)):
        gaps = rising[i + 1 :] - rising[i]
        for j in np.flatnonzero((gaps >= threshold) & (gaps > 0) & (gaps <= smallest + TIE)).tolist():
            yield int(order[i + 1 + j]), int(order[i])


def prompt_id(sample: Sample) -> int | str:
    """The row's prompt_id, or as HALOs makes it: sha256 of the contents of the prompt's turns, concatenated."""
    if sample.prompt_id is not None:
        return sample.prompt_id
    return hashlib.sha256("".join(turn["content"] or "" for turn in sample.prompt).encode()).hexdigest()


def scalar(sample: Sample, reward: float, form: Format, **more: float) -> Record:
    """One sample with its reward and `more` (its standard error, where there is one); under halos all other fields of
    its row are kept."""
    if form != "halos":
        return {**_response(sample, form), "score": reward, **more, **_also(sample)}
    return {
        **sample.record,
        "prompt_id": prompt_id(sample),
        "prompt": sample.prompt,
        "output": sample.response,
        "reward": reward,
        **more,
        "type": "scalar_feedback",
    }


def best(sample: Sample, reward: float, n: int, form: Format, **more: float) -> Record:
    """The best of a prompt's `n` samples, as scalar feedback, which HALOs reads too."""
    return {**scalar(sample, reward, form, **more), "n": n}


def binary(sample: Sample, reward: float, threshold: float, form: Format, **more: float) -> Record:
    """One sample, desirable where its reward reaches the threshold, and `more` of it."""
    label = int(reward >= threshold)
    if form != "halos":
        # TRL's KTOTrainer wants a boolean.
        return {
            **_response(sample, form),
            "label": bool(label) if form == "trl" else label,
            "score": reward,
            **more,
            **_also(sample),
        }
    return {
        "prompt_id": prompt_id(sample),
        "prompt": sample.prompt,
        "output": sample.response,
        "label": label,
        "reward": reward,
        **more,
        "type": "binary_feedback",
        **_kept(sample, ("sample_id", "generator", "dataset")),
        **_also(sample),
    }


def pairwise(
    better: tuple[Sample, float], worse: tuple[Sample, float], swap: bool, form: Format, **more: float
) -> Record:
    """One pair, and `more` of it. Under halos the better side is output_A, or output_B where `swap`, so that labels are
    balanced."""
    if form != "halos":
        return {
            "prompt": better[0].prompt,
            "chosen": better[0].response,
            "rejected": worse[0].response,
            "score_chosen": better[1],
            "score_rejected": worse[1],
            **more,
            **_also(better[0]),
        }
    (a, reward_a), (b, reward_b) = (worse, better) if swap else (better, worse)
    return {
        "prompt_id": prompt_id(a),
        "prompt": a.prompt,
        "output_A": a.response,
        "output_B": b.response,
        "label": int(reward_a > reward_b),
        "reward_A": reward_a,
        "reward_B": reward_b,
        "reward_difference": abs(reward_a - reward_b),
        **more,
        "type": "pairwise_feedback",
        **_kept(a, ("sample_id", "generator"), "_A"),
        **_kept(b, ("sample_id", "generator"), "_B"),
        **_kept(a, ("dataset",)),
        **_also(a),
    }


def _response(sample: Sample, form: Format) -> Record:
    """TRL calls a single response completion; OpenRLHF lets the user name the field, output by default."""
    return {"prompt": sample.prompt, "completion" if form == "trl" else "output": sample.response}


def _kept(sample: Sample, fields: tuple[str, ...], suffix: str = "") -> Record:
    return {field + suffix: sample.record[field] for field in fields if sample.record.get(field) is not None}


def _also(sample: Sample) -> Record:
    """What every record keeps: the split, and what else the chat template gets."""
    return _kept(sample, ("split",)) | (sample.options or {})
