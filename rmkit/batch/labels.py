"""The labels of pairs (margin, target, weight, ratings): one object that is passed from the data to the loss."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rmkit.data.forms import LABELS


@dataclass(frozen=True)
class PairLabels:
    """Numbers of N pairs by column: those of `rmkit.data.forms.LABELS` ([N]) and, where asked for, ratings.

    `ratings` is [N, 2, K]: what K objectives were rated on the chosen and on the rejected side, NaN where they were
    not. `compared` is 0 for a rated response that stands alone (its two sides are the same sequence), else 1.
    Columns are numpy float64 while the data is on the disk, float32 tensors in a batch.
    """

    columns: dict[str, np.ndarray | Tensor]

    def __getitem__(self, name: str) -> np.ndarray | Tensor:
        return self.columns[name]

    def tensors(self, indices: np.ndarray) -> "PairLabels":
        """The labels of some pairs, as float32 tensors."""
        return self.each(lambda column: torch.from_numpy(column[indices]).float())

    def each(self, change: Callable) -> "PairLabels":
        return PairLabels({name: change(column) for name, column in self.columns.items()})


def default_labels(count: int) -> PairLabels:
    """The labels of `count` pairs whose rows give none, as tensors."""
    defaults = {name: np.nan if label.default is None else label.default for name, label in LABELS.items()}
    return PairLabels({name: torch.full((count,), value) for name, value in {**defaults, "compared": 1.0}.items()})
