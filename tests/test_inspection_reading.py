"""Pairs read in a stream: every row accounted for, and a sample of whole prompts whatever their order."""

import random

import numpy as np

from rmkit.inspection.reading import Sample, again
from support.planted import pair, read_of, row, written


def test_every_row_is_counted_and_rated_responses_stand_apart(tmp_path):
    rows = [row("p", "a", "b"), row("p", "a", "a"), row("p", "", "b"), {"prompt": 3}]
    read = read_of(written(tmp_path / "x.jsonl", rows))
    counts = read.counts.as_dict()
    assert counts["rows"] == 4
    assert counts["rows_dropped"] == {"bad rows": 1}
    assert counts["pairs_dropped"] == {"empty response": 1, "identical chosen and rejected": 1}
    assert len(read.facts) == counts["pairs_kept"] == 1
    assert read.facts.place(0) == f"{tmp_path}/x.jsonl:1"


def test_a_sample_holds_whole_prompts_and_does_not_depend_on_the_order():
    pairs = [(digest, i) for i, digest in enumerate(np.random.default_rng(0).integers(0, 400, 2000).tolist())]

    def sampled(seed):
        sample, order = Sample(most=300), pairs[:]
        random.Random(seed).shuffle(order)
        for digest, i in order:
            sample.add(digest, i, pair(str(digest), "a", "b"))
        sample.cut()
        return sample

    one, other = sampled(1), sampled(2)
    assert sorted(one.rows) == sorted(other.rows)
    assert 280 < len(one.rows) <= 300
    kept = set(one.digests)
    assert sorted(one.rows) == [i for digest, i in pairs if digest in kept]


def test_a_sample_smaller_than_one_prompt_holds_that_prompt():
    sample = Sample(most=2)
    for i in range(10):
        sample.add(7, i, pair("p", "a", "b"))
    sample.cut()
    assert len(sample.rows) == 10


def test_again_gives_the_same_pairs_in_the_same_order(tmp_path):
    file = written(tmp_path / "x.jsonl", [row(f"p{i}", "a", "b") for i in range(9)] + [row("p", "a", "a")])
    read = read_of(file)
    assert list(again((str(file),), "train", (), "drop")) == read.sample.pairs
