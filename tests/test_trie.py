"""Rung 3 of the exactness ladder: random sets of sequences, in every layout, against brute force and plain Llama."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rmkit.batch.labels import PairLabels
from rmkit.batch.trie import common_prefix, pack
from rmkit.config import LossConfig
from support.oracle import gradients, reward_model, scores_one_by_one, tiny_classifier, trie_tokens

LAYOUTS = ("trie", "packed", "padded")
IDS = (0, 3, 255, 256, 65536, 2**31 - 1)
"""Ids whose order by value, by little-endian bytes and by text all differ."""


def lists_of(ids, longest, most):
    """Lists of sequences in which duplicates, prefixes of one another and shared prompts are frequent."""
    token = st.sampled_from(ids)
    prompts = st.lists(st.lists(token, max_size=longest // 2), min_size=1, max_size=3)
    tails = st.lists(token, min_size=1, max_size=longest // 2)
    return prompts.flatmap(
        lambda heads: st.lists(st.tuples(st.sampled_from(heads), tails).map(sum_of), min_size=1, max_size=most)
    )


def sum_of(parts):
    return parts[0] + parts[1]


def arrays(lists):
    return [np.array(tokens, np.int32) for tokens in lists]


def brute_trie_size(lists):
    return len({tuple(tokens[: i + 1]) for tokens in lists for i in range(len(tokens))})


def keys_of_rows(batch):
    """Rows that each row of a packed row attends to, in order, from the segments alone."""
    segments, total = batch.segments, batch.tokens
    kv_index = torch.arange(total) if segments.kv_index is None else segments.kv_index
    queries, keys = segments.cu_seqlens_q.tolist(), segments.cu_seqlens_k.tolist()
    seen = {}
    for i, (n, m) in enumerate(segments.lengths):
        assert (queries[i + 1] - queries[i], keys[i + 1] - keys[i]) == (n, m)
        of_segment = kv_index[keys[i] : keys[i + 1]].tolist()
        for j in range(n):
            seen[queries[i] + j] = of_segment[: m - n + j + 1]
    assert sorted(seen) == list(range(total))
    assert segments.kv_index is None or len(kv_index) == keys[-1]
    assert segments.max_seqlen_q == max(n for n, _ in segments.lengths)
    assert segments.max_seqlen_k == max(m for _, m in segments.lengths)
    return seen


DEEP = [[3] * n for n in range(1, 13)]
K_RESPONSES = [[3, 0, 255, i, i] for i in IDS]


@settings(max_examples=150, deadline=None)
@given(lists_of(IDS, 12, 9))
@example([[3]])
@example([[3], [3], [3, 0], [0], [3]])
@example(DEEP)
@example(DEEP[::-1] + K_RESPONSES)
def test_every_end_sees_its_own_sequence_and_nothing_stands_twice(lists):
    sequences = arrays(lists)
    for layout in ("trie", "packed"):
        batch = pack(sequences, layout=layout)
        tokens, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
        seen = keys_of_rows(batch)
        for row, keys in seen.items():
            assert keys[-1] == row
            assert [positions[key] for key in keys] == list(range(len(keys)))
        assert [[tokens[key] for key in seen[end]] for end in batch.end_index.tolist()] == lists
        wanted = brute_trie_size(lists) if layout == "trie" else sum(map(len, lists))
        assert batch.tokens == len(tokens) == wanted
        assert batch.flat_tokens == sum(map(len, lists))
        assert batch.attention_mask is None
    assert trie_tokens(sequences) == brute_trie_size(lists)


@settings(max_examples=40, deadline=None)
@given(lists_of(IDS, 8, 6), st.integers(0, 9))
def test_padded_rectangle(lists, pad):
    batch = pack(arrays(lists), layout="padded", pad_token_id=pad)
    longest = max(map(len, lists))
    assert batch.input_ids.tolist() == [tokens + [pad] * (longest - len(tokens)) for tokens in lists]
    assert batch.attention_mask.tolist() == [[1] * len(t) + [0] * (longest - len(t)) for t in lists]
    assert batch.position_ids.tolist() == [list(range(longest))] * len(lists)
    assert batch.end_index.tolist() == [i * longest + len(t) - 1 for i, t in enumerate(lists)]
    assert batch.tokens == len(lists) * longest
    assert batch.segments is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from((3, 4)), max_size=5), st.lists(st.sampled_from((3, 4)), max_size=5))
def test_common_prefix(a, b):
    wanted = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_prefix(np.array(a, np.int32), np.array(b, np.int32)) == wanted


CLASSIFIER = tiny_classifier("llama", num_hidden_layers=2).double()
MODELS = {layout: reward_model(CLASSIFIER, layout) for layout in LAYOUTS}


@settings(max_examples=15, deadline=None)
@given(lists_of((3, 4, 90), 10, 7), st.randoms(use_true_random=False))
@example([[3, 4, 3, 4], [3, 4], [3], [3, 4, 3, 4], [3, 4, 90]], None)
@example(DEEP, None)
def test_scores_and_gradients_are_those_of_one_sequence_at_a_time(lists, random):
    draw = random.random if random else iter(np.linspace(0.1, 0.9, 999)).__next__
    sequences, n = arrays(lists), len(lists)
    chosen, rejected = list(range(n)), [*range(1, n), 0]
    margin, target, weight = ([draw() for _ in range(n)] for _ in range(3))

    CLASSIFIER.zero_grad()
    scores = scores_one_by_one(CLASSIFIER, sequences)
    d = scores[chosen] - scores[rejected] - torch.tensor(margin)
    p = torch.tensor(target, dtype=torch.float64)
    softplus = torch.nn.functional.softplus
    per_pair = p * softplus(-d) + (1 - p) * softplus(d)
    loss = (torch.tensor(weight, dtype=torch.float64) * per_pair).sum()
    loss = (loss + 0.1 * (scores[chosen] + scores[rejected]).square().sum()) / 7
    loss.backward()
    wanted = gradients(CLASSIFIER)
    largest = max(g.abs().max().item() for g in wanted.values())

    for layout, model in MODELS.items():
        model.zero_grad()
        values = {"margin": margin, "target": target, "weight": weight, "compared": [1.0] * len(margin)}
        labels = PairLabels({name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()})
        batch = pack(sequences, chosen, rejected, layout=layout, labels=labels)
        found_loss, found, _ = model(batch, LossConfig(center=0.1), 7.0)
        found_loss.backward()
        # transformers' norms and rotary embeddings compute in float32 whatever the weights are.
        torch.testing.assert_close(found.double(), scores.detach(), rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(found_loss.detach().double(), loss.detach(), rtol=2e-6, atol=2e-6)
        for name, gradient in gradients(model).items():
            difference = (gradient - wanted[name]).abs().max().item()
            assert difference <= 2e-5 * max(largest, 0.1), (layout, name)


def test_a_pair_is_prompt_chosen_rejected():
    batch = pack(arrays([[5, 6, 9, 2], [5, 6, 7, 8, 2]]), [0], [1])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 2, 9, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert batch.segments.kv_index.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6]
    assert batch.end_index.tolist() == [6, 4]


def test_one_segment_needs_no_gather():
    assert pack(arrays([[3, 4, 5], [3, 4], [3, 4, 5]])).segments.kv_index is None
    assert pack(arrays([[3, 4, 5], [3, 5]]), layout="packed").segments.kv_index is None
    assert pack(arrays([[3, 4, 5], [3, 5]])).segments.kv_index is not None


def test_preferences_are_carried_and_default_to_a_plain_win():
    sequences = arrays([[3, 4], [3, 5], [6]])
    plain = pack(sequences, [0, 2], [1, 1])
    assert plain.flat_tokens == 2 + 1 + 2 + 2
    for found, wanted in ((plain.chosen, [0, 2]), (plain.rejected, [1, 1])):
        assert found.dtype == torch.int64
        assert found.tolist() == wanted
    for name, wanted in (("margin", 0.0), ("weight", 1.0), ("compared", 1.0)):
        assert plain.labels[name].dtype == torch.float32
        assert plain.labels[name].tolist() == [wanted] * 2
    assert plain.labels["target"].isnan().all(), "the loss decides"
    given_labels = PairLabels({"margin": torch.tensor([1.0, 2.0])})
    assert pack(sequences, [0, 2], [1, 1], labels=given_labels).labels is given_labels


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_sequence_is_one_token_that_gives_every_parameter_a_zero_gradient(layout):
    """What a rank with nothing left runs: collectives wait for a gradient of every parameter."""
    batch = pack([], layout=layout, pad_token_id=5)
    assert batch.input_ids.tolist() == [[5]]
    assert len(batch.end_index) == len(batch.chosen) == batch.flat_tokens == 0
    model = reward_model(tiny_classifier("llama", num_hidden_layers=1), layout)
    loss, scores, sums = model(batch, LossConfig(center=0.1), 3.0)
    loss.backward()
    assert loss.item() == 0.0
    assert scores.shape == (0,)
    assert set(sums.as_dict().values()) == {0.0}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sequence_without_tokens_is_refused(layout):
    with pytest.raises(ValueError, match="without tokens"):
        pack(arrays([[3], []]), layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_to_moves_every_tensor_and_forgets_what_was_made_on_the_old_device(layout):
    batch = pack(arrays([[3, 4], [3, 5]]), [0], [1], layout=layout)
    if batch.segments is not None:
        batch.segments.made[1, 2, None] = torch.ones(1)
    moved = batch.to(torch.device("meta"))
    held = [
        *vars(moved).values(),
        *moved.labels.columns.values(),
        *(vars(moved.segments).values() if moved.segments else ()),
    ]
    tensors = [value for value in held if isinstance(value, torch.Tensor)]
    assert len(tensors) == {"trie": 12, "packed": 11, "padded": 10}[layout]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.flat_tokens == batch.flat_tokens
    if batch.segments is not None:
        assert moved.segments.lengths == batch.segments.lengths
        assert moved.segments.made == {}
        assert batch.segments.made
