"""Digests that tell pairs apart, and the numbers that are kept of each."""

import numpy as np

from rmkit.inspection.facts import digest_of, mixed
from support.planted import facts_of, pair


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def test_digests_tell_roles_texts_borders_and_tools_apart():
    plain = [message("user", "ab")]
    lists = [
        plain,
        [message("user", "a"), message("user", "b")],
        [message("system", "ab")],
        [message("user", "ab", name="x")],
        [message("user", "ab "), message("assistant", "")],
    ]
    digests = [digest_of(each) for each in lists] + [digest_of(plain, {"tools": [{"a": 1}]})]
    assert len(set(digests)) == len(digests)
    assert digest_of(plain) == digest_of([message("user", "ab")])


def test_mixed_is_equal_only_where_all_columns_are():
    a, b = np.array([1, 1, 2, 1]), np.array([5, 6, 5, 5])
    found = mixed(a, b)
    assert found[0] == found[3]
    assert len(set(found.tolist())) == 3
    assert (mixed(a, b) != mixed(b, a)).all()


def test_what_is_kept_of_a_pair():
    facts = facts_of([pair("p", "- a\n* b\n1. c", "x - y", 3, subset="s", target=0.3), pair("q", "ab", "", 4)])
    held = {name: facts[name].tolist() for name in ("lists_chosen", "lists_rejected", "preferred", "turns")}
    assert held == {"lists_chosen": [3, 0], "lists_rejected": [0, 0], "preferred": [-1, 1], "turns": [2, 2]}
    assert facts["characters_chosen"].tolist() == [12, 2]
    assert facts.subsets.list == ["s", ""]
    assert facts.places([0, 1]) == ["x:3", "x:4"]
