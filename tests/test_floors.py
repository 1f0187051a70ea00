"""Floors with a known answer."""

import random

import numpy as np
import pytest

from rmkit.inspection import floors
from rmkit.inspection.reading import Sample
from support.planted import facts_of, pair

RNG = random.Random(0)
WORDS = ["".join(RNG.choices("abcdefgh", k=5)) for _ in range(60)]


def some(n: int) -> str:
    return " ".join(RNG.choices(WORDS, k=n))


def measured(pairs):
    facts, sample = facts_of(pairs), Sample(most=0)
    for i, each in enumerate(pairs):
        sample.add(int(facts["prompt"][i]), i, each)
    return floors.measure(facts, sample, 0)


def test_one_telling_word_makes_the_bag_of_words_right_on_every_pair():
    found = measured([pair(f"p{i}", some(6) + " sorry", some(7), i) for i in range(120)])
    assert found["bag of words"]["accuracy"] == 1.0
    assert found["bag of words"]["low"] > 0.95
    assert found["longer wins"]["accuracy"] < 0.9


def test_words_without_meaning_are_a_coin():
    found = measured([pair(f"p{i}", some(6), some(6), i) for i in range(200)])
    assert 0.35 < found["bag of words"]["accuracy"] < 0.65


def test_longer_and_lists_count_equal_sides_as_half_and_follow_the_target():
    pairs = [
        pair("p", "long one", "b"),
        pair("q", "b", "long one"),
        pair("r", "bb", "aa"),
        pair("s", "- a\n- b", "abcdefg"),
    ]
    found = measured(pairs)
    assert found["longer wins"]["accuracy"] == (1 + 0 + 0.5 + 0.5) / 4
    assert found["more lists wins"]["accuracy"] == (0.5 + 0.5 + 0.5 + 1) / 4
    assert found["bag of words"] is None
    turned = measured([pair("p", "long one", "b", target=0.1), pair("q", "b", "long one", target=0.5)])
    assert turned["longer wins"] == {"pairs": 1, "accuracy": 0.0} | {
        k: turned["longer wins"][k] for k in ("low", "high")
    }


def test_a_set_of_ties_has_no_floor():
    found = measured([pair("p", "a", "b", target=0.5)])
    assert set(found.values()) == {None}


def test_an_interval_widens_where_pairs_share_prompts():
    values = np.tile([1.0, 0.0, 1.0, 1.0], 25)
    alone = floors.share(values, np.arange(100))
    together = floors.share(np.sort(values), np.arange(100) // 25)
    assert alone["accuracy"] == together["accuracy"] == 0.75
    assert alone["high"] - alone["low"] == pytest.approx(0.169, abs=0.01)
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])
    assert floors.share(np.ones(40), np.arange(40))["low"] == pytest.approx(0.912, abs=0.001)  # Wilson's


def test_differences_are_of_log_counts_of_words_that_are_not_rare():
    pairs = [pair("p", "a a b", "a c", 0), pair("q", "a rare", "b c", 1), pair("r", "b c", "a", 2)]
    matrix, words = floors.differences(pairs)
    assert sorted(words) == ["a", "b", "c"]
    assert words[0] == "a"  # the most common first
    at = {word: matrix.toarray()[:, i] for i, word in enumerate(words)}
    one, two = np.log(2), np.log(3) - np.log(2)
    np.testing.assert_allclose(at["a"], [two, one, -one], rtol=1e-6)
    np.testing.assert_allclose(at["c"], [-one, -one, one], rtol=1e-6)
