"""The records of a feedback file: made from samples and scores, written as JSON or JSONL."""

import itertools
import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rmkit.labelling import errors as standard_errors
from rmkit.labelling import feedback as fb
from rmkit.labelling.config import LabelConfig
from rmkit.labelling.errors import Errors
from rmkit.labelling.index import SampleFile, by_prompt
from rmkit.storage.atomic import written_file
from rmkit.storage.trust import Trust


def records(
    config: LabelConfig,
    file: SampleFile,
    scores: np.ndarray,
    counts: Counter[str],
    errors: Errors | None = None,
    trust: Trust | None = None,
) -> Iterator[dict[str, Any]]:
    """The feedback records of all samples whose score, float32 [N], is not NaN, in the order of the input.

    What makes no record is counted in `counts`, by reason. The file is read once and never held as a whole. `errors`
    are those of a model with a posterior: records get reward_se, those of pairs difference_se. `trust` is that of one
    with a posterior, a temperature or both: those of pairs get probability.
    """
    one_each = config.feedback in ("scalar", "binary")
    for values in (_of_samples if one_each else _of_prompts)(config, file, scores, counts, errors, trust):
        if config.split is not None:
            values["split"] = config.split
        yield values


def _reward_se(errors: Errors | None, i: int) -> dict[str, float]:
    return {} if errors is None else {"reward_se": float(errors.se[i])}


def _of_samples(config, file, scores, counts, errors, trust) -> Iterator[dict[str, Any]]:
    bar = fb.bar(fb.number_of(config.threshold, config.feedback), scores)
    for i in map(int, np.flatnonzero(~np.isnan(scores))):
        if config.feedback == "scalar":
            yield fb.scalar(file[i], float(scores[i]), config.format, **_reward_se(errors, i))
        else:
            yield fb.binary(file[i], float(scores[i]), bar, config.format, **_reward_se(errors, i))


def _of_prompts(config, file, scores, counts, errors, trust) -> Iterator[dict[str, Any]]:
    threshold = float(fb.number_of(config.threshold, config.feedback))
    rng = np.random.default_rng(config.seed)
    order, starts = by_prompt(file.index["group"])
    for a, b in itertools.pairwise(map(int, starts)):
        positions = order[a:b][~np.isnan(scores[order[a:b]])]
        if len(positions) == 0:
            counts["prompts without a scored completion: no record"] += 1
        elif config.feedback == "best":
            i = int(positions[scores[positions].argmax()])
            yield fb.best(file[i], float(scores[i]), len(positions), config.format, **_reward_se(errors, i))
        elif len(positions) == 1:
            counts["prompts with one scored completion: no pair"] += 1
        else:
            unsure = counts[_unsure(config)]
            pairs = _pairs(config, file, positions, scores, threshold, rng, counts, errors, trust)
            if (first := next(pairs, None)) is not None:
                yield from itertools.chain([first], pairs)
            elif counts[_unsure(config)] == unsure:
                counts[f"prompts without a gap over {threshold:g}: no pair"] += 1


def _unsure(config: LabelConfig) -> str:
    return f"pairs with a probability under {config.min_confidence}: left out"


def _pairs(config, file, positions, scores, threshold, rng, counts, errors, trust) -> Iterator[dict[str, Any]]:
    """The pairs of one prompt, of which the samples `positions` are scored."""
    # Equal texts have equal scores, even where round-off parted two chunks: they are never a pair.
    _, first, twin = np.unique(file.index["text"][positions], return_index=True, return_inverse=True)
    rewards = scores[positions[first]].astype(np.float64)[twin]
    of_differences = None if errors is None else errors.of_differences(positions)
    if errors is not None and of_differences is None:
        counts[f"prompts with more than {standard_errors.MANY} samples: no difference_se"] += 1
    for better, worse in fb.pairs_of(rewards, config.pairing or "max", threshold, rng):
        swap, more = bool(rng.random() < 0.5), {}  # drawn for every pair, so that those that stay are as they were
        if trust is not None:
            se = None if of_differences is None else of_differences[better, worse]
            more["probability"] = float(trust.probability(rewards[better] - rewards[worse], se))
            if se is not None:
                more["difference_se"] = float(se)
        if config.min_confidence is not None and more["probability"] < config.min_confidence:
            counts[_unsure(config)] += 1
            continue
        sides = [(file[int(positions[i])], float(rewards[i])) for i in (better, worse)]
        yield fb.pairwise(*sides, swap, config.format, **more)


def write(feedback: Iterable[dict[str, Any]], output: Path, folder: Path) -> int:
    """Write records to `output`, as an array where its name ends in .json, else as lines; returns how many.

    The file is written in `folder` and moved when it is whole.
    """
    count, array = 0, output.name.endswith(".json")
    with written_file(output, folder) as out:
        for count, values in enumerate(feedback, 1):
            if array:
                out.write("[\n" if count == 1 else ",\n")
                out.write(textwrap.indent(json.dumps(values, indent=2, ensure_ascii=False), "  "))
            else:
                out.write(json.dumps(values, ensure_ascii=False) + "\n")
        if array:
            out.write("\n]\n" if count else "[]\n")
    return count
