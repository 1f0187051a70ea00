"""Runs on one page: the same pairs found by their digests, only what differs, nothing of others overwritten."""

import json

import numpy as np
import pytest

from rmkit.errors import UserError
from rmkit.pages import comparison, heldout
from rmkit.pages.folder import opened
from rmkit.pages.verdicts import mcnemar
from support.page_reader import EVIL, read, text_of
from support.run_of import held_out, write_run


@pytest.fixture
def two(tmp_path):
    return [opened(write_run(tmp_path, name, seed=seed, lr=lr)) for name, seed, lr in (("a", 1, 1e-3), ("b", 2, 2e-3))]


def test_mcnemar_is_of_the_pairs_that_both_runs_have(two):
    a, b = (run.held_out for run in two)
    known = mcnemar(a.margin > 0, b.margin > 0)
    found = comparison.tested(*two)
    assert (found["pairs"], found["p_value"]) == ("40", f"{known['p_value']:.3g}")
    assert found["alone"] == (str(known["only_first_right"]), str(known["only_second_right"]))
    assert found["difference"].startswith(f"{known['accuracy_difference']:+.4f} (")
    assert f"p = {known['p_value']:.3g}" in text_of(comparison.page(two))


def test_pairs_are_found_wherever_they_stand(two, tmp_path):
    """The second run had them in another order, and others besides."""
    run = two[1].path
    rows = [json.loads(line) for line in (run / heldout.NAME).read_text().splitlines()]
    others = [{**row, "pair": f"other {i}"} for i, row in enumerate(rows[:5])]
    mixed = np.random.default_rng(0).permutation(len(rows)).tolist()
    moved = [*others, *(rows[i] for i in mixed)]
    (run / heldout.NAME).write_text("".join(json.dumps(row) + "\n" for row in moved))
    assert comparison.tested(two[0], opened(run)) == comparison.tested(*two)


def test_without_pairs_in_common_nothing_is_tested(two):
    other = held_out(two[0].held_out.scores, 3, "x")
    heldout.write(two[0].path, heldout.HeldOut(**{**vars_of(other), "pair": [f"new {i}" for i in range(40)]}))
    assert "no held-out pair in common" in comparison.tested(opened(two[0].path), two[1])["problem"]
    (two[1].path / heldout.NAME).unlink()
    runs = [two[0], opened(two[1].path)]
    assert comparison.tested(*runs)["problem"] == "b has no heldout.jsonl"
    assert "Not tested: b has no heldout.jsonl" in text_of(comparison.page(runs))


def vars_of(held):
    return {name: getattr(held, name) for name in ("step", "pair", "source", "scores", "tokens", "texts")}


def test_interval_of_the_difference():
    """Agresti and Min's example of paired shares (2005, table 1): 0.0 and n = 10 pairs are not sure of anything."""
    low, high = comparison._difference({"only_first_right": 5, "only_second_right": 5}, 10)
    assert low == pytest.approx(-high)
    low, high = comparison._difference({"only_first_right": 150, "only_second_right": 86}, 1600)
    assert (low, high) == pytest.approx((0.0212, 0.0586), abs=3e-4), "the prime minister's approval: 0.04 of 1,600"
    assert 0 < comparison._difference({"only_first_right": 0, "only_second_right": 0}, 10)[1] < 0.2


def test_page_tells_only_what_differs(two):
    text = text_of(comparison.page(two))
    assert "--seed 1 2 --optim.lr 0.001 0.002" in text
    assert "--batch.pairs" not in text
    assert "step" in text
    for words in ("Held-out accuracy", "Training loss", "Gradient norm", "Learning rate", "Speed"):
        assert words in text


def test_runs_of_other_batches_are_drawn_over_pairs_seen(two, tmp_path):
    third = opened(write_run(tmp_path, "c", batch=16))
    text = text_of(comparison.page([*two, third]))
    assert "pairs seen in training" in text
    assert text.count(" against ") == 3
    assert "With 3 tests" in text


def test_page_is_whole_and_names_are_text(tmp_path):
    hostile = EVIL.replace("/", "\u2044")
    page = comparison.page([opened(write_run(tmp_path, name, text=EVIL)) for name in ("a", hostile)])
    reader = read(page)
    assert "script" not in reader.tags
    assert reader.addresses == []
    assert any(hostile in words for words in reader.words)
    for elsewhere in ("url(", "@import"):
        assert elsewhere not in page


def test_only_our_own_page_is_overwritten(two, tmp_path):
    file = tmp_path / "new" / "page.html"
    comparison.write(two, file)
    comparison.write(two, file)
    assert comparison.is_ours(file)
    for other in ("<html>mine</html>", "", '<p>rmkit runs</p><meta name="generator" content="rmkit train">'):
        file.write_text(other)
        with pytest.raises(UserError, match="is no comparison of runs; give another file"):
            comparison.write(two, file)
        assert file.read_text() == other
    with pytest.raises(UserError):
        comparison.write(two, tmp_path / "new")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        comparison.write(two, tmp_path / "file" / "page.html")
