"""Pairing, thresholds and schemas, each against HALOs' table and its own words."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmkit.labelling import feedback as fb
from rmkit.labelling.samples import samples

RNG = np.random.default_rng(0)


def pairs(scores, pairing, threshold=0.0, seed=0):
    return list(fb.pairs_of(np.array(scores, np.float64), pairing, threshold, np.random.default_rng(seed)))


def test_max_takes_the_best_and_the_worst():
    assert pairs([1.0, 3.0, -2.0, 0.0], "max") == [(1, 2)]


def test_a_gap_must_exceed_the_threshold():
    for pairing in ("max", "random", "all"):
        assert pairs([1.0, 3.0], pairing, 2.0) == []
        assert pairs([1.0, 3.0], pairing, 1.9) == [(1, 0)]
    assert pairs([1.0, 3.0], "min", 2.0) == [], "min too skips a prompt whose widest gap does not exceed it"


def test_min_takes_the_smallest_gap_that_reaches_the_threshold():
    assert pairs([0.0, 1.0, 1.5, 4.0], "min", 0.0) == [(2, 1)]
    assert pairs([0.0, 1.0, 1.5, 4.0], "min", 1.0) == [(1, 0)]
    assert pairs([0.0, 1.0, 2.0], "min", 0.5) == [(1, 0), (2, 1)], "equal smallest gaps are all kept"


def test_min_with_threshold_0_pairs_no_sample_with_itself_nor_with_its_equal():
    """HALOs: mode min with threshold 0 pairs a sample with itself."""
    assert pairs([1.0, 1.0, 5.0], "min", 0.0) == [(2, 0), (2, 1)]
    assert pairs([1.0, 1.0], "min", 0.0) == []
    assert pairs([1.0], "min", 0.0) == []


def test_random_pairs_neighbours_and_leaves_an_odd_one_out():
    scores = RNG.normal(size=7)
    found = pairs(scores, "random")
    assert len(found) == 3
    assert len(set(itertools.chain(*found))) == 6
    assert found == pairs(scores, "random")
    assert len({tuple(pairs(scores, "random", seed=seed)) for seed in range(8)}) > 1


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]) | st.floats(-3, 3, width=32), max_size=7),
    threshold=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_every_pairing_by_its_definition(scores, threshold):
    gaps = {(i, j): a - b for (i, a), (j, b) in itertools.permutations(enumerate(scores), 2) if a > b}
    over = {pair for pair, gap in gaps.items() if gap > threshold}
    assert set(pairs(scores, "all", threshold)) == over
    assert set(pairs(scores, "random", threshold)) <= over
    widest = max(gaps.values(), default=0.0)
    (best,) = pairs(scores, "max", threshold) or [None]
    assert (best is not None) == (widest > threshold)
    assert best is None or gaps[best] == widest
    wide = {pair: gap for pair, gap in gaps.items() if gap >= threshold}
    closest = {p for p, gap in wide.items() if gap <= min(wide.values()) + fb.TIE} if widest > threshold else set()
    assert set(pairs(scores, "min", threshold)) == closest


def test_threshold_of_binary():
    scores = np.array([1.0, np.nan, 2.0, 6.0], np.float32)
    assert fb.bar(fb.number_of(None, "binary"), scores) == 2.0
    assert fb.bar(fb.number_of("median", "binary"), scores) == 2.0
    assert fb.bar(fb.number_of("mean", "binary"), scores) == 3.0
    assert fb.bar(fb.number_of("-0.5", "binary"), scores) == -0.5, "HALOs refuses a float that its help offers"
    assert fb.number_of(None, "pairwise") == 0.0


@pytest.mark.parametrize(
    ("threshold", "feedback"),
    [("median", "pairwise"), ("mean", "pairwise"), ("-1", "pairwise"), ("x", "binary"), ("nan", "binary")]
    + [("inf", "pairwise"), ("1", "scalar"), ("median", "best")],
)
def test_a_threshold_without_a_meaning_is_refused(threshold, feedback):
    """HALOs: pairwise with its default threshold "median" crashes after all is scored."""
    with pytest.raises(ValueError, match=f"--threshold {threshold}"):
        fb.number_of(threshold, feedback)


PROMPT = [{"role": "user", "content": "q"}]


def sample(output="a", **more):
    row = {"output": output, "prompt": PROMPT, "generator": "m", "dataset": "d", "prompt_id": 3, "sample_id": 1}
    return samples({**row, "type": "sample", **more})[0]


def said(content):
    return [{"role": "assistant", "content": content}]


def test_halos_scalar():
    assert fb.scalar(sample(temperature=0.7), 1.5, "halos") == {
        "output": said("a"),
        "prompt": PROMPT,
        "generator": "m",
        "dataset": "d",
        "prompt_id": 3,
        "sample_id": 1,
        "type": "scalar_feedback",
        "temperature": 0.7,
        "reward": 1.5,
    }


def test_halos_binary():
    wanted = {"prompt_id": 3, "prompt": PROMPT, "output": said("a"), "label": 1, "reward": 1.5}
    wanted |= {"type": "binary_feedback", "sample_id": 1, "generator": "m", "dataset": "d"}
    assert fb.binary(sample(), 1.5, 1.5, "halos") == wanted
    assert fb.binary(sample(), 1.4, 1.5, "halos")["label"] == 0


@pytest.mark.parametrize("swap", [True, False])
def test_halos_pairwise(swap):
    better, worse = (sample("good"), 2.0), (sample("bad", sample_id=0, generator="n"), -1.0)
    a, b = ("bad", "good") if swap else ("good", "bad")
    assert fb.pairwise(better, worse, swap, "halos") == {
        "prompt_id": 3,
        "prompt": PROMPT,
        "output_A": said(a),
        "output_B": said(b),
        "label": int(not swap),
        "reward_A": -1.0 if swap else 2.0,
        "reward_B": 2.0 if swap else -1.0,
        "reward_difference": 3.0,
        "type": "pairwise_feedback",
        "sample_id_A": int(not swap),
        "generator_A": "n" if swap else "m",
        "sample_id_B": int(swap),
        "generator_B": "m" if swap else "n",
        "dataset": "d",
    }


@pytest.mark.parametrize("form", ["trl", "openrlhf"])
def test_other_schemas(form):
    assert fb.pairwise((sample("x"), 2.0), (sample("y"), 1.0), True, form) == {
        "prompt": PROMPT,
        "chosen": said("x"),
        "rejected": said("y"),
        "score_chosen": 2.0,
        "score_rejected": 1.0,
    }
    response = "completion" if form == "trl" else "output"
    assert fb.binary(sample(), 1.0, 0.0, form) == {"prompt": PROMPT, response: said("a"), "label": 1, "score": 1.0}
    assert fb.best(sample(), 1.0, 4, form) == {"prompt": PROMPT, response: said("a"), "score": 1.0, "n": 4}


def test_best_is_scalar_feedback_with_the_count():
    assert fb.best(sample(), 1.5, 4, "halos") == {**fb.scalar(sample(), 1.5, "halos"), "n": 4}


def test_a_prompt_without_an_id_gets_its_sha256():
    named = fb.prompt_id(samples({"prompt": "q", "output": "a"})[0])
    assert named == fb.prompt_id(samples({"prompt": PROMPT, "output": "b"})[0])
    assert len(named) == 64
    assert fb.prompt_id(sample(prompt_id=0)) == 0
