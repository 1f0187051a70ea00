import sys

import numpy as np
import pytest
import torch

from rmkit.batch.build import check_budget
from rmkit.config import BatchConfig, LossConfig
from support.oracle import gradients, reward_model, tiny_classifier
from support.pairs_of import batches_of, random_tokenised, tokenised

A, B, C, D = (np.array(tokens) for tokens in ([3, 4, 5], [3, 4, 6, 7], [8], [8, 9]))


def test_a_batch_holds_the_pairs_it_was_asked_for():
    pairs = tokenised([A, A, C], [B, C, D], margin=[1, 2, 3], weight=[4, 5, 6])
    batch = batches_of(pairs, "padded", pad_token_id=1).pack(np.array([2, 0]))
    assert batch.input_ids.tolist() == [[8, 1, 1, 1], [3, 4, 5, 1], [8, 9, 1, 1], [3, 4, 6, 7]]
    assert batch.chosen.tolist() == [0, 1]
    assert batch.rejected.tolist() == [2, 3]
    assert batch.labels["margin"].tolist() == [3, 1]
    assert batch.labels["weight"].tolist() == [6, 4]
    assert batch.labels["margin"].dtype == torch.float32
    assert batches_of(pairs, "packed").pack(np.array([2, 0])).tokens == 10
    assert batches_of(pairs, "trie").pack(np.array([2, 0])).tokens == 7


@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
def test_a_rated_response_alone_has_one_side(layout):
    pairs = tokenised([A, A, C], [A, B, D])
    pairs.labels["compared"][0] = 0.0
    batch = batches_of(pairs, layout).pack(np.array([1, 0, 2]))
    assert len(batch.end_index) == 5
    assert batch.chosen.tolist() == [0, 1, 2]
    assert batch.rejected.tolist() == [3, 1, 4]
    ends = [batch.input_ids.flatten()[batch.end_index[i]].item() for i in batch.rejected]
    assert ends == [7, 5, 9]


def test_microbatches_are_positions_in_the_data_not_in_the_batch():
    pairs = random_tokenised(30)
    indices = np.array([29, 3, 17, 4, 5, 28])
    found = batches_of(pairs, max_tokens=100, ranks=2).split(indices)
    assert sorted(np.concatenate([part for of_rank in found for part in of_rank]).tolist()) == sorted(indices.tolist())
    microbatches = [set(part.tolist()) for of_rank in found for part in of_rank]
    for prompt in ({3, 4, 5}, {28, 29}) if len(microbatches) <= 6 else ():
        assert any(prompt <= part for part in microbatches)


@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
def test_microbatches_keep_the_budget_of_their_layout(layout):
    pairs = random_tokenised(60)
    batches = batches_of(pairs, layout, 130)
    shortest_first = np.argsort([len(tokens) for tokens in pairs.chosen])
    sizes = [batch.tokens for batch, _ in batches.microbatches(shortest_first[30:])]
    assert max(sizes) <= 130
    assert sum(sizes) > 0.6 * 130 * len(sizes)


def test_attention_is_weighed_by_the_shape_of_the_model():
    """Per layer 2 heads of 8 components: 4 * 16 FLOPs a key, and 2 for each of its parameters; embeddings are free."""
    model = reward_model(tiny_classifier("llama", num_hidden_layers=3, head_dim=8, num_attention_heads=2), "trie")
    layer = sum(p.numel() for p in model.backbone.layers[0].parameters())
    assert model.pair_cost == pytest.approx(4 * 16 / (2 * layer))


def test_a_rank_without_pairs_builds_the_empty_batch():
    pairs = tokenised([A], [B])
    of_ranks = [list(batches_of(pairs, rank=r, ranks=2, pad_token_id=7).microbatches(np.array([0]))) for r in (0, 1)]
    (empty, last), (full, _) = sorted((one for (one,) in of_ranks), key=lambda one: len(one[0].chosen))
    assert last
    assert (len(empty.chosen), len(full.chosen)) == (0, 1)
    assert empty.input_ids.tolist() == [[7]]
    assert len(empty.labels["margin"]) == 0


@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
@pytest.mark.parametrize(("ranks", "max_tokens"), [(1, 110), (2, 300), (3, 90), (40, 16384)])
def test_sums_over_ranks_and_microbatches_are_those_of_one_batch(ranks, max_tokens, layout):
    pairs, indices = random_tokenised(24), np.arange(24)[::-1]
    model = reward_model(tiny_classifier("llama", num_hidden_layers=2).double(), layout)

    batches = batches_of(pairs, layout, max_tokens, ranks=ranks)

    def run(parts):
        model.zero_grad()
        total = None
        for part in parts:
            loss, _, sums = model(batches.pack(part), LossConfig(center=0.01, label_smoothing=0.1), float(len(indices)))
            loss.backward()
            total = sums if total is None else total + sums
        return total, gradients(model)

    parts = [part for of_rank in batches.split(indices) for part in of_rank]
    assert len(parts) > 1
    found, found_gradients = run(parts)
    wanted, wanted_gradients = run([indices])
    assert found.as_dict() == pytest.approx(wanted.as_dict(), rel=1e-6, abs=1e-6)
    largest = max(g.abs().max() for g in wanted_gradients.values())
    for name, gradient in found_gradients.items():
        assert (gradient - wanted_gradients[name]).abs().max() <= 1e-6 * largest, name


@pytest.mark.parametrize(("layout", "largest"), [("trie", 5), ("packed", 7), ("padded", 8)])
def test_a_pair_over_the_budget_is_found_in_any_block(monkeypatch, layout, largest):
    monkeypatch.setattr(sys.modules["rmkit.batch.build"], "BLOCK", 2)
    pairs = tokenised([C, C, C, A, C], [D, D, D, B, D])  # the fourth: 3 and 4 tokens, 2 of them shared
    check_budget(pairs, BatchConfig(layout=layout, max_tokens=largest))
    told = rf"^--batch.max-tokens {largest - 1}: 1 of 5 pairs .* {layout}, the largest {largest} .*{pairs.source[3]}"
    with pytest.raises(ValueError, match=told):
        check_budget(pairs, BatchConfig(layout=layout, max_tokens=largest - 1))
