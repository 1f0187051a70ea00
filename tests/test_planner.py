import hashlib
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from rmkit.batch import planner
from rmkit.batch.lengths import count, measure
from rmkit.batch.planner import epoch_order, pair_cost_of, split
from rmkit.batch.trie import pack
from rmkit.config import BatchConfig, DataConfig, ParallelConfig, TrainConfig


def plan(*, seed=0, shuffle=True, **batch):
    return TrainConfig(seed=seed, data=DataConfig(shuffle=shuffle), batch=BatchConfig(**batch))


def groups_of(sizes, rng):
    """Group ids of N preferences, scattered over the file as real ones are."""
    return rng.permutation(np.repeat(np.arange(len(sizes)), sizes))


def straddling(group, order, pairs):
    """Groups that lie in more than one global batch."""
    batches = {}
    for place, i in enumerate(order.tolist()):
        batches.setdefault(int(group[i]), set()).add(place // pairs)
    return sum(len(found) > 1 for found in batches.values())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=60),
    st.integers(1, 8),
    st.sampled_from(("prompt", "none")),
    st.integers(0, 2**63 - 1),
)
def test_every_pair_exactly_once_in_every_epoch(sizes, pairs, grouped, seed):
    group = groups_of(sizes, np.random.default_rng(0))
    for epoch in (0, 1):
        order = epoch_order(group, epoch, plan(seed=seed, pairs=pairs, group=grouped))
        assert np.array_equal(np.sort(order), np.arange(len(group)))


@pytest.mark.parametrize("grouped", ["prompt", "none"])
def test_order_repeats_and_every_seed_and_epoch_has_its_own(grouped):
    group = groups_of([1, 2, 3] * 20, np.random.default_rng(0))

    def order(seed, epoch):
        return tuple(epoch_order(group, epoch, plan(seed=seed, pairs=8, group=grouped)).tolist())

    assert order(3, 1) == order(3, 1)
    assert len({order(seed, epoch) for seed in range(4) for epoch in range(4)}) == 16


def test_order_knows_neither_the_budget_nor_the_layout_nor_the_ranks():
    group = groups_of([1, 2, 3] * 20, np.random.default_rng(0))
    one = TrainConfig(batch=BatchConfig(pairs=8, max_tokens=64, layout="trie"))
    other = TrainConfig(
        batch=BatchConfig(pairs=8, max_tokens=9999, layout="padded"), parallel=ParallelConfig(strategy="ddp")
    )
    assert np.array_equal(epoch_order(group, 2, one), epoch_order(group, 2, other))


@pytest.mark.parametrize("grouped", ["prompt", "none"])
def test_without_shuffle_the_order_is_that_of_the_file(grouped):
    group = groups_of([1, 2, 3] * 20, np.random.default_rng(0))
    for epoch in (0, 1):
        assert np.array_equal(epoch_order(group, epoch, plan(shuffle=False, group=grouped)), np.arange(len(group)))


def test_hardly_any_group_straddles_two_batches():
    rng = np.random.default_rng(0)
    group = groups_of(rng.integers(1, 7, 1200), rng)
    whole = straddling(group, epoch_order(group, 0, plan(pairs=16)), 16)
    alone = straddling(group, epoch_order(group, 0, plan(pairs=16, group="none")), 16)
    assert alone > 900
    assert whole <= 20  # 263 batches; whole groups in a random order would leave about 180


def test_groups_that_never_fit_are_cut_and_not_starved():
    """Groups of 3 in batches of 4: none but the first of each batch fits, and the look-ahead is bounded."""
    group = np.repeat(np.arange(200), 3)
    order = epoch_order(group, 0, plan(pairs=4))
    assert np.array_equal(np.sort(order), np.arange(600))
    assert (np.diff(group[order]) != 0).sum() == 199  # each group lies in one piece
    assert 0 < straddling(group, order, 4) < 200


def test_the_look_ahead_is_bounded_so_that_later_groups_find_room():
    """Five groups of 3 leave room for nothing: one has to be cut before the groups of 2 can fill up again."""
    rng = np.random.default_rng(0)
    group = groups_of(rng.permutation([3] * 600 + [2] * 300), rng)
    assert straddling(group, epoch_order(group, 0, plan(pairs=16)), 16) < 80  # 69; without the bound 89


def test_a_group_larger_than_a_batch_stays_in_one_piece():
    group = groups_of([10, 1, 1, 1, 1, 1], np.random.default_rng(0))
    place = np.flatnonzero(group[epoch_order(group, 0, plan(pairs=4))] == 0)
    assert np.array_equal(np.diff(place), np.ones(9))


def test_group_ids_need_not_be_dense():
    assert sorted(epoch_order(np.array([7, 2, 7]), 0, plan(pairs=2)).tolist()) == [0, 1, 2]


def test_blocks_never_change_the_order():
    """They bound the memory of a large set; the order is that of the plain algorithm, which held it whole."""
    sizes = np.random.default_rng(0).integers(1, 6, 3000)
    group = groups_of(sizes, np.random.default_rng(1))
    wanted = epoch_order(group, 1, plan(pairs=16))
    assert hashlib.sha256(wanted.tobytes()).hexdigest()[:16] == "aa93c243d4235702"
    for block in (1, 7, 2999, 3000):
        with mock.patch.object(planner, "BLOCK", block):
            assert np.array_equal(epoch_order(group, 1, plan(pairs=16)), wanted)


def test_pair_cost_of_llama_3_8b():
    """6.98e9 parameters in 32 layers, of 32 heads of 128 components: 26,600 keys cost as much as the weights do."""
    found = pair_cost_of(layers=32, heads=32, head_dim=128, parameters=6_979_321_856)
    assert 1 / found == pytest.approx(26_624, rel=1e-3)


@pytest.mark.parametrize("keys", [1, 7])
def test_pair_cost_is_what_torch_counts(keys):
    """A layer of 2 heads of 4 components: FLOPs of its attention over those of its weights, per token."""
    heads, head_dim, tokens = 2, 4, 5
    weights = [torch.rand(8, 8) for _ in range(4)]
    x, q = torch.rand(tokens, 8), torch.rand(1, heads, tokens, head_dim)
    k = v = torch.rand(1, heads, keys, head_dim)
    with FlopCounterMode(display=False) as of_weights:
        for weight in weights:
            x @ weight
    with FlopCounterMode(display=False) as of_attention:
        torch.softmax(q @ k.transpose(2, 3), -1) @ v
    found = pair_cost_of(layers=1, heads=heads, head_dim=head_dim, parameters=sum(w.numel() for w in weights))
    ratio = of_attention.get_total_flops() / of_weights.get_total_flops()
    assert found * keys == pytest.approx(ratio)


def plain(tokens, group=None):
    """Lengths of items of one sequence each, which share nothing."""
    n = len(tokens)
    group = np.arange(n) if group is None else np.array(group)
    return measure([[np.full(t, i) for i, t in enumerate(tokens)]], np.array(tokens).reshape(n, 1), group)


def split_of(lengths, items=None, *, layout="trie", pair_cost=0.0, ranks=1, max_tokens=1000):
    """The plan as lists."""
    items = np.arange(len(lengths.group)) if items is None else items
    found = split(lengths, items, layout=layout, pair_cost=pair_cost, ranks=ranks, max_tokens=max_tokens)
    return [[part.tolist() for part in of_rank] for of_rank in found]


@st.composite
def global_batches(draw):
    """Group ids and both token sequences of each pair; a group shares its prompt, as real ones do."""
    token = st.integers(3, 6)
    prompts = draw(st.lists(st.lists(token, max_size=6), min_size=1, max_size=5))
    group = draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=14))
    tails = st.lists(token, min_size=1, max_size=5)
    columns = [[np.array(prompts[g] + draw(tails)) for g in group] for _ in range(2)]
    items = draw(st.lists(st.sampled_from(range(len(group))), unique=True))
    return np.array(group, np.int64), columns, np.array(items, np.int64)


@settings(max_examples=300, deadline=None)
@given(
    global_batches(),
    st.integers(1, 5),
    st.integers(12, 60),
    st.sampled_from(("trie", "packed", "padded")),
    st.sampled_from((0.0, 0.3)),
)
def test_split(batch, ranks, max_tokens, layout, pair_cost):
    group, columns, items = batch
    lengths = measure(columns, np.array([[len(s) for s in column] for column in columns]).T, group)
    settings = {"layout": layout, "pair_cost": pair_cost, "ranks": ranks, "max_tokens": max_tokens}

    def tokens_of(part):
        return pack([column[i] for column in columns for i in part], layout=layout).tokens

    alone = [tokens_of([i]) for i in items]
    if any(tokens > max_tokens for tokens in alone):
        found = f"^--batch.max-tokens {max_tokens}: one pair takes {max(alone)} tokens; .*--data.max-length"
        with pytest.raises(ValueError, match=found):
            split_of(lengths, items, **settings)
        return
    found = split_of(lengths, items, **settings)
    assert found == split_of(lengths, items, **settings)
    assert len(found) == ranks
    assert len({len(of_rank) for of_rank in found}) == 1
    microbatches = [part for of_rank in found for part in of_rank]
    assert sorted(i for part in microbatches for i in part) == sorted(items.tolist())
    assert all(tokens_of(part) <= max_tokens for part in microbatches if part)
    assert len(found[0]) <= max(1, len(items))
    for g in set(group[items].tolist()) if ranks == 1 and layout != "padded" else ():
        of_group = items[group[items] == g].tolist()
        if tokens_of(of_group) <= max_tokens:
            assert any(set(of_group) <= set(part) for part in microbatches)


@settings(max_examples=200, deadline=None)
@given(global_batches(), st.integers(1, 3), st.integers(2, 12), st.sampled_from(("trie", "packed", "padded")))
def test_segments_of_a_microbatch_are_bounded_and_a_plan_that_keeps_the_bound_is_as_it_was(batch, ranks, most, layout):
    """Flash attention's backward needs scratch for each segment, whatever its tokens."""
    group, columns, items = batch
    lengths = measure(columns, np.array([[len(s) for s in column] for column in columns]).T, group)

    def segments(part):
        packed = pack([column[i] for column in columns for i in part], layout=layout)
        return 0 if packed.ends is None else max(len(packed.ends.rows), len(packed.segments.lengths))

    free = split_of(lengths, items, layout=layout, ranks=ranks, max_tokens=60)
    with mock.patch.object(planner, "SEGMENTS", most):
        bounded = split_of(lengths, items, layout=layout, ranks=ranks, max_tokens=60)
    parts = [part for of_rank in bounded for part in of_rank]
    assert sorted(i for part in parts for i in part) == sorted(items.tolist())
    assert all(segments(part) <= most for part in parts if part)
    # Microbatches of several groups are counted as if none shared anything, so that the sum decides. A group over the
    # bound is cut before the ranks are dealt to, and so in other places.
    groups = np.bincount(group[items], minlength=1)
    if 2 * groups.max() <= most and all(2 * len(part) <= most for of_rank in free for part in of_rank):
        assert bounded == free


def test_split_gives_ranks_without_a_pair_an_empty_microbatch():
    assert sorted(split_of(plain([1]), ranks=3)) == [[[]], [[]], [[0]]]
    assert split_of(plain([1]), np.empty(0, np.int64), ranks=2) == [[[]], [[]]]


def test_split_takes_as_few_microbatches_as_fit():
    def microbatches(ranks, max_tokens):
        return len(split_of(plain([1] * 12), ranks=ranks, max_tokens=max_tokens)[0])

    assert [microbatches(1, 12), microbatches(1, 11), microbatches(2, 6), microbatches(3, 2)] == [1, 2, 1, 2]


def test_split_keeps_the_order_of_the_batch_within_a_microbatch():
    assert split_of(plain([1, 2, 3, 4]), np.array([2, 0, 3])) == [[[2, 0, 3]]]


def test_split_is_balanced_and_ranks_run_bins_of_like_size_at_the_same_time():
    cost = np.array([9, 1, 7, 3, 8, 2, 6, 4])
    loads = [[int(cost[part].sum()) for part in of_rank] for of_rank in split_of(plain(cost), ranks=2, max_tokens=14)]
    assert [sum(of_rank) for of_rank in loads] == [20, 20]
    assert all(abs(a - b) <= 1 for a, b in zip(*loads, strict=True))


def test_split_sorts_the_bins_of_all_ranks_by_load_and_deals_them_evenly():
    cost = np.random.default_rng(0).integers(1, 40, 60)
    found = split_of(plain(cost), ranks=3, max_tokens=50)
    loads = np.array([[cost[part].sum() for part in of_rank] for of_rank in found])
    assert (loads[:, :-1].min(0) >= loads[:, 1:].max(0)).all()
    assert loads.sum(1).max() - loads.sum(1).min() <= 1
    assert len(loads[0]) <= -(-cost.sum() // 150) + 1  # longest first: one more than the least there can be


def test_split_balances_attention_with_tokens():
    """Two sequences of 30 tokens and 30 of 2: alike in tokens, but not in keys, 930 against 90."""
    lengths = plain([30, 30] + [2] * 30)
    by_tokens = split_of(lengths, ranks=2)
    assert [sum(i < 2 for i in part) for (part,) in by_tokens] == [1, 1]
    three = split_of(lengths, ranks=3)
    assert sorted(sum(lengths.length[part]) for (part,) in three) == [40, 40, 40]
    attended = split_of(lengths, ranks=3, pair_cost=1.0)
    assert sorted(attended, key=str) == [[[0]], [[1]], [list(range(2, 32))]]


def test_split_deals_by_load_and_not_by_tokens():
    """Two sequences of 30 tokens weigh 495 each, 40 of one token 80: the long ones run at the same time, first."""
    found = split_of(plain([30, 30] + [1] * 80), ranks=2, max_tokens=40, pair_cost=1.0)
    assert [[len(part) for part in of_rank] for of_rank in found] == [[1, 40], [1, 40]]


def test_split_cuts_a_group_that_only_its_attention_makes_heavy():
    """200 of 500 tokens, but 10,300 of a load of 10,900."""
    lengths = plain([100, 100] + [1] * 300, [0, 0, *range(1, 301)])
    assert [{0, 1} <= set(part) for (part,) in split_of(lengths, ranks=2)] == [True, False]
    assert not any({0, 1} <= set(part) for (part,) in split_of(lengths, ranks=2, pair_cost=1.0))


def shared_prompt(prompt, responses, others):
    """A group of pairs on one prompt, of two responses each, then pairs that share nothing with any."""
    rng = np.random.default_rng(0)
    said = np.arange(100, 100 + prompt)
    pairs = [[np.append(said, rng.integers(1000, 9000, n)) for _ in range(2)] for n in responses]
    pairs += [[rng.integers(1000, 9000, n // 2) for _ in range(2)] for n in others]
    columns = list(zip(*pairs, strict=True))
    group = [0] * len(responses) + list(range(1, 1 + len(others)))
    return measure(columns, np.array([[len(s) for s in column] for column in columns]).T, np.array(group))


def test_split_cuts_a_group_heavier_than_a_rank_where_that_makes_the_step_shorter():
    lengths = shared_prompt(20, [20] * 8, [40] * 2)
    assert split_of(lengths) == [[list(range(10))]]
    loads = []
    for (part,) in split_of(lengths, ranks=2):
        unit = np.unique(lengths.group[part], return_inverse=True)[1]
        loads.append(count(lengths, np.array(part), unit, unit.max() + 1, "trie").tokens.sum())
    assert loads == [220, 220]  # in whole groups 340 and 80; the prompt of 20 is computed twice


def test_split_leaves_a_heavy_group_whole_where_its_prompt_costs_more_than_balance_gains():
    lengths = shared_prompt(100, [1, 1], [90])
    assert sorted(split_of(lengths, ranks=2), key=str) == [[[0, 1]], [[2]]]
    dearer = shared_prompt(10, [46, 46], [90])
    assert not any({0, 1} <= set(part) for (part,) in split_of(dearer, ranks=2))


def test_split_cuts_only_a_group_that_is_over_the_budget_on_one_rank():
    found = split_of(plain([1] * 10, [0] * 7 + [1] * 3), max_tokens=4)[0]
    assert all(len(part) <= 4 for part in found)
    assert any({7, 8, 9} <= set(part) for part in found)
    assert len(found) == 3


def test_a_group_is_cut_between_answers_that_share_least():
    """Answers of two kinds, in turn: each kind shares 8 more tokens and stays together."""
    answers = [np.array([1, 2, *[3 + i % 2] * 8, 10 + i]) for i in range(6)]
    lengths = measure([answers], np.array([[11]] * 6), np.zeros(6, np.int64))
    assert sorted(map(tuple, split_of(lengths, max_tokens=13)[0])) == [(0, 2, 4), (1, 3, 5)]


def test_ranks_are_evenly_loaded_at_sixteen_pairs_each():
    """Lengths of a heavy tail, groups of one to eight pairs: within 3 % of the mean, cuts and all."""
    rng = np.random.default_rng(0)
    sizes = rng.choice([1, 1, 1, 2, 4, 8], 400)
    group = np.repeat(np.arange(len(sizes)), sizes)[:1024]
    prompt = rng.lognormal(4.5, 0.8, len(sizes)).astype(int) + 1
    columns = [[], []]
    for g in group:
        for column in columns:
            column.append(np.concatenate([np.full(prompt[g], g), rng.integers(1000, 2000, rng.integers(5, 200))]))
    lengths = measure(columns, np.array([[len(s) for s in column] for column in columns]).T, group)
    found = split(lengths, np.arange(1024), layout="trie", pair_cost=4e-5, ranks=64, max_tokens=16384)
    assert {len(of_rank) for of_rank in found} == {1}
    loads = []
    for (part,) in found:
        unit = np.unique(group[part], return_inverse=True)[1]
        loads.append(count(lengths, part, unit, unit.max() + 1, "trie").load(4e-5).sum())
    assert np.mean(loads) / max(loads) > 0.97


def test_split_says_how_large_the_pair_is():
    with pytest.raises(ValueError, match=r"^--batch.max-tokens 5: one pair takes 6 tokens; .*--data.max-length"):
        split_of(plain([6, 6, 6], [0, 0, 1]), ranks=2, max_tokens=5)
