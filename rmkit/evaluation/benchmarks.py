"""RewardBench's sections and input file, and the rows of RM-Bench and RewardBench 2, which hold several responses and
are scored as all pairs of them."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmkit.data.messages import Message
from rmkit.storage.atomic import written_file

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        # The sizes of the sets; RewardBench's first releases had these two the other way round.
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,  # 447 rows, weighted to equal the six sets of code
        **{f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")},
    },
    "Prior": {"anthropic_helpful": 1, "anthropic_hhh": 1, "shp": 1, "summarize": 1},
}
"""RewardBench 1: weight of each subset in its section (its number of rows; the prior sets count alike)."""

SECTION_WEIGHT = {"Chat": 2, "Chat Hard": 2, "Safety": 2, "Reasoning": 2, "Prior": 1}
"""Weight of a section in the average that the paper reports."""


def sections(accuracy: dict[str, float]) -> dict | None:
    """RewardBench's section scores, from accuracies by subset name; None where no subset is RewardBench's.

    A missing subset is skipped, as RewardBench does; `covered` is the share of the section's weight that is present.
    `average` is over the sections that are present.
    """
    scores = {}
    for section, weights in SECTIONS.items():
        there = {name: weight for name, weight in weights.items() if name in accuracy}
        if there:
            total = sum(there.values())
            scores[section] = {
                "score": sum(accuracy[name] * weight for name, weight in there.items()) / total,
                "covered": total / sum(weights.values()),
                "subsets": list(there),
            }
    if not scores:
        return None
    total = sum(SECTION_WEIGHT[name] for name in scores)
    average = sum(SECTION_WEIGHT[name] * section["score"] for name, section in scores.items()) / total
    return {"sections": scores, "average": average}


@dataclass(frozen=True, kw_only=True)
class ListRow:
    """A row with lists of responses, all of whose pairs were scored."""

    file: str
    pairs: np.ndarray
    """int64 [chosen, rejected]: position among the scored pairs"""


_PLACE = re.compile(r"(.*)/(\d+)>(\d+)", re.DOTALL)


def list_rows(source: Sequence[str], ids: Sequence[str], position: np.ndarray) -> tuple[list[ListRow], Counter[str]]:
    """Rebuild the rows of response lists (RM-Bench, RewardBench 2) from their pairs; how many rows of each file lack a
    pair.

    All arguments have an entry for each of P preferences: `source` ("file:line") and `ids` ("ID/i>j", as data/forms.py
    writes them) name the row and the place in it; `position` int64 [P] is the index among the scored pairs, -1 where
    the pair was dropped. Rows of ranked responses have no pair i>i, and are left out by that.
    """
    cells: dict[tuple[str, str], dict[tuple[int, int], int]] = {}
    for p, (where, name) in enumerate(zip(source, ids, strict=True)):
        if match := _PLACE.fullmatch(name):
            cells.setdefault((where, match[1]), {})[int(match[2]), int(match[3])] = p
    rows, broken = [], Counter()
    for (where, _), by_place in cells.items():
        if all(i != j for i, j in by_place):
            continue
        shape = tuple(max(place) + 1 for place in zip(*by_place, strict=True))
        pairs = np.full(shape, -1)
        for place, p in by_place.items():
            pairs[place] = position[p]
        if (pairs < 0).any():
            broken[where.rpartition(":")[0]] += 1
        elif pairs.size > 1:
            rows.append(ListRow(file=where.rpartition(":")[0], pairs=pairs))
    return rows, broken


def part_rows(rows: Sequence[ListRow]) -> tuple[list[list[ListRow]], list[ListRow]]:
    """Split rows into those of style matrices, one list for each number of styles, and those of best of n.

    A file whose rows all have as many rejected as chosen responses, the same number, at least 2, holds styles.
    """
    files: dict[str, list[ListRow]] = {}
    for row in rows:
        files.setdefault(row.file, []).append(row)
    styles: dict[int, list[ListRow]] = {}
    best: list[ListRow] = []
    for of_file in files.values():
        shapes = {row.pairs.shape for row in of_file}
        chosen, rejected = shapes.pop()
        if not shapes and chosen == rejected:
            styles.setdefault(chosen, []).extend(of_file)
        else:
            best += of_file
    return [styles[k] for k in sorted(styles)], best


def write_rewardbench(file: Path, preferences: Iterable[dict], say: Callable[[str], None]) -> None:
    """Write preferences as `rewardbench --dataset FILE --load_json` reads them offline: whole conversations only.

    Says how many of them RewardBench renders differently from rmkit. Raises ValueError where the file cannot be
    written.
    """
    count = otherwise = 0
    try:
        with written_file(file) as out:
            for row in preferences:
                sides = {side: [*row["prompt"], *row[side]] for side in ("chosen", "rejected")}
                out.write(json.dumps(sides) + "\n")
                count += 1
                plain = row["more"] is None and all(len(row[side]) == 1 and _alternate(sides[side]) for side in sides)
                otherwise += not plain
    except OSError as error:
        raise ValueError(f"--export rewardbench {file}: it could not be written ({error.strerror})") from error
    # Without these two it loads 8-bit weights by default, and float16 ones otherwise.
    exact = "--not_quantized --torch_dtype float32"
    say(f"{count} pairs for RewardBench: rewardbench --model MODEL --dataset {file} --load_json {exact}")
    if otherwise:
        say(
            f"warning: RewardBench will read {otherwise} of them otherwise, because it takes the turns as user and "
            "assistant in alternation, and the last message alone as the response"
        )


def _alternate(messages: list[Message]) -> bool:
    return [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
