"""Scores of the known benchmarks by their own rules, next to the tables that every evaluation has.

Which rows are a benchmark's is known by their `source`, which starts with the name under which --data reads it
(`rmkit.data.benchmarks`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    own: np.ndarray
    """int64: positions of the benchmark's pairs among the N"""
    lists: Sequence[ListRow]
    """Its rows of several responses"""

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


def _mean(parts: dict[str, dict]) -> float:
    return float(np.mean([part["score"] for part in parts.values()]))


def _pooled(parts: dict[str, dict]) -> float:
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
    return {"score": _mean(parts) if parts else None, "parts": parts}


def rm_bench(rows: Rows) -> dict:
    """The mean of easy, normal and hard, each the mean over chat, code, math and safety (arXiv:2410.16184).

    Both files of safety, refuse and response, are one domain, whose rows count alike.
    """
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
    """The share of all pairs that are right: JudgeBench (arXiv:2410.12784), human preference of PPE."""
    parts = rows.accuracies()
    return {"score": _pooled(parts), "parts": parts}


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
    "judgebench": pairs,
    "ppe-preference": pairs,
    "ppe-correctness": ppe_correctness,
    "rmb": rmb,
}
"""By the name that --data takes: all pairs of one benchmark -> {"score", "parts": {name: {"score", "rows", "few"}}}."""


def benchmark_of(source: str) -> str:
    """The benchmark that a preference belongs to, by its place ("NAME:ROW" or "NAME=FILE:LINE"); "" where to none."""
    name = re.split(r"[:=]", source, maxsplit=1)[0]
    return name if name in BENCHMARKS else ""


def scores(source: Sequence[str], rows: Rows) -> dict[str, dict]:
    """The scores of all benchmarks that are among the N pairs whose places `source` gives."""
    name = np.array([benchmark_of(where) for where in source])
    found = {}
    for benchmark in _sorted(name):
        if benchmark:
            lists = [row for row in rows.lists if name[row.pairs[0, 0]] == benchmark]
            own = Rows(
                chosen=rows.chosen,
                rejected=rows.rejected,
                subset=rows.subset,
                own=np.flatnonzero(name == benchmark),
                lists=lists,
            )
            found[benchmark] = BENCHMARKS[benchmark](own)
    return found
