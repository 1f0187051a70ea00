"""What an evaluation reports of scored pairs: metrics.json, the columns of scores.jsonl, and the pairs to quote."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from rmkit.data.counts import in_words
from rmkit.evaluation import benchmarks, statistics, trust
from rmkit.evaluation.lists import ListRow, list_rows, part_rows
from rmkit.evaluation.rewardbench import sections
from rmkit.evaluation.scores import Scored

SHOWN = 12
"""How many pairs of one kind are quoted."""

BY = {"margin": "|margin|", "confidence": "calibrated confidence", "difference_se": "standard error"}
"""What tells how sure a model is of a pair, in words."""

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


def key_figures(m: dict) -> list[tuple[str, str]]:
    """The most important numbers as (name, value), for the page and for the terminal."""
    rows = [
        ("rows of the files", in_words(m["counts"], "rows")),
        ("pairs of these rows", in_words(m["counts"], "pairs")),
        *figures(m),
    ]
    told = sum(found["left_out"] for found in (*m["styles"], m["best_of_n"]) if found)
    if m["list_rows_left_out"] > told:  # those of a kind that has no row left
        rows.append(("lists of responses", f"{m['list_rows_left_out'] - told:,} more left out: a pair was dropped"))
    if against := m["against"]:
        test = against["mcnemar"]
        rows.append(("accuracy of the other", f"{against['overall']['accuracy']:.4f}"))
        rows += [(f"the other: {name}", value) for name, value in _judged(against)]
        rows.append(("McNemar's test", f"p = {test['p_value']:.3g} ({_apart(test)})"))
    return rows


def figures(m: dict) -> list[tuple[str, str]]:
    """The most important numbers of one model."""
    o, bias = m["overall"], m["length_bias"]
    low, high = o["accuracy_low"], o["accuracy_high"]
    return [
        ("pairs", f"{o['pairs']:,}"),
        ("accuracy", f"{o['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}; {o['correct']:,} right)"),
        ("ties (count as wrong)", f"{o['ties']:,}"),
        ("loss", f"{o['loss']:.4f}"),
        ("margin", f"{o['margin_mean']:.3f} (spread {o['margin_std']:.3f})"),
        ("score of chosen", f"{o['chosen_mean']:.3f} (spread {o['chosen_std']:.3f})"),
        ("score of rejected", f"{o['rejected_mean']:.3f} (spread {o['rejected_std']:.3f})"),
        ("Brier score", f"{o['brier']:.4f} (a coin: 0.25)"),
        ("calibration error", f"{o['ece']:.4f}"),
        *_trusted(m["trust"]),
        ("accuracy at like length", controlled(bias["controlled"])),
        ("longer is chosen", accuracy_of(bias["longer_chosen"])),
        ("shorter is chosen", accuracy_of(bias["shorter_chosen"])),
        ("always the longer", number(bias["always_longer"])),
        *_judged(m),
    ]


def _judged(m: dict) -> list[tuple[str, str]]:
    """The scores of one model by the rules of lists, of benchmarks and of RewardBench's sections."""
    rows = []
    for style in m["styles"]:
        text = f"{style['easy']:.4f} / {style['normal']:.4f} / {style['hard']:.4f}"
        rows.append(("easy / normal / hard", f"{text} ({rows_of(style)})"))
    if best := m["best_of_n"]:
        rows.append(("best of n", f"{best['accuracy']:.4f} ({rows_of(best)})"))
    rows += [(name, _benchmark(found)) for name, found in m["benchmarks"].items()]
    if m["rewardbench"]:
        rows += [(f"RewardBench {name}", _section(section)) for name, section in m["rewardbench"]["sections"].items()]
    return rows


def _trusted(t: dict) -> list[tuple[str, str]]:
    """Calibration after the temperature, and how well the model knows what it has wrong."""
    rows, last = [], t["calibration"]["posterior"] or t["calibration"]["temperature"]
    if last is not None:
        rows.append(("calibrated", f"loss {last['loss']:.4f}, calibration error {last['ece']:.4f}"))
        if t["temperature"] is not None:
            pairs = f"{t['temperature_pairs']:,} held-out pairs of training"
            rows.append(("its temperature", f"fitted on {pairs}; on these very pairs it is a fit, not a forecast"))
    area, found = t["risk_coverage"]["margin"], t["auroc_wrong"]
    rows.append(("risk-coverage area", f"{area['area']:.4f} by |margin| (chance {area['chance']:.4f})"))
    by = [f"{found[name]:.3f} by {word}" for name, word in BY.items() if found[name] is not None]
    one_class = f"not known: all pairs are {'wrong' if area['chance'] else 'right'}"
    rows.append(("AUROC of wrong", ", ".join(by) or one_class))
    return rows


def rows_of(lists: dict) -> str:
    """How many rows of lists a figure is from, and how many it leaves out, in words."""
    left_out = f", {lists['left_out']:,} left out: a pair of theirs was dropped" if lists.get("left_out") else ""
    return f"{lists['rows']:,} rows{left_out}"


def accuracy_of(share: dict) -> str:
    """An accuracy and its number of pairs, in words."""
    return f"accuracy {share['accuracy']:.4f} of {share['pairs']:,} pairs" if share["pairs"] else "no such pair"


def controlled(found: dict) -> str:
    """Length-controlled accuracy, its interval and the pairs that count, in words."""
    if found["accuracy"] is None:
        return "no pairs that can be matched by length"
    interval = f"95 % interval {found['accuracy_low']:.4f} to {found['accuracy_high']:.4f}"
    return f"{found['accuracy']:.4f} ({interval}; weight of {found['effective']:,.0f} pairs; length alone has 0.5)"


def number(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def _benchmark(found: dict) -> str:
    """A benchmark's own score, its parts, of which those of few rows are marked, and what it lost."""
    kinds = [found[kind] for kind in ("models", "parts") if found.get(kind)]
    words = [", ".join(_part(name, part) for name, part in kind.items()) for kind in kinds]
    if lost := _lost(found["left_out"]):
        words.append(lost)
    return f"{number(found['score'])} ({'; '.join(words)})" if words else number(found["score"])


def _part(name: str, part: dict) -> str:
    few = f" (only {part['rows']} rows)" if part["few"] else ""
    return f"{name} {part['score']:.3f}{few}"


def _lost(left_out: dict[str, int]) -> str:
    rows, pairs, lists = (left_out[kind] for kind in ("rows", "pairs", "lists"))
    words = [f"{rows:,} bad row{'s' * (rows > 1)}"] if rows else []
    words += [f"{pairs:,} dropped pair{'s' * (pairs > 1)}"] if pairs else []
    words += [f"{lists:,} list{'s that lack' if lists > 1 else ' that lacks'} one of them"] if lists else []
    return f"left out: {', '.join(words)}" if words else ""


def _section(section: dict) -> str:
    return f"{section['score']:.4f} (from {section['covered']:.0%} of the section's weight)"


def _apart(test: dict) -> str:
    return f"right alone: {test['only_first_right']:,} against {test['only_second_right']:,}"
