import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmkit.batch.lengths import Counts, count, joined, measure
from rmkit.batch.trie import common_prefix, pack
from support.oracle import trie_tokens

LAYOUTS = ("trie", "packed", "padded")
# So few tokens that prefixes, duplicates and sequences that begin with another one are common.
SEQUENCE = st.lists(st.integers(3, 5), min_size=1, max_size=6)


@st.composite
def data(draw, width=None):
    """W columns of N sequences and their groups; the sequences of a group need not share anything."""
    width = width or draw(st.sampled_from((1, 2)))
    group = draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    columns = [[np.array(draw(SEQUENCE), np.int32) for _ in group] for _ in range(width)]
    return columns, np.array(group, np.int64)


def length_of(columns):
    return np.array([[len(s) for s in column] for column in columns]).T


def prefixes(sequences):
    """Each stored token of a trie is one distinct prefix, and sees as many keys as that is long."""
    return {tuple(s[: n + 1].tolist()) for s in sequences for n in range(len(s))}


def in_part(columns, items):
    return [column[i] for i in items for column in columns]


@settings(max_examples=300, deadline=None)
@given(data(), st.randoms(use_true_random=False), st.integers(1, 3))
def test_the_trie_of_any_part_of_a_group_is_counted_from_lengths_alone(drawn, random, pieces):
    columns, group = drawn
    lengths = measure(columns, length_of(columns), group)
    items = np.array(random.sample(range(len(group)), random.randint(1, len(group))))
    part = np.unique([3 * group[i] + random.randrange(pieces) for i in items], return_inverse=True)[1]
    counts = count(lengths, items, part, part.max() + 1, "trie")
    for p in range(part.max() + 1):
        sequences = in_part(columns, items[part == p].tolist())
        stored = prefixes(sequences)
        assert counts.tokens[p] == len(stored) == trie_tokens(sequences) == pack(sequences).tokens
        assert counts.keys[p] == sum(map(len, stored))
        assert counts.sequences[p] == len(sequences)
        assert counts.ends[p] == len({tuple(s) for s in sequences}) == len(pack(sequences).ends.rows)
        assert counts.longest[p] == max(map(len, sequences))
    everything = [pack(in_part(columns, items.tolist()), layout="trie").tokens]
    assert joined(counts, np.zeros_like(counts.tokens), 1, "trie").tokens >= everything


@settings(max_examples=100, deadline=None)
@given(data(), st.sampled_from(("packed", "padded")))
def test_other_layouts_are_counted_exactly_in_parts_and_in_batches_of_parts(drawn, layout):
    columns, group = drawn
    lengths = measure(columns, length_of(columns), group)
    part = np.unique(group, return_inverse=True)[1]
    counts = count(lengths, np.arange(len(group)), part, part.max() + 1, layout)
    batch = np.arange(len(counts.tokens)) % 2
    batches = joined(counts, batch, 3, layout)
    for found, of in ((counts, part), (batches, batch[part])):
        for p in range(of.max() + 1):
            sequences = in_part(columns, np.flatnonzero(of == p).tolist())
            computed = [max(map(len, sequences)) if layout == "padded" else len(s) for s in sequences]
            assert found.tokens[p] == sum(computed) == pack(sequences, layout=layout).tokens
            assert found.keys[p] == sum(n * (n + 1) // 2 for n in computed)
            assert found.ends[p] == (0 if layout == "padded" else len(sequences))
    assert batches.tokens[2] == batches.keys[2] == 0


@settings(max_examples=100, deadline=None)
@given(data(width=2))
def test_what_a_pair_is_known_to_share_gives_the_same_counts_and_its_tokens_are_not_read(drawn):
    columns, group = drawn
    wanted = measure(columns, length_of(columns), group)
    shared = np.array([common_prefix(a, b) for a, b in zip(*columns, strict=True)])
    several = np.bincount(group)[group] > 1
    hidden = [[s if read else None for s, read in zip(column, several, strict=True)] for column in columns]
    found = measure(hidden, length_of(columns), group, shared)
    items = np.arange(len(group))
    for of in (items, np.unique(group, return_inverse=True)[1]):
        for layout in LAYOUTS:
            a, b = (vars(count(lengths, items, of, of.max() + 1, layout)) for lengths in (found, wanted))
            assert all(np.array_equal(a[name], b[name]) for name in a)


def test_an_example_by_hand():
    """A dialogue and its continuation, a duplicate, and a prompt of its own."""
    columns = [
        [np.array(s) for s in ([1, 2, 3], [9], [1, 2, 3])],
        [np.array(s) for s in ([1, 2, 3, 4], [9, 9], [1, 5])],
    ]
    lengths = measure(columns, length_of(columns), np.array([4, 7, 4]))
    assert lengths.length.tolist() == [3, 3, 4, 2, 1, 2]
    assert lengths.prefix.tolist() == [0, 3, 3, 1, 0, 1]
    assert sorted(lengths.place.ravel().tolist()) == list(range(6))
    counts = count(lengths, np.arange(3), np.array([0, 1, 0]), 2, "trie")
    assert counts.tokens.tolist() == [5, 2]
    assert counts.keys.tolist() == [1 + 2 + 3 + 4 + 2, 1 + 2]
    assert counts.load(0.5).tolist() == [11.0, 3.5]
    apart = count(lengths, np.array([2, 0]), np.array([0, 1]), 2, "trie")
    assert apart.tokens.tolist() == [4, 4]


def test_arrays_are_small():
    columns = [[np.array([1, 2])] * 50, [np.array([1, 3])] * 50]
    lengths = measure(columns, length_of(columns), np.arange(50))
    assert sum(array.nbytes for array in vars(lengths).values()) == 32 * 50


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_nothing_there_is_nothing_to_count(layout):
    lengths = measure([[np.array([1])]], np.array([[1]]), np.array([0]))
    counts = count(lengths, np.empty(0, np.int64), np.empty(0, np.int64), 0, layout)
    assert isinstance(counts, Counts)
    assert joined(counts, np.empty(0, np.int64), 2, layout).tokens.tolist() == [0, 0]
