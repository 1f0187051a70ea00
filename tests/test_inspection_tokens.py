"""Tokens under each layout, against counting them by hand."""

import pytest

from rmkit.data import demo
from rmkit.inspection import tokens
from rmkit.inspection.reading import Sample
from support.planted import facts_of, pair


def sample_of(pairs):
    facts, sample = facts_of(pairs), Sample(most=0)
    for i, each in enumerate(pairs):
        sample.add(int(facts["prompt"][i]), i, each)
    return sample


def test_flat_trie_and_padded_of_one_pair_scaled_to_all():
    # <s> <user> p p <assistant> = 5 tokens are shared, then the answer and </s>
    found = tokens.measure(sample_of([pair("pp", "abcd", "x")]), 10, demo.tokenizer(), "demo", 64, lambda text: None)
    assert [found[name] for name in ("flat", "trie", "padded")] == pytest.approx([170, 120, 200])
    assert found["saved_against_flat"] == pytest.approx(1 - 120 / 170)
    assert (found["sequence_quantiles"]["min"], found["sequence_quantiles"]["max"]) == (7, 10)
    assert found["cut_pairs"] == 0


def test_pairs_that_share_a_prompt_share_it_in_the_trie_too():
    one = tokens.measure(sample_of([pair("pppp", "a", "b")]), 2, demo.tokenizer(), "demo", 64, lambda text: None)
    two = [pair("pppp", "a", "b"), pair("pppp", "c", "d", 1)]
    found = tokens.measure(sample_of(two), 2, demo.tokenizer(), "demo", 64, lambda text: None)
    assert found["flat"] == one["flat"]
    assert found["trie"] < one["trie"]


def test_long_pairs_are_cut_and_counted():
    found = tokens.measure(sample_of([pair("p" * 90, "a", "b")]), 1, demo.tokenizer(), "demo", 20, lambda text: None)
    assert (found["cut_pairs"], found["sequence_quantiles"]["max"]) == (1, 20)
