"""Scores of the known benchmarks by their own rules, next to the tables that every evaluation has.

Which rows are a benchmark's is known by their `source`, which starts with the name under which --data reads it
(`rmkit.data.benchmarks`).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rmkit.evaluation.lists import ListRow
from rmkit.evaluation.rewardbench import best_of_four, sections, ties_score
from rmkit.evaluation.statistics import style_matrix

FEW = 100
"""A part with fewer rows is marked: its score says little."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The scored pairs of one benchmark."""

    chosen: np.ndarray
    rejected: np.ndarray
    """float [N]: scores of the two sides of all pairs of the evaluation"""
    subset: np.ndarray
    """str [N]"""
    source: np.ndarray
    """str [N]: the place that each comes from"""
    own: np.ndarray
    """int64: positions of the benchmark's pairs among the N"""
    lists: Sequence[ListRow]
    """Its rows of several responses; what scores a benchmark gets whole ones alone"""

    def of_lists(self, row: ListRow) -> tuple[np.ndarray, np.ndarray]:
        """The scores of a row's chosen and of its rejected responses."""
        return self.chosen[row.pairs[:, 0]], self.rejected[row.pairs[0]]

    def by_subset(self) -> dict[str, list[ListRow]]:
        parts: dict[str, list[ListRow]] = {}
        for row in self.lists:
            parts.setdefault(str(self.subset[row.pairs[0, 0]]), []).append(row)
        return parts

    def accuracies(self) -> dict[str, dict]:
        """Accuracy and number of pairs of each subset; a tie is wrong."""
        right, subset = self.chosen[self.own] > self.rejected[self.own], self.subset[self.own]
        return {
            name: _part(float(right[subset == name].mean()), int((subset == name).sum())) for name in _sorted(subset)
        }


def _sorted(names: np.ndarray) -> list[str]:
    return sorted(set(names.tolist()))


def _part(score: float, rows: int) -> dict:
    return {"score": score, "rows": rows, "few": rows < FEW}


def _mean(parts: dict[str, dict]) -> float | None:
    return float(np.mean([part["score"] for part in parts.values()])) if parts else None


def _pooled(parts: dict[str, dict]) -> float | None:
    if not parts:
        return None
    return float(np.average([p["score"] for p in parts.values()], weights=[p["rows"] for p in parts.values()]))


def rewardbench(rows: Rows) -> dict:
    """The mean over the sections present, weighted as in the paper (arXiv:2403.13787)."""
    parts = rows.accuracies()
    found = sections({name: part["score"] for name, part in parts.items()})
    if found is None:
        return {"score": _pooled(parts), "parts": parts}
    counts = {
        name: sum(parts[subset]["rows"] for subset in part["subsets"]) for name, part in found["sections"].items()
    }
    named = {name: _part(part["score"], counts[name]) for name, part in found["sections"].items()}
    return {"score": found["average"], "parts": named}


def rewardbench2(rows: Rows) -> dict:
    """The mean over the subsets: best of four, and Ties by its own rule (arXiv:2506.01937)."""
    parts = {}
    for name, some in sorted(rows.by_subset().items()):
        if name.lower() == "ties":
            score = ties_score({row.id: rows.of_lists(row) for row in some})
        else:
            sides = [rows.of_lists(row) for row in some]
            score = float(np.mean([best_of_four(float(chosen[0]), rejected) for chosen, rejected in sides]))
        if score is not None:
            parts[name] = _part(score, len(some))
    return {"score": _mean(parts), "parts": parts}


def rm_bench(rows: Rows) -> dict:
    """The mean of easy, normal and hard, each the mean over chat, code, math and safety (arXiv:2410.16184).

    Both files of safety, refuse and response, are one domain, whose rows count alike.
    """
    if not rows.lists:
        return {"score": None, "easy": None, "normal": None, "hard": None, "parts": {}}
    domains: dict[str, list[ListRow]] = {}
    for subset, some in rows.by_subset().items():
        domains.setdefault(re.split(r"[-_]", subset)[0], []).extend(some)
    levels, parts = [], {}
    for name, some in sorted(domains.items()):
        sides = [rows.of_lists(row) for row in some]
        found = style_matrix(np.stack([chosen for chosen, _ in sides]), np.stack([rejected for _, rejected in sides]))
        levels.append([found[level] for level in ("easy", "normal", "hard")])
        parts[name] = _part(float(np.mean(levels[-1])), len(some))
    easy, normal, hard = np.mean(levels, 0).tolist()
    return {"score": float(np.mean(levels)), "easy": easy, "normal": normal, "hard": hard, "parts": parts}


def pairs(rows: Rows) -> dict:
    """The share of all pairs that are right: human preference of PPE."""
    parts = rows.accuracies()
    return {"score": _pooled(parts), "parts": parts}


def judgebench(rows: Rows) -> dict:
    """The share of all pairs that are right (arXiv:2410.12784), and of those of each response model: the answers of one
    model are a file (a split on the hub), and JudgeBench's own program takes one of these."""
    model = np.array([_response_model(where) for where in rows.source.tolist()])
    return {"models": replace(rows, subset=model).accuracies(), **pairs(rows)}


def _response_model(source: str) -> str:
    """gpt-4o-2024-05-13 of "judgebench=data/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl:3", gpt of
    "judgebench:ScalerLab/JudgeBench:gpt:3", and of any other file its name."""
    name = re.split(r"[:/]", source.rpartition(":")[0])[-1]
    return name.rpartition("=")[2].removesuffix(".jsonl")


def ppe_correctness(rows: Rows) -> dict:
    """The mean over its five benchmarks of the accuracy on their sampled pairs (arXiv:2410.14872)."""
    parts = rows.accuracies()
    return {"score": _mean(parts), "parts": parts}


def rmb(rows: Rows) -> dict:
    """Pairwise accuracy and best of n, for help and for harm; the score is the mean of the four (arXiv:2410.09893).

    Best of n is right where the best response is above every other.
    """
    listed = {int(p) for row in rows.lists for p in row.pairs.ravel()}
    single = np.array([p for p in rows.own.tolist() if p not in listed], np.int64)
    right = rows.chosen[single] > rows.rejected[single]
    goal = np.array([name.partition("/")[0] for name in rows.subset[single].tolist()])
    parts = {
        f"{name}, pairs": _part(float(right[goal == name].mean()), int((goal == name).sum())) for name in _sorted(goal)
    }
    best: dict[str, list[bool]] = {}
    for subset, some in rows.by_subset().items():
        for row in some:
            chosen, rejected = rows.of_lists(row)
            best.setdefault(subset.partition("/")[0], []).append(bool(chosen.min() > rejected.max()))
    parts |= {f"{name}, best of n": _part(float(np.mean(wins)), len(wins)) for name, wins in sorted(best.items())}
    return {"score": _mean(parts), "parts": parts}


BENCHMARKS: dict[str, Callable[[Rows], dict]] = {
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "rm-bench": rm_bench,
    "judgebench": judgebench,
    "ppe-preference": pairs,
    "ppe-correctness": ppe_correctness,
    "rmb": rmb,
}
"""By the name that --data takes: all pairs of one benchmark -> {"score", "parts": {name: {"score", "rows", "few"}}}."""


def benchmark_of(source: str) -> str:
    """The benchmark that a preference belongs to, by its place ("NAME:ROW" or "NAME=FILE:LINE"); "" where to none."""
    name = re.split(r"[:=]", source, maxsplit=1)[0]
    return name if name in BENCHMARKS else ""


def scores(rows: Rows, dropped: Counter[str], bad_rows: Counter[str]) -> dict[str, dict]:
    """The scores of all benchmarks that are among the N pairs of `rows`, whose lists may lack pairs.

    `left_out` has what a benchmark lost: rows that could not be read and pairs that were dropped, as `bad_rows` and
    `dropped` count them by benchmark, and lists that lack one of those pairs. A benchmark that lost all has the score
    None.
    """
    name = np.array([benchmark_of(where) for where in rows.source.tolist()])
    found = {}
    for benchmark in sorted({*name.tolist(), *dropped, *bad_rows} - {""}):
        lists = [row for row in rows.lists if benchmark_of(row.file) == benchmark]
        whole, own = [row for row in lists if row.whole], name == benchmark
        for row in lists:
            if not row.whole:  # what is left of it is no pair of the benchmark
                own[row.pairs[row.pairs >= 0]] = False
        left_out = {"rows": bad_rows[benchmark], "pairs": dropped[benchmark], "lists": len(lists) - len(whole)}
        score = BENCHMARKS[benchmark](replace(rows, own=np.flatnonzero(own), lists=whole))
        found[benchmark] = {**score, "left_out": left_out}
    return found
