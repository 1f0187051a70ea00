"""metrics.jsonl as columns: read in pieces, past what is spoiled."""

import json
import math

import numpy as np
import pytest

from rmkit.pages.curves import POINTS, Curves, counted, thinned
from support.run_of import PAIRS, evaluation, of_step, write_run


def test_columns_are_those_of_the_file(tmp_path):
    run = write_run(tmp_path, "r")
    curves = Curves(run / "metrics.jsonl").read()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert curves["loss/train"].tolist() == [row["loss/train"] for row in rows if "loss/train" in row]
    assert [e["rewards_eval/accuracies"] for e in curves.evaluations] == [
        row["rewards_eval/accuracies"] for row in rows if "loss/eval" in row
    ]
    assert np.isnan(curves["memory/peak_gib"]).all()
    assert (curves.steps, curves.broken, curves.cut) == (30, 0, False)
    assert curves.saved == pytest.approx(0.75)
    assert curves.seconds == pytest.approx(30 * 8 / 16 + 4 * 2.0)
    best = curves.best()
    assert best["rewards_eval/accuracies"] == max(e["rewards_eval/accuracies"] for e in curves.evaluations)


def test_a_file_that_grows_is_read_on_from_its_last_whole_line(tmp_path):
    file, rng = tmp_path / "metrics.jsonl", np.random.default_rng(0)
    lines = [json.dumps(of_step(step, step, 1e-3, rng)) + "\n" for step in range(1, 5)]
    file.write_text(lines[0] + lines[1][:20])
    curves = Curves(file).read()
    assert (len(curves["loss/train"]), curves.cut, curves.broken) == (1, True, 0)
    file.write_text("".join(lines))
    assert len(curves.read()["loss/train"]) == 4
    assert not curves.cut
    assert len(curves.read()["loss/train"]) == 4


@pytest.mark.parametrize(
    "spoiled",
    [
        *('{"loss/train": 1', "[1, 2]", "7", "null", '{"loss/train": 1}', '{"counters/updates": "3", "loss/train": 1}'),
        *('{"counters/updates": 3}', '{"counters/updates": -1, "loss/train": 1}', "\ufffd\0", "[" * 3000),
        '{"counters/updates": 3, "loss/train": 1' + "0" * 400 + "}",
    ],
)
def test_spoiled_lines_are_counted_and_left_out(tmp_path, spoiled):
    file = tmp_path / "metrics.jsonl"
    whole = json.dumps(of_step(1, 8, 1e-3, np.random.default_rng(0)))
    file.write_text(f"{whole}\n{spoiled}\n\n{whole}\n")
    curves = Curves(file).read()
    assert (len(curves["loss/train"]), curves.broken) == (2, 1)


def test_what_is_no_number_is_a_gap(tmp_path):
    row = of_step(1, 8, 1e-3, np.random.default_rng(0)) | {"loss/train": "low", "grad_norm": True, "tokens/mfu": None}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**row, "loss/train": math.nan, "grad_norm": "x"}) + "\n")
    curves = Curves(tmp_path / "metrics.jsonl").read()
    assert math.isnan(curves["loss/train"][0])
    assert math.isnan(curves["grad_norm"][0])


def test_counts_of_an_evaluation():
    assert counted(evaluation(1, 8, np.array([1.0] * 30 + [-1.0] * 10))) == (30, PAIRS)
    for other in ({}, {"rewards_eval/accuracies": 0.5}, {"rewards_eval/accuracies": math.nan, "pairs": 3.0}):
        assert counted(other) is None


def test_a_long_curve_keeps_its_mean_and_its_extremes():
    x, y = np.arange(100_000.0), np.random.default_rng(0).normal(size=100_000)
    y[777] = math.inf
    points = thinned(x, y)
    assert len(points) == POINTS
    kept = y[np.isfinite(y)]
    assert min(low for *_, low, _ in points) == kept.min()
    assert max(high for *_, high in points) == kept.max()
    assert np.mean([mean for _, mean, *_ in points]) == pytest.approx(kept.mean(), abs=1e-4)
    assert thinned(x[:3], y[:3]) == [(i, y[i], y[i], y[i]) for i in range(3)]
    assert thinned(x[:0], y[:0]) == thinned(x[:2], np.full(2, math.nan)) == []
