"""Heads: what their labels mean, how they are read, and the rewards that come of them."""

import json

import pytest
import torch

from rmkit.config import ModelConfig
from rmkit.model.head import HEADS, Head, draw, fresh_head, from_json, plain_head, to_json
from support.oracle import tiny_classifier

TWO = Head(labels=("a", "b"), reward=(1.0, -1.0))


def test_the_reward_is_the_last_of_one_label_or_two():
    assert [plain_head(n).row for n in (1, 2)] == [0, 1]
    assert plain_head(3) is None
    assert plain_head(2).labels == ("LABEL_0", "LABEL_1")
    assert fresh_head(ModelConfig(head="binary")) == plain_head(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scores_and_rewards(dtype):
    ends, weight = torch.randn(5, 7).to(dtype), torch.randn(2, 7)
    scores = TWO.scores(ends, weight)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wanted = ends.double() @ weight.double().T
    torch.testing.assert_close(scores.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(TWO.rewards(scores).double(), wanted[:, 0] - wanted[:, 1], rtol=1e-5, atol=1e-5)
    assert torch.equal(plain_head(2).rewards(scores), scores[:, 1])


def test_scores_are_float32_under_autocast():
    ends, weight = torch.randn(3, 40), torch.randn(1, 40)
    plain = plain_head(1).scores(ends, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain_head(1).scores(ends, weight), plain)


def test_objectives_and_their_weights():
    head = fresh_head(ModelConfig(head="multi", objectives=("helpful", "harmless")))
    assert head == Head(labels=("helpful", "harmless"), reward=(0.5, 0.5), rated=True)
    assert head.objectives == ("helpful", "harmless")
    assert plain_head(1).objectives == ()
    weighed = fresh_head(ModelConfig(head="multi", objectives=("helpful=0.7", "verbose=-0.3")))
    assert weighed.reward == (0.7, -0.3)


def test_a_head_survives_json():
    for head in (plain_head(1), plain_head(2), TWO, fresh_head(ModelConfig(head="multi", objectives=("a", "b", "c")))):
        assert from_json(json.loads(json.dumps(to_json(head))), len(head.labels)) == head


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({}, "described by labels, reward and rated"),
        ([], "described by labels"),
        ({"labels": ["a"], "reward": [1.0, 2.0], "rated": False}, "1 labels and 2 weights, the head has 1"),
        ({"labels": ["a", "b"], "reward": [1.0, 2.0], "rated": False}, "2 labels and 2 weights, the head has 1"),
        ({"labels": ["a"], "reward": ["x"], "rated": False}, "could not convert"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(held, told):
    with pytest.raises(ValueError, match=told):
        from_json(held, 1)


def test_an_unknown_head_is_refused():
    with pytest.raises(
        ValueError, match=r"^--model\.head ternary: there is no such head; set one of scalar, binary, mu"
    ):
        fresh_head(ModelConfig(head="ternary"))


def test_drawn_from_the_seed_alone():
    one, other = tiny_classifier("llama", seed=0), tiny_classifier("llama", seed=1)
    draw(one, 3)
    torch.rand(5)
    draw(other, 3)
    assert torch.equal(one.score.weight, other.score.weight)
    draw(other, 4)
    assert not torch.equal(one.score.weight, other.score.weight)
    assert set(HEADS) == {"scalar", "binary", "multi"}
