"""The head of a reward model: how end tokens are scored, and which label, or weighted sum of labels, is the reward.

A head is one linear layer without bias, `score.weight` [C, H], as in every sequence classifier of transformers. What
its C labels mean is defined here and saved in rmkit.json.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rmkit.config import ModelConfig
from rmkit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Head:
    """The meaning of a head's C labels."""

    labels: tuple[str, ...]
    """Their names, `id2label` of the saved classifier"""
    reward: tuple[float, ...]
    """Weight of each label's score in the reward"""
    rated: bool = False
    """Whether the labels are objectives that responses are rated by (squared error)"""

    @property
    def row(self) -> int | None:
        """The label that is the reward; None where it is a sum of several."""
        lone = [i for i, weight in enumerate(self.reward) if weight]
        return lone[0] if len(lone) == 1 and self.reward[lone[0]] == 1.0 else None

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives that rows may rate; none under a head that only compares."""
        return self.labels if self.rated else ()

    def scores(self, ends: Tensor, weight: Tensor) -> Tensor:
        """Scores [S, C] of S end states [S, H] under `weight` [C, H]: float32, or float64 where one of them is.

        Not a matrix product: autocast would run it in bfloat16, and TF32 may be on.
        """
        dtype = torch.promote_types(torch.promote_types(ends.dtype, weight.dtype), torch.float32)
        wide = ends.to(dtype)
        return torch.stack([(wide * row).sum(-1) for row in weight.to(dtype)], -1)

    def rewards(self, scores: Tensor) -> Tensor:
        """Rewards [S] of the scores [S, C]."""
        if self.row is not None:
            return scores[:, self.row]
        return sum(weight * scores[:, i] for i, weight in enumerate(self.reward) if weight)


def plain_head(labels: int) -> Head | None:
    """The head that `labels` rows stand for where nothing says more: 1, or 2 as HALOs saves them (the reward is the
    last label). None for any other number."""
    if labels not in (1, 2):
        return None
    return Head(labels=tuple(f"LABEL_{i}" for i in range(labels)), reward=(0.0,) * (labels - 1) + (1.0,))


def _multi(config: ModelConfig) -> Head:
    """K objectives, as HelpSteer (arXiv 2311.09528) and ArmoRM (arXiv 2406.12845) train them; the reward is their
    weighted sum."""
    named = config.objective_weights
    return Head(labels=tuple(named), reward=tuple(named.values()), rated=True)


HEADS: dict[str, Callable[[ModelConfig], Head]] = {
    "scalar": lambda config: plain_head(1),
    "binary": lambda config: plain_head(2),
    "multi": _multi,
}
"""Every kind of fresh head, by --model.head; a new kind is a line here."""


def fresh_head(config: ModelConfig) -> Head:
    """The head that --model.head asks for; ValueError where there is none of that name."""
    if config.head not in HEADS:
        raise UserError("model.head", config.head, f"there is no such head; set one of {', '.join(HEADS)}")
    return HEADS[config.head](config)


def draw(classifier: PreTrainedModel, seed: int) -> None:
    """Fill `score.weight` from Normal(0, initializer_range), as transformers, TRL and HALOs draw it, but from the seed
    alone."""
    weight = classifier.score.weight
    spread = getattr(classifier.config, "initializer_range", 0.02)
    drawn = torch.empty(weight.shape).normal_(0.0, spread, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weight.copy_(drawn)


def to_json(head: Head) -> dict[str, Any]:
    """A head as it is saved in rmkit.json."""
    return asdict(head)


def from_json(held: Any, rows: int) -> Head:
    """The head that `to_json` wrote, for a weight of `rows` rows; ValueError where it is malformed or does not fit."""
    try:
        head = Head(
            labels=tuple(map(str, held["labels"])),
            reward=tuple(map(float, held["reward"])),
            rated=bool(held["rated"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"its head is not described by labels, reward and rated ({error})") from error
    if not len(head.labels) == len(head.reward) == rows:
        raise ValueError(f"it describes {len(head.labels)} labels and {len(head.reward)} weights, the head has {rows}")
    return head
