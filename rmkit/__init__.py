"""rmkit: Bradley-Terry reward models on trie-packed batches.

From Python: `fit(TrainConfig(..))` trains, `load_scorer(folder)` scores. Nothing heavy is imported until one is used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rmkit.api import fit
    from rmkit.config import (
        BatchConfig,
        DataConfig,
        EvalConfig,
        HubConfig,
        LogConfig,
        LoraConfig,
        LossConfig,
        ModelConfig,
        OptimConfig,
        ParallelConfig,
        SaveConfig,
        TrainConfig,
    )
    from rmkit.scorer import Compared, Scorer, load_scorer
    from rmkit.training.record import Result

__all__ = [
    "BatchConfig",
    "Compared",
    "DataConfig",
    "EvalConfig",
    "HubConfig",
    "LogConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "Result",
    "SaveConfig",
    "Scorer",
    "TrainConfig",
    "fit",
    "load_scorer",
]

_ELSEWHERE = {
    "Compared": "scorer",
    "Result": "training.record",
    "Scorer": "scorer",
    "fit": "api",
    "load_scorer": "scorer",
}
"""Modules of the public names that are no part of the configuration"""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rmkit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"rmkit.{_ELSEWHERE.get(name, 'config')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
