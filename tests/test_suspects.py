"""Suspects among pairs with planted labels, and the rows that are kept of them."""

import numpy as np
import pytest

from rmkit.errors import UserError
from rmkit.inspection import report, suspects
from rmkit.inspection.reading import Sample
from support.planted import facts_of, features, pair


def sampled(n, **more):
    pairs = [pair(f"p{i}", f"a{i}", f"b{i}", i, **more) for i in range(n)]
    facts, sample = facts_of(pairs), Sample(most=0)
    for i, each in enumerate(pairs):
        sample.add(int(facts["prompt"][i]), i, each)
    return sample, facts


def judged(n=400, hidden=10, noise=0.1, asked=None, x=None, **more):
    sample, facts = sampled(n, **more)
    planted, flipped = features(n, hidden, noise, 0)
    x = planted if x is None else x
    return suspects.judge(sample, facts, np.arange(n), x, 0, asked), sample, flipped


def test_planted_flips_are_the_suspects():
    found, sample, flipped = judged()
    assert len(found.suspects) == pytest.approx(flipped.sum(), abs=8)
    assert flipped[found.suspects].mean() > 0.9
    rows = suspects.rows_of(found, sample)
    assert [row["source"] for row in rows] == [f"x:{i}" for i in found.suspects]
    assert rows[0]["probability"] == min(row["probability"] for row in rows)
    assert rows[0]["label_is_right"] < 0.1
    assert not found.found["blind"]
    assert found.found["noise"]["at_most"] > flipped.mean()


def weak(n: int, seed: int) -> np.ndarray:
    """Clean features, of which a head is right on about two in three."""
    x = np.random.default_rng(seed).normal(size=(n, 10))
    x[:, 0] += 0.4
    return x


def test_clean_labels_and_a_strong_head_give_no_suspects():
    found = judged(noise=0.0)[0]
    assert found.found["noise"]["none_found"]
    assert not found.found["blind"]
    assert len(found.suspects) == 0
    assert "none found (under 0.1%" in report.noises(found.found["noise"])


@pytest.mark.parametrize("seed", range(6))
def test_clean_labels_and_a_weak_head_never_give_one_that_is_more_likely_right(seed):
    found = judged(n=800, x=weak(800, seed))[0]
    assert not found.found["blind"]
    assert (found.is_right[found.suspects] < 0.5).all()
    assert len(found.suspects) <= found.found["noise"]["mixture"]["share"] * 800


def test_a_share_that_the_margins_do_not_bear_out_is_not_filled_up(monkeypatch):
    # 20 % estimated beside margins of which none is likely wrong: s is so large that a margin says nothing.
    monkeypatch.setattr(suspects.noise, "mixture", lambda margin: (0.2, 1e-6, 1e3))
    assert len(judged()[0].suspects) == 0


@pytest.mark.parametrize("x", [None, weak(400, 0)])
def test_suspects_that_were_asked_for_weigh_what_the_head_says_of_them(x):
    found, sample, _ = judged(noise=0.0, asked=30, x=x)
    rows = suspects.rows_of(found, sample)
    assert len(rows) == 30
    assert [row["label_is_right"] for row in rows] == [row["probability"] for row in rows]
    kept = suspects.kept_rows(found, sample, sample.pairs, "weight")
    assert sorted(row["weight"] for row in kept if "weight" in row) == [row["probability"] for row in rows]
    if x is not None:  # the mixture's prior of 0.1 % would have made these 0.99
        assert max(row["label_is_right"] for row in rows) < 0.5


def test_a_head_that_is_a_coin_suspects_nobody_unless_asked():
    x = np.random.default_rng(0).normal(size=(200, 10))
    assert len(judged(200, x=x)[0].suspects) == 0
    found = judged(200, x=x, asked=12)[0]
    assert found.found["blind"]
    assert len(found.suspects) == 12


def test_a_target_below_a_half_turns_the_features():
    found, _, flipped = judged(target=0.2, x=-features(400, 10, 0.1, 0)[0])
    assert flipped[found.suspects].mean() > 0.9


def test_ties_are_not_judged():
    sample, facts = sampled(60, target=0.5)
    with pytest.raises(suspects.TooFew, match="0 pairs with a preferred side, on 0 prompts"):
        suspects.judge(sample, facts, np.arange(60), np.ones((60, 3)), 0)


@pytest.mark.parametrize(("x", "said"), [(np.zeros((40, 3)), "are the same"), (np.full((40, 3), np.nan), "not finite")])
def test_features_that_tell_nothing_are_a_sentence(x, said):
    sample, facts = sampled(40)
    with pytest.raises(UserError, match=said):
        suspects.judge(sample, facts, np.arange(40), x, 0)


def test_kept_rows_leave_suspects_out_or_weigh_them():
    found, sample, _ = judged(60, asked=5, weight=2.0, subset="s", id="i")
    of = dict(zip(found.at[found.suspects].tolist(), found.is_right[found.suspects].tolist(), strict=True))
    kept = {
        write: list(suspects.kept_rows(found, sample, sample.pairs, write)) for write in ("drop", "weight", "target")
    }
    assert [len(rows) for rows in kept.values()] == [55, 60, 60]
    assert {i: row["weight"] for i, row in enumerate(kept["weight"]) if row["weight"] != 2.0} == {
        i: 2.0 * p for i, p in of.items()
    }
    assert {i: row["target"] for i, row in enumerate(kept["target"]) if "target" in row} == of
    assert kept["drop"][0].keys() == {"prompt", "chosen", "rejected", "weight", "subset", "id"}


def test_tools_stay_with_their_row():
    assert suspects.row_of(pair("p", "a", "b", options={"tools": [{"x": 1}]}))["tools"] == [{"x": 1}]
