"""Losses and sums, against plain formulas in float64, by the fused op and by parts."""

import math

import numpy as np
import pytest
import torch

from rmkit.batch.labels import PairLabels
from rmkit.batch.trie import pack
from rmkit.config import LossConfig
from rmkit.model.head import Head, plain_head
from rmkit.model.loss import LOSSES, PairSums, compare, loss_of, targets

MULTI = Head(labels=("helpful", "harmless"), reward=(0.75, 0.25), rated=True)


def labels_of(n: int, seed: int = 0, **more) -> PairLabels:
    rng = np.random.default_rng(seed)
    target = rng.random(n)
    target[::3] = np.nan
    columns = {"margin": rng.normal(size=n), "target": target, "weight": rng.random(n) + 0.5, "compared": np.ones(n)}
    return PairLabels({k: torch.from_numpy(np.asarray(v, np.float32)) for k, v in {**columns, **more}.items()})


def batch_of(labels: PairLabels, rejected=None):
    n = len(labels["margin"])
    sequences = [np.array([3 + i, 90]) for i in range(2 * n)]
    return pack(sequences, range(n), range(n, 2 * n) if rejected is None else rejected, labels=labels)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


PENALTIES = {
    "bt": lambda d: softplus(-d),
    "hinge": lambda d: max(0.0, 1.0 - d),
    "focal": lambda d: (1.0 - 2.0 * max(0.0, sigmoid(d) - 0.5)) ** 2 * softplus(-d),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_its_formula(name):
    n, config = 40, LossConfig(name=name, label_smoothing=0.1, center=0.05)
    labels = labels_of(n)
    chosen, rejected = (
        3 * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (1, 2)
    )
    found = LOSSES[name](chosen, rejected, labels, config)
    penalty = PENALTIES[name]
    for i in range(n):
        d = chosen[i].item() - rejected[i].item() - labels["margin"][i].item()
        p = labels["target"][i].item()
        p = 0.9 if math.isnan(p) else p
        wanted = labels["weight"][i].item() * (p * penalty(d) + (1 - p) * penalty(-d))
        wanted += 0.05 * (chosen[i].item() + rejected[i].item()) ** 2
        assert found[i].item() == pytest.approx(wanted, rel=1e-6), i


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_the_gradient_of_its_formula(name):
    labels = labels_of(6)
    sides = [torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (3, 4)]
    double = PairLabels({k: v.double() for k, v in labels.columns.items()})
    config = LossConfig(name=name, center=0.1)
    assert torch.autograd.gradcheck(
        lambda a, b: LOSSES[name](a, b, double, config).sum(), [side.requires_grad_() for side in sides]
    )


@pytest.mark.parametrize("gap", [200.0, 50.0, -50.0, -200.0])
@pytest.mark.parametrize("name", LOSSES)
def test_clear_pairs_stay_finite(name, gap):
    labels = PairLabels({k: torch.tensor([v]) for k, v in {"margin": 0.0, "target": 1.0, "weight": 1.0}.items()})
    a, b = torch.tensor([gap], requires_grad=True), torch.zeros(1)
    loss = LOSSES[name](a, b, labels, LossConfig(name=name)).sum()
    loss.backward()
    assert loss.isfinite()
    assert a.grad.isfinite()
    assert loss.item() == pytest.approx(PENALTIES[name](gap), abs=1e-6)


def test_smoothing_is_the_target_where_a_row_gives_none():
    labels = PairLabels({"target": torch.tensor([math.nan, 0.5, 1.0, 0.0])})
    assert targets(labels, LossConfig(label_smoothing=0.2)).tolist() == pytest.approx([0.8, 0.5, 1.0, 0.0])
    assert targets(labels, LossConfig()).tolist() == [1.0, 0.5, 1.0, 0.0]


@pytest.mark.parametrize("labels_of_head", [1, 2])
def test_the_fused_op_and_the_parts_agree(labels_of_head):
    batch, head = batch_of(labels_of(8)), plain_head(labels_of_head)
    ends = torch.randn(16, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(labels_of_head, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    config, found = LossConfig(center=0.02, label_smoothing=0.1), []
    # The same reward written as a sum of two labels is no single row, so it goes by parts.
    apart = Head(labels=("x", *head.labels), reward=(0.5, *(0.5 * r for r in head.reward)))
    for one, matrix in ((head, weight), (apart, torch.cat([weight[-1:], weight]))):
        loss, rewards, sums = compare(ends, matrix, one, batch, config, 3.0)
        found.append((loss, rewards, sums, *torch.autograd.grad(loss, (ends, weight))))
    (loss, rewards, sums, *gradients), (loss_2, rewards_2, sums_2, *gradients_2) = found
    torch.testing.assert_close(loss, loss_2)
    torch.testing.assert_close(rewards, rewards_2)
    assert sums.as_dict() == pytest.approx(sums_2.as_dict(), rel=1e-6)
    for one, other in zip(gradients, gradients_2, strict=True):
        torch.testing.assert_close(one, other)
    if labels_of_head == 2:
        assert not gradients[1][0].any(), "the label that is not the reward is never trained"


def test_multi_adds_squared_errors_of_the_ratings_there_are():
    """Three rows: a pair without ratings, a rated pair, and a rated response alone."""
    nan = math.nan
    ratings = [[[nan, nan], [nan, nan]], [[1.0, nan], [nan, 2.0]], [[0.5, -1.0], [nan, nan]]]
    labels = labels_of(3, compared=[1.0, 1.0, 0.0], ratings=ratings)
    sequences = [np.array([3 + i]) for i in range(5)]
    batch = pack(sequences, [0, 1, 2], [3, 4, 2], labels=labels)
    ends = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    config = LossConfig(ratings=0.5, center=0.1)
    loss, rewards, sums = compare(ends, weight, MULTI, batch, config, 3.0)
    s = (ends @ weight.T).detach().double()
    reward = s @ torch.tensor([0.75, 0.25], dtype=torch.float64)
    torch.testing.assert_close(rewards.double(), reward, rtol=1e-5, atol=1e-6)
    pairs = LOSSES["bt"](reward[:2], reward[3:], PairLabels({k: v[:2] for k, v in labels.columns.items()}), config)
    squares = {
        "helpful": (s[1, 0] - 1) ** 2 + (s[2, 0] - 0.5) ** 2,
        "harmless": (s[4, 1] - 2) ** 2 + (s[2, 1] + 1) ** 2,
    }
    found = sums.as_dict()
    assert found["loss"] == pytest.approx((pairs.sum() + 0.5 * sum(squares.values())).item(), rel=1e-5)
    assert loss.item() == pytest.approx(found["loss"] / 3, rel=1e-6)
    assert found["pairs"] == 2
    assert (found["rated/helpful"], found["rated/harmless"]) == (2, 2)
    for name, value in squares.items():
        assert found[f"squared_error/{name}"] == pytest.approx(value.item(), rel=1e-5)
    assert found["margin"] == pytest.approx((reward[:2] - reward[3:]).sum().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, ends)
    assert gradient.isfinite().all()
    assert gradient[2].any(), "a rated response alone is trained"


def test_sums_add_up_by_name():
    one, other = (PairSums(("a", "b"), torch.tensor([1.0, i], dtype=torch.float64)) for i in (2.0, 3.0))
    assert (one + other).as_dict() == {"a": 2.0, "b": 5.0}
    with pytest.raises(AssertionError):
        one + PairSums(("a", "c"), one.values)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match=r"^--loss\.name ipo: there is no such loss; set one of bt, hinge, focal$"):
        loss_of(LossConfig(name="ipo"))
