"""The losses: scores of the end tokens and labels of the pairs give one loss per pair, and named sums.

Every loss is a sum over the pairs of the global batch, divided by their number, so that ranks and microbatches do not
change it. A new loss is a function here and a line in `LOSSES`; a number that it needs of each pair is a line in
`rmkit.data.forms.LABELS`, and comes as `labels[NAME]`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rmkit.batch.labels import PairLabels
from rmkit.batch.trie import PackedBatch
from rmkit.config import LossConfig
from rmkit.errors import UserError
from rmkit.model.head import Head
from rmkit_kernels import Kernels, bt_losses, score_bt_loss

FOCUS = 2.0
"""Exponent of the focal loss, as InternLM2 sets it."""

Loss = Callable[[Tensor, Tensor, PairLabels, LossConfig], Tensor]
"""(rewards of the chosen sides [N], of the rejected sides [N], labels, config) -> losses [N]"""


@dataclass(frozen=True)
class PairSums:
    """Sums over pairs, by name: they add up over microbatches and ranks."""

    names: tuple[str, ...]
    values: Tensor
    """float64, one of each name"""

    def __add__(self, other: "PairSums") -> "PairSums":
        assert self.names == other.names
        return PairSums(self.names, self.values + other.values)

    def as_dict(self) -> dict[str, float]:
        """The sums as Python floats, in one copy from the device."""
        return dict(zip(self.names, self.values.tolist(), strict=True))


class Comparison(NamedTuple):
    """The result of a forward pass over a batch of pairs."""

    loss: Tensor
    """Scalar: the sum of the losses over the normalizer"""
    rewards: Tensor
    """[S], without a gradient"""
    sums: PairSums
    """pairs: their number. chosen, rejected, margin: of the rewards. correct: pairs whose chosen side has the higher
    one. loss: of all losses, undivided. Under a rated head, for each objective: rated/NAME, squared_error/NAME"""


def bt(chosen: Tensor, rejected: Tensor, labels: PairLabels, config: LossConfig) -> Tensor:
    """Bradley and Terry: -log sigmoid(chosen - rejected), HALOs' and TRL's loss (`rmkit_kernels.score_bt_loss` has the
    whole formula)."""
    return bt_losses(chosen, rejected, labels["margin"], targets(labels, config), labels["weight"], config.center)


def hinge(chosen: Tensor, rejected: Tensor, labels: PairLabels, config: LossConfig) -> Tensor:
    """max(0, 1 - d), the ranking SVM of Joachims 2002: no penalty where d >= 1."""
    return _by_difference(lambda d: F.relu(1.0 - d), chosen, rejected, labels, config)


def focal(chosen: Tensor, rejected: Tensor, labels: PairLabels, config: LossConfig) -> Tensor:
    """-(1 - 2 max(0, p - 1/2))^2 log p with p = sigmoid(d): InternLM2's ranking loss (arXiv 2403.17297, section 4.3),
    in which pairs that are clearly right count less."""

    def penalty(d: Tensor) -> Tensor:
        # 1 - 2 (p - 1/2) = 2 sigmoid(-d), which does not cancel where p is near 1.
        return (2.0 * torch.sigmoid(-d)).clamp(max=1.0) ** FOCUS * -F.logsigmoid(d)

    return _by_difference(penalty, chosen, rejected, labels, config)


LOSSES: dict[str, Loss] = {"bt": bt, "hinge": hinge, "focal": focal}
"""Every loss, by --loss.name."""


def loss_of(config: LossConfig) -> Loss:
    """The function that --loss.name names; ValueError where there is none."""
    if config.name not in LOSSES:
        raise UserError("loss.name", config.name, f"there is no such loss; set one of {', '.join(LOSSES)}")
    return LOSSES[config.name]


def targets(labels: PairLabels, config: LossConfig) -> Tensor:
    """[N]: the probability that chosen wins, 1 - label_smoothing where the row gives none."""
    target = labels["target"]
    return torch.where(target.isnan(), 1.0 - config.label_smoothing, target)


def _by_difference(
    penalty: Callable[[Tensor], Tensor], chosen: Tensor, rejected: Tensor, labels: PairLabels, config: LossConfig
) -> Tensor:
    """weight (p penalty(d) + (1 - p) penalty(-d)) + center (chosen + rejected)^2, d = chosen - rejected - margin: the
    form that bt, hinge and focal share, p being the target."""
    d = chosen - rejected - labels["margin"]
    target = targets(labels, config)
    both = target * penalty(d) + (1.0 - target) * penalty(-d)
    return labels["weight"] * both + config.center * (chosen + rejected).square()


def compare(
    ends: Tensor,
    weight: Tensor,
    head: Head,
    batch: PackedBatch,
    config: LossConfig,
    normalizer: float,
    kernels: Kernels = "auto",
) -> Comparison:
    """Score S end states [S, H] by the head's `weight` [C, H] and compare the N pairs of the batch.

    Scores, loss and sums are float32 (sums are added up as float64). Bradley-Terry on one label runs as one fused op.
    """
    if head.row is not None and not head.rated and loss_of(config) is bt:
        labels = batch.labels
        arguments = (labels["margin"], targets(labels, config), labels["weight"], config.center, normalizer)
        row = weight[head.row]
        loss, rewards, sums = score_bt_loss(ends, row, batch.chosen, batch.rejected, *arguments, kernels=kernels)
        pairs = sums.new_full((1,), len(batch.chosen), dtype=torch.float64)
        names = ("chosen", "rejected", "margin", "correct", "loss", "pairs")
        return Comparison(loss, rewards, PairSums(names, torch.cat([sums.double(), pairs])))
    return _compare_by_parts(head.scores(ends, weight), head, batch, config, normalizer)


def _compare_by_parts(
    scores: Tensor, head: Head, batch: PackedBatch, config: LossConfig, normalizer: float
) -> Comparison:
    """`compare` for any loss and head, in PyTorch's own operations."""
    labels, rewards = batch.labels, head.rewards(scores)
    compared = labels["compared"]
    chosen, rejected = rewards.index_select(0, batch.chosen), rewards.index_select(0, batch.rejected)
    total = (compared * loss_of(config)(chosen, rejected, labels, config)).sum()
    sums = {
        "chosen": (compared * chosen).sum(),
        "rejected": (compared * rejected).sum(),
        "margin": (chosen - rejected).sum(),
        "correct": (chosen > rejected).to(total.dtype).sum(),
        "pairs": compared.sum(),
    }
    if head.rated:
        given, wrong = _squared_errors(scores, batch)
        total = total + config.ratings * wrong.sum()
        for k, objective in enumerate(head.objectives):
            sums[f"rated/{objective}"], sums[f"squared_error/{objective}"] = given[k], wrong[k]
    sums["loss"] = total
    values = torch.stack([value.detach().double() for value in sums.values()])
    return Comparison(total / normalizer, rewards.detach(), PairSums(tuple(sums), values))


def _squared_errors(scores: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """For each of K objectives the number of its ratings and the sum of (score - rating)^2 over them, [K] each."""
    ratings = batch.labels["ratings"]
    of_sides = torch.stack([scores.index_select(0, batch.chosen), scores.index_select(0, batch.rejected)], 1)
    given = ~ratings.isnan()
    wrong = torch.where(given, of_sides - ratings, 0.0).square()
    return given.sum((0, 1)).to(scores.dtype), wrong.sum((0, 1))
