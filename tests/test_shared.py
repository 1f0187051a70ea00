"""What test shares with training: exactly by digest, nearly by MinHash."""

import pytest

from rmkit.errors import UserError
from rmkit.inspection import shared
from rmkit.inspection.facts import digest_of
from support.planted import facts_of, pair

LONG = "please explain to me how the old water mill by the river was built and who paid for it in those days"
NEARLY = LONG + " exactly"
FAR = "write a poem about the sea and the wind that a child of seven could learn by heart in one afternoon"


def test_pairs_answers_and_prompts_are_counted_apart():
    train = facts_of([pair("p", "a", "b"), pair("q", "c", "d")])
    test = facts_of([pair("p", "b", "a"), pair("q", "c", "e"), pair("q", "f", "g"), pair("r", "a", "b")])
    found = shared.exact(train, test)
    assert [found[name] for name in ("pairs", "answers", "prompts", "test_pairs", "test_prompts")] == [1, 2, 2, 4, 3]


def near(train, test):
    prompts = {facts_of([each]).add(each): (each["source"], each["prompt"]) for each in test}
    answers = {digest_of(each[side]): (each["source"], each[side]) for each in test for side in ("chosen", "rejected")}
    found = shared.NearPairs(prompts, answers)
    for each in train:
        found.look(each, facts_of([each]).add(each))
    return found.measure()


def test_a_prompt_with_a_word_more_is_near_and_others_are_not():
    pytest.importorskip("datasketch")
    found = near(
        [pair(LONG, "a", "b", 7), pair(FAR, "a", "b", 8)], [pair(NEARLY, "a", "b", 1), pair("hi", "a", "b", 2)]
    )
    assert found["prompts"] == 1
    assert found["examples"] == ["x:1 is 95% x:7"]


def test_an_equal_prompt_is_not_counted_as_near():
    pytest.importorskip("datasketch")
    assert near([pair(LONG, "a", "b")], [pair(LONG, "c", "d")])["prompts"] == 0


def test_an_answer_under_a_reworded_prompt_is_near():
    pytest.importorskip("datasketch")
    train = [pair("tell me of the mill", LONG, "no", 7), pair("and the sea?", "yes", FAR, 8)]
    test = [pair("the mill?", NEARLY, "no", 1), pair("the sea?", "what", FAR, 2), pair("other", "no", "yes", 3)]
    found = near(train, test)
    assert (found["prompts"], found["answers"]) == (0, 2), "short answers are near to nothing"
    assert found["answer_examples"] == ["x:2 is 100% x:8", "x:1 is 95% x:7"]


def test_short_prompts_are_near_to_nothing():
    assert shared.shingles(pair("reverse abc", "a", "b")["prompt"]) == set()


def test_a_test_set_that_is_the_training_set_is_refused():
    facts = facts_of([pair("p", "a", "b"), pair("q", "c", "d")])
    with pytest.raises(UserError, match="nothing is held out"):
        shared.refuse_the_same(shared.exact(facts, facts), facts, facts)
