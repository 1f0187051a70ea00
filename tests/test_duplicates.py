"""Repeated, contradictory and circular pairs, planted."""

from rmkit.inspection.duplicates import measure
from support.planted import facts_of, pair


def measured(*edges, **more):
    return measure(facts_of([pair("p", a, b, i, **more) for i, (a, b) in enumerate(edges)]))


def test_nothing_is_found_where_nothing_is():
    found = measured("ab", "bc", "ac", "cd")
    assert [found[kind]["pairs"] for kind in ("repeated", "contradictory", "cycles")] == [0, 0, 0]
    assert found["prompts"] == 1
    assert found["most_pairs_on_a_prompt"] == 4


def test_a_repeated_pair_names_the_first_of_its_kind():
    found = measured("ab", "cd", "ab", "ab")["repeated"]
    assert (found["pairs"], found["most_times"]) == (2, 3)
    assert found["examples"] == ["x:2 repeats x:0", "x:3 repeats x:0"]


def test_a_contradiction_is_both_directions_on_one_prompt():
    found = measured("ab", "ab", "ba", "cd")["contradictory"]
    assert (found["pairs"], found["examples"]) == (3, ["x:0 against x:2"])
    other_prompt = [pair("p", "a", "b"), pair("q", "b", "a")]
    assert measure(facts_of(other_prompt))["contradictory"]["pairs"] == 0


def test_a_contradiction_alone_is_no_cycle_but_may_lie_on_one():
    assert measured("ab", "ba", "bc", "cb")["cycles"]["pairs"] == 0
    found = measured("ab", "ba", "bc", "ca")["cycles"]
    assert (found["pairs"], found["examples"]) == (3, ["x:0 > x:2 > x:3"])


def test_cycles_of_any_length_are_found_and_their_tails_are_not():
    found = measured("ab", "bc", "cd", "da", "xa", "dy")["cycles"]
    assert (found["pairs"], found["prompts"]) == (4, 1)
    assert found["examples"] == ["x:0 > x:1 > x:2 > x:3"]


def test_a_target_below_a_half_turns_a_pair_and_a_tie_has_no_direction():
    pairs = [pair("p", "a", "b"), pair("p", "a", "b", 1, target=0.2), pair("p", "b", "a", 2, target=0.5)]
    found = measure(facts_of(pairs))
    assert found["contradictory"]["pairs"] == 2
    assert found["ties"] == 1


def test_tools_make_another_prompt():
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    pairs = [pair("p", "a", "b"), pair("p", "b", "a", 1, options=tools)]
    assert measure(facts_of(pairs))["contradictory"]["pairs"] == 0
