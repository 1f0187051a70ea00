import sys

import numpy as np
import pytest
import torch

from rmkit.batch.build import attention_of, build, check_budget, microbatches, sides
from rmkit.config import BatchConfig, LossConfig, TrainConfig
from support.oracle import gradients, reward_model, tiny_classifier
from support.pairs_of import random_tokenised, tokenised

A, B, C, D = (np.array(tokens) for tokens in ([3, 4, 5], [3, 4, 6, 7], [8], [8, 9]))


def config(layout="trie", max_tokens=16384, smoothing=0.0):
    return TrainConfig(
        batch=BatchConfig(layout=layout, max_tokens=max_tokens), loss=LossConfig(label_smoothing=smoothing)
    )


def test_sides_are_all_chosen_then_all_rejected():
    pairs = tokenised([A, C], [B, D])
    assert [s.tolist() for s in sides(pairs, [1, 0])] == [[8], [3, 4, 5], [8, 9], [3, 4, 6, 7]]


def test_a_batch_holds_the_pairs_it_was_asked_for():
    pairs = tokenised([A, A, C], [B, C, D], margin=[1, 2, 3], weight=[4, 5, 6])
    batch = build(pairs, np.array([2, 0]), config("padded"), pad_token_id=1)
    assert batch.input_ids.tolist() == [[8, 1, 1, 1], [3, 4, 5, 1], [8, 9, 1, 1], [3, 4, 6, 7]]
    assert batch.chosen.tolist() == [0, 1]
    assert batch.rejected.tolist() == [2, 3]
    assert batch.margin.tolist() == [3, 1]
    assert batch.weight.tolist() == [6, 4]
    assert build(pairs, np.array([2, 0]), config("packed"), 1).tokens == 10
    assert build(pairs, np.array([2, 0]), config("trie"), 1).tokens == 7


def test_smoothing_is_the_target_where_a_row_gives_none():
    pairs = tokenised([A] * 4, [B] * 4, target=[np.nan, 0.5, 1.0, 0.0])
    smoothed = build(pairs, np.arange(4), config(smoothing=0.2), 0).target
    assert smoothed.tolist() == pytest.approx([0.8, 0.5, 1.0, 0.0])
    assert build(pairs, np.arange(4), config(), 0).target.tolist() == [1.0, 0.5, 1.0, 0.0]


def test_microbatches_are_positions_in_the_data_not_in_the_batch():
    pairs = random_tokenised(30)
    indices = np.array([29, 3, 17, 4, 5, 28])
    found = microbatches(pairs, indices, config(max_tokens=100), 2, 0.01)
    assert sorted(np.concatenate([part for of_rank in found for part in of_rank]).tolist()) == sorted(indices.tolist())
    together = [set(part.tolist()) for of_rank in found for part in of_rank]
    for prompt in ({3, 4, 5}, {28, 29}) if len(together) <= 6 else ():
        assert any(prompt <= part for part in together)


@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
def test_microbatches_keep_the_budget_of_their_layout(layout):
    pairs, settings = random_tokenised(60), config(layout, max_tokens=130)
    shortest_first = np.argsort([len(tokens) for tokens in pairs.chosen])
    found = microbatches(pairs, shortest_first[30:], settings, 1, 0.01)[0]
    sizes = [build(pairs, part, settings, 0).tokens for part in found]
    assert max(sizes) <= 130
    assert sum(sizes) > 0.6 * 130 * len(sizes)


def test_attention_is_weighed_by_the_shape_of_the_model():
    """Per layer 2 heads of 8 components: 4 * 16 FLOPs a key, and 2 for each of its parameters; embeddings are free."""
    model = reward_model(tiny_classifier("llama", num_hidden_layers=3, head_dim=8, num_attention_heads=2), "trie")
    layer = sum(p.numel() for p in model.backbone.layers[0].parameters())
    assert attention_of(model) == pytest.approx(4 * 16 / (2 * layer))


def test_a_rank_without_pairs_builds_the_empty_batch():
    pairs = tokenised([A], [B])
    (full,), (empty,) = microbatches(pairs, np.array([0]), config(), 2, 0.01)
    if len(full) == 0:
        full, empty = empty, full
    assert (full.tolist(), empty.tolist()) == ([0], [])
    assert build(pairs, empty, config(), 7).input_ids.tolist() == [[7]]
    assert len(build(pairs, empty, config(), 7).chosen) == 0


@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
@pytest.mark.parametrize(("ranks", "max_tokens"), [(1, 110), (2, 300), (3, 90), (40, 16384)])
def test_sums_over_ranks_and_microbatches_are_those_of_one_batch(ranks, max_tokens, layout):
    pairs, indices = random_tokenised(24), np.arange(24)[::-1]
    model = reward_model(tiny_classifier("llama", num_hidden_layers=2).double(), layout)

    def run(parts, settings):
        model.zero_grad()
        total = torch.zeros(5, dtype=torch.float64)
        for part in parts:
            loss, _, stats = model(build(pairs, part, settings, 0), 0.01, float(len(indices)))
            loss.backward()
            total += stats
        return total, gradients(model)

    settings = config(layout, max_tokens, smoothing=0.1)
    parts = [part for of_rank in microbatches(pairs, indices, settings, ranks, 0.01) for part in of_rank]
    assert len(parts) > 1
    found, found_gradients = run(parts, settings)
    wanted, wanted_gradients = run([indices], settings)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    largest = max(g.abs().max() for g in wanted_gradients.values())
    for name, gradient in found_gradients.items():
        assert (gradient - wanted_gradients[name]).abs().max() <= 1e-6 * largest, name


@pytest.mark.parametrize(("layout", "largest"), [("trie", 5), ("packed", 7), ("padded", 8)])
def test_a_pair_over_the_budget_is_found_in_any_block(monkeypatch, layout, largest):
    monkeypatch.setattr(sys.modules["rmkit.batch.build"], "BLOCK", 2)
    pairs = tokenised([C, C, C, A, C], [D, D, D, B, D])  # the fourth: 3 and 4 tokens, 2 of them shared
    check_budget(pairs, config(layout, max_tokens=largest).batch)
    told = rf"^--batch.max-tokens {largest - 1}: 1 of 5 pairs .* {layout}, the largest {largest} .*{pairs.source[3]}"
    with pytest.raises(ValueError, match=told):
        check_budget(pairs, config(layout, max_tokens=largest - 1).batch)
