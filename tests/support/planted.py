"""Preference pairs with planted answers for the tests of inspection."""

import json
from pathlib import Path

import numpy as np
from rich.console import Console

from rmkit.inspection.facts import Facts
from rmkit.inspection.reading import Read, read
from rmkit.terminal import Terminal


def silent() -> Terminal:
    return Terminal(Console(quiet=True), True)


def row(prompt: str, chosen: str, rejected: str, **more) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def pair(prompt: str, chosen: str, rejected: str, i: int = 0, **more) -> dict:
    """A preference as `rmkit.data.cache.read` gives it."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **{"margin": 0.0, "weight": 1.0, "target": None, "compared": 1.0, "ratings": None},
        **{"subset": "", "id": "", "source": f"x:{i}"},
    } | more


def facts_of(pairs: list[dict]) -> Facts:
    facts = Facts()
    for each in pairs:
        facts.add(each)
    return facts


def written(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return file


def read_of(file: Path, most: int = 0, **more) -> Read:
    return read((str(file),), "train", silent(), most=most, **more)


def features(n: int, hidden: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x [n, hidden] of pairs that a linear head can tell apart, and which of them were given the wrong label."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, hidden)) + 3.0 * np.eye(hidden)[0]  # the right side has more of the first feature
    flipped = rng.random(n) < noise
    return np.where(flipped[:, None], -x, x).astype(np.float32), flipped
