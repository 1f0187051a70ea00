"""What an evaluation reports of scored pairs: metrics.json, the columns of scores.jsonl, and the pairs to quote."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from rmkit.evaluation import benchmarks, statistics, trust
from rmkit.evaluation.lists import ListRow, list_rows, part_rows
from rmkit.evaluation.rewardbench import sections
from rmkit.evaluation.scores import Scored

SHOWN = 12
"""How many pairs of one kind are quoted."""

Columns = dict[str, np.ndarray]


def columns(preferences: Dataset, scored: Scored, other: Scored | None) -> Columns:
    """The columns of scores.jsonl, one entry for each of N pairs; `other`: a second model's scores of the same."""
    kept = preferences.select(scored.rows)
    subset = [name or _place(where) for name, where in zip(kept["subset"], kept["source"], strict=True)]
    asked = [np.array(kept[name], np.float64) for name in ("margin", "target", "weight")]
    table = {"source": np.array(kept["source"]), "id": np.array(kept["id"]), "subset": np.array(subset)}
    for prefix, scores in (("", scored), ("against_", other)):
        if scores is not None:
            table[f"{prefix}score_chosen"] = scores.chosen
            table[f"{prefix}score_rejected"] = scores.rejected
            table[f"{prefix}margin"] = scores.chosen.astype(np.float64) - scores.rejected
            table[f"{prefix}correct"] = scores.chosen > scores.rejected
            table[f"{prefix}loss"] = statistics.losses(scores.chosen, scores.rejected, *asked)
            if scores.se is not None:
                table[f"{prefix}difference_se"] = scores.se
                table[f"{prefix}probability"] = scores.trust.probability(table[f"{prefix}margin"], scores.se)
    for i, side in enumerate(("chosen", "rejected")):
        table[f"tokens_{side}"] = scored.tokens[:, i]
        table[f"characters_{side}"] = np.array([sum(len(m["content"]) for m in turns) for turns in kept[side]])
    return table


def _place(where: str) -> str:
    """The subset of a row that gives none: the file or set that the row comes from."""
    return "/".join(Path(where.rpartition(":")[0]).parts[-2:])


def measure(
    preferences: Dataset, scored: Scored, other: Scored | None, per_pair: Columns, bad_rows: Counter[str]
) -> dict:
    """The figures of metrics.json: overall, by subset, and for rows of several responses; of `other`, a second model's
    scores of the same pairs, all of them too. `bad_rows`: those that could not be read, by benchmark."""
    position = np.full(len(preferences), -1)
    position[scored.rows] = np.arange(len(scored.rows))
    source = preferences["source"]
    rows = list_rows(source, preferences["id"], position)
    dropped = Counter(benchmarks.benchmark_of(source[int(i)]) for i in np.flatnonzero(position < 0))
    against = None
    if other is not None:
        against = {
            **_tables(rows, dropped, bad_rows, per_pair, other, "against_"),
            "mcnemar": statistics.mcnemar(per_pair["correct"], per_pair["against_correct"]),
        }
    return {
        "pairs": len(per_pair["subset"]),
        "conversations": scored.sequences,
        "dropped": scored.dropped,
        **_tables(rows, dropped, bad_rows, per_pair, scored),
        "list_rows_left_out": sum(not row.whole for row in rows),
        "against": against,
    }


def _tables(
    rows: list[ListRow],
    dropped: Counter[str],
    bad_rows: Counter[str],
    per_pair: Columns,
    scored: Scored,
    prefix: str = "",
) -> dict:
    """Every table of one model's scores; those of a second one have the `prefix` "against_". `dropped`: pairs that were
    not scored, `bad_rows`: rows that could not be read, by benchmark."""
    chosen, rejected, subset = (
        per_pair[f"{prefix}score_chosen"],
        per_pair[f"{prefix}score_rejected"],
        per_pair["subset"],
    )
    subsets = {name: _summary(per_pair, subset == name, prefix) for name in sorted(set(subset.tolist()))}
    lengths = per_pair["characters_chosen"], per_pair["characters_rejected"]
    in_rows = benchmarks.Rows(
        chosen=chosen,
        rejected=rejected,
        subset=subset,
        source=per_pair["source"],
        own=np.arange(len(subset)),
        lists=rows,
    )
    return {
        "overall": _summary(per_pair, np.ones(len(subset), bool), prefix),
        "subsets": subsets,
        "calibration": statistics.calibration(per_pair[f"{prefix}margin"]),
        "length_bias": {
            "unit": "characters of the response",
            **statistics.length_bias(chosen, rejected, *lengths),
        },
        **_of_lists(rows, chosen, rejected, subset),
        "rewardbench": _sections(rows, per_pair, prefix),
        "benchmarks": benchmarks.scores(in_rows, dropped, bad_rows),
        "trust": trust.measure(per_pair[f"{prefix}margin"], scored.se, scored.trust),
    }


def _sections(rows: list[ListRow], per_pair: Columns, prefix: str) -> dict | None:
    """RewardBench's sections, of pairs that can be its own: no part of a list, and of no other benchmark by name."""
    own = np.array([benchmarks.benchmark_of(where) in ("", "rewardbench") for where in per_pair["source"].tolist()])
    for row in rows:
        own[row.pairs[row.pairs >= 0]] = False
    subset, right = per_pair["subset"][own], per_pair[f"{prefix}correct"][own]
    return sections({name: float(right[subset == name].mean()) for name in sorted(set(subset.tolist()))})


def _summary(per_pair: Columns, inside: np.ndarray, prefix: str = "") -> dict:
    wanted = (f"{prefix}{name}" for name in ("score_chosen", "score_rejected", "loss"))
    return statistics.summary(*(per_pair[name][inside] for name in wanted))


def _of_lists(rows: list[ListRow], chosen: np.ndarray, rejected: np.ndarray, subset: np.ndarray) -> dict:
    """Style matrices (one for each number of styles, usually none or one) and best of n, overall and by subset; and how
    many rows of that kind are left out of each, because a pair of theirs was dropped."""
    styles, best = part_rows(rows)

    def by_subset(some: Sequence[ListRow], measured: Callable[[Sequence[ListRow]], dict]) -> dict | None:
        whole, parts = [row for row in some if row.whole], {}
        for row in whole:
            parts.setdefault(str(subset[row.pairs[0, 0]]), []).append(row)
        if not whole:
            return None
        subsets = {name: measured(part) for name, part in sorted(parts.items())}
        return {**measured(whole), "subsets": subsets, "left_out": len(some) - len(whole)}

    def matrix(some: Sequence[ListRow]) -> dict:
        pairs = np.stack([row.pairs for row in some])
        return statistics.style_matrix(chosen[pairs[:, :, 0]], rejected[pairs[:, 0, :]])

    def best_of(some: Sequence[ListRow]) -> dict:
        worst = np.array([chosen[row.pairs[:, 0]].min() for row in some])
        return statistics.best_of_n(worst, np.array([rejected[row.pairs[0]].max() for row in some]))

    matrices = [by_subset(some, matrix) for some in styles]
    return {
        "styles": [found for found in matrices if found is not None],
        "best_of_n": by_subset(best, best_of),
    }


def quoted(preferences: Dataset, scored: Scored, per_pair: Columns) -> dict[str, list[dict]]:
    """The pairs that the report quotes: the most wrong ones, and those on which two models disagree most."""
    order = np.argsort(per_pair["margin"], kind="stable")
    picked = {"most wrong": order[~per_pair["correct"][order]][:SHOWN]}
    if "against_correct" in per_pair:
        apart = np.abs(statistics.sigmoid(per_pair["margin"]) - statistics.sigmoid(per_pair["against_margin"]))
        order = np.argsort(-apart, kind="stable")
        picked["most apart"] = order[(per_pair["correct"] != per_pair["against_correct"])[order]][:SHOWN]
    names = [name for name in per_pair if "score_" in name] + ["source", "subset"]
    return {
        kind: [
            {**_texts(preferences[int(scored.rows[i])]), **{name: per_pair[name][i].item() for name in names}}
            for i in positions
        ]
        for kind, positions in picked.items()
    }


def _texts(preference: dict) -> dict[str, str]:
    return {
        "prompt": "\n\n".join(f"{m['role']}: {m['content']}" for m in preference["prompt"]),
        **{side: "\n\n".join(m["content"] for m in preference[side]) for side in ("chosen", "rejected")},
    }
