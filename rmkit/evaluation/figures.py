"""What metrics.json holds, in words: the closing table, and what the page says with the same ones."""

from rmkit.data.counts import in_words

BY = {"margin": "|margin|", "confidence": "calibrated confidence", "difference_se": "standard error"}
"""What tells how sure a model is of a pair, in words."""


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
