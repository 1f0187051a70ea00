"""The values that report.html shows; their place on the page is in templates/report.html.jinja."""

import base64
import json

import numpy as np

from rmkit.evaluation import plots
from rmkit.evaluation.figures import BY, accuracy_of, controlled, figures, key_figures, number, rows_of
from rmkit.evaluation.metrics import Columns
from rmkit.evaluation.page import render

QUOTE = 900
"""Characters of a text that are quoted: the end of a prompt, the start of a response."""


def page(m: dict, columns: Columns, quoted: dict[str, list[dict]]) -> str:
    """report.html as text, from what metrics.json and scores.jsonl hold and the pairs to quote."""
    return render(
        "report.html.jinja",
        model=m["model"],
        data=", ".join(m["data"]),
        against_model=m["against_model"],
        key_figures=key_figures(m),
        pictures=_pictures(m, columns),
        first=_tables(m),
        against=m["against"] and _against(m["against"]),
        quoted={kind: [_pair(pair) for pair in pairs] for kind, pairs in quoted.items()},
        notes=m["notes"],
        environment=json.dumps(m["environment"]),
    )


def _tables(m: dict) -> dict:
    """The tables of one model."""
    return {
        "subsets": [_subset(name, summary) for name, summary in [*m["subsets"].items(), ("all", m["overall"])]],
        "styles": [_styles(style) for style in m["styles"]],
        "best_of_n": m["best_of_n"] and _best_of_n(m["best_of_n"]),
        "calibration": _calibration(m["calibration"]),
        "trust": _trust(m["trust"]),
        "length": _length(m["length_bias"]),
    }


def _pictures(m: dict, columns: Columns) -> dict[str, str]:
    """The plots by caption, each an SVG in base64."""
    rows, other = [("all", m["overall"])], []
    rows += list(m["subsets"].items()) if len(m["subsets"]) > 1 else []
    if m["against"]:
        other = [("all", m["against"]["overall"])] + [(name, m["against"]["subsets"][name]) for name, _ in rows[1:]]
    lengths = np.concatenate([columns["characters_chosen"], columns["characters_rejected"]])
    scores = np.concatenate([columns["score_chosen"], columns["score_rejected"]])
    pictures = {
        "Reliability": plots.reliability(m["calibration"]["reliability"]),
        "Scores": plots.histograms(columns["score_chosen"], columns["score_rejected"]),
        "Score against length": plots.against_length(lengths, scores, np.arange(len(scores)) < len(scores) // 2),
        "Accuracy": plots.subsets(rows, other),
        "Accuracy by confidence": plots.by_confidence(
            {BY[by]: found["curve"] for by, found in m["trust"]["risk_coverage"].items() if found}
        ),
    }
    return {name: base64.b64encode(svg.encode()).decode() for name, svg in pictures.items()}


def _subset(name: str, s: dict) -> list[str]:
    """A row of the table of subsets."""
    sides = [f"{s[f'{side}_mean']:.2f} \u00b1 {s[f'{side}_std']:.2f}" for side in ("margin", "chosen", "rejected")]
    values = [f"{s['pairs']:,}", f"{s['accuracy']:.3f}", _interval(s), f"{s['ties']:,}", f"{s['loss']:.3f}"]
    return [name, *values, *sides, f"{s['brier']:.3f}", f"{s['ece']:.3f}"]


def _interval(s: dict) -> str:
    return f"{s['accuracy_low']:.3f} to {s['accuracy_high']:.3f}"


def _styles(style: dict) -> dict:
    """A style matrix with the colours of its cells, and the accuracies by level, of all rows and of each subset."""
    size = len(style["matrix"])
    return {
        "rows": rows_of(style),
        "names": ["concise", "detailed", "markdown"] if size == 3 else list(range(size)),
        "matrix": [[{"accuracy": f"{a:.3f}", "colour": _shade(a)} for a in line] for line in style["matrix"]],
        "levels": [
            [name, s["rows"], *(f"{s[level]:.3f}" for level in ("easy", "normal", "hard", "average"))]
            for name, s in [("all", style), *style["subsets"].items()]
        ],
    }


def _shade(accuracy: float) -> str:
    """White at a coin's accuracy, blue above it, orange below it, pale enough for black letters."""
    end = (31, 111, 178) if accuracy >= 0.5 else (209, 102, 42)
    strength = min(1.0, abs(accuracy - 0.5) * 2) * 0.45
    return "#" + "".join(f"{round(255 + (c - 255) * strength):02x}" for c in end)


def _best_of_n(best: dict) -> list[list]:
    return [
        [name, rows_of(b) if "left_out" in b else f"{b['rows']:,}", f"{b['accuracy']:.3f}", _interval(b), b["ties"]]
        for name, b in [*best["subsets"].items(), ("all", best)]
    ]


def _against(other: dict) -> dict:
    """McNemar's test, the pairs that each model has right, and the other model's figures and tables."""
    test = other["mcnemar"]
    return {
        "difference": f"{test['accuracy_difference']:+.4f}",
        "p_value": f"{test['p_value']:.3g}",
        "pairs": [
            ["model right", f"{test['both_right']:,}", f"{test['only_first_right']:,}"],
            ["model wrong", f"{test['only_second_right']:,}", f"{test['both_wrong']:,}"],
        ],
        "figures": figures(other),
        "tables": _tables(other),
    }


def _calibration(calibration: dict) -> dict:
    """The two errors, and the bins that hold pairs."""
    return {
        "error": f"{calibration['ece']:.4f}",
        "brier": f"{calibration['brier']:.4f}",
        "bins": [
            [f"{r['low']:.2f} to {r['high']:.2f}", f"{r['pairs']:,}", f"{r['confidence']:.3f}", f"{r['accuracy']:.3f}"]
            for r in calibration["reliability"]
            if r["pairs"]
        ],
    }


def _trust(t: dict) -> dict:
    """Calibration before and after, and for each way of being sure its area, AUROC and accuracy of the surest pairs."""
    names = {"before": "as it is", "temperature": "with the temperature", "posterior": "with temperature and posterior"}
    ways = []
    for by, found in t["risk_coverage"].items():
        if found:
            surest = [f"{_accuracy_at(found['curve'], share):.3f}" for share in (0.5, 0.8, 1.0)]
            ways.append([BY[by], number(t["auroc_wrong"][by], ".3f"), f"{found['area']:.4f}", *surest])
    return {
        "temperature": number(t["temperature"], ".3f"),
        "pairs": f"{t['temperature_pairs']:,}",
        "calibration": [
            [names[kind], *(f"{c[key]:.4f}" for key in ("loss", "brier", "ece"))]
            for kind, c in t["calibration"].items()
            if c
        ],
        "ways": ways,
        "chance": f"{t['risk_coverage']['margin']['chance']:.4f}",
        "best": f"{t['risk_coverage']['margin']['best']:.4f}",
    }


def _accuracy_at(curve: list[dict], share: float) -> float:
    """Accuracy of the surest pairs, as many as this share of all or the next more."""
    return next(point["accuracy"] for point in curve if point["coverage"] >= share - 1e-9)


def _length(bias: dict) -> dict:
    rows = [
        ["accuracy at like length", controlled(bias["controlled"])],
        ["accuracy where the longer response is chosen", accuracy_of(bias["longer_chosen"])],
        ["accuracy where the shorter response is chosen", accuracy_of(bias["shorter_chosen"])],
        ["accuracy of always picking the longer", number(bias["always_longer"])],
        ["how often the model prefers the longer", number(bias["prefers_longer"])],
        ["rank correlation of score and length", number(bias["rank_correlation"], "+.3f")],
        ["the same within pairs", number(bias["rank_correlation_in_pairs"], "+.3f")],
        ["pairs of equal length", f"{bias['equal_length']:,}"],
    ]
    return {"unit": bias["unit"], "rows": rows}


def _pair(pair: dict) -> dict:
    """A quoted pair: long texts are cut, scores rounded."""
    prompt = pair["prompt"] if len(pair["prompt"]) <= QUOTE else "[...] " + pair["prompt"][-QUOTE:]
    sides = []
    for side in ("chosen", "rejected"):
        text = pair[side] if len(pair[side]) <= QUOTE else pair[side][:QUOTE] + " [...]"
        scores = {"score": f"{pair[f'score_{side}']:.3f}"}
        if f"against_score_{side}" in pair:
            scores["other"] = f"{pair[f'against_score_{side}']:.3f}"
        sides.append({"name": side, "text": text, **scores})
    return {"source": pair["source"], "subset": pair["subset"], "prompt": prompt, "sides": sides}
