"""A run folder as training leaves it, written by hand: pages are made of it without a model."""

import json
from pathlib import Path

import numpy as np

from rmkit.config import BatchConfig, OptimConfig, TrainConfig, to_dict
from rmkit.pages import heldout

PAIRS = 40


def write_run(
    cache: Path,
    name: str,
    *,
    steps: int = 30,
    every: int = 10,
    seed: int = 0,
    lr: float = 1e-3,
    batch: int = 8,
    text: str = "What is it?",
    final: bool = True,
) -> Path:
    """CACHE/NAME with two lines of metrics.jsonl a step and an evaluation every so many; its last scores depend on the
    seed, its held-out pairs do not."""
    run, rng = cache / name, np.random.default_rng(seed)
    (run / "FINAL" if final else run).mkdir(parents=True)
    optim = OptimConfig(lr=lr, max_steps=steps)
    config = TrainConfig(exp_name=name, cache_dir=str(cache), seed=seed, optim=optim, batch=BatchConfig(pairs=batch))
    (run / "config.json").write_text(json.dumps(to_dict(config.resolved())))
    counts = {"rows": 90, "rows_dropped": {"bad row": 2}, "pairs": 88, "pairs_dropped": {f"over-long {text}": 8}}
    env = {"rmkit": "0", "commit": "abc", "python": "3", "versions": {"torch": "2", "peft": None}, "device": text}
    env |= {"ranks": 1, "cores": 2, "threads": 1, "command": ["train.py", text], "steps": steps}
    (run / "env.json").write_text(json.dumps({**env, "data": {"train": counts, "test": counts}}))
    scores = np.round(rng.normal([0.8, 0.0], 1.0, (PAIRS, 2)), 3)
    lines = [evaluation(0, 0, rng.normal(0.0, 1.0, PAIRS))]
    for step in range(1, steps + 1):
        lines.append(of_step(step, step * batch, lr, rng))
        if step % every == 0 or step == steps:
            margin = scores[:, 0] - scores[:, 1] if step == steps else rng.normal(0.5, 1.0, PAIRS)
            lines.append(evaluation(step, step * batch, margin))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    heldout.write(run, held_out(scores, steps, text))
    return run


def of_step(step: int, examples: int, lr: float, rng: np.random.Generator) -> dict:
    """The line of a step."""
    drawn = rng.random(3).tolist()
    means = {"accuracies": 0.5 + drawn[0] / 2, "margins": drawn[1], "chosen": drawn[1], "rejected": 0.0}
    return {
        "loss/train": drawn[2],
        **{f"rewards_train/{name}": value for name, value in means.items()},
        **{"grad_norm": 1 + drawn[0], "examples_per_second": 16.0, "tokens_per_second": 4096.0},
        **{"tokens/flat": 400, "tokens/computed": 100},
        **{"counters/examples": examples, "counters/updates": step, "counters/lr": lr},
    }


def evaluation(step: int, examples: int, margin: np.ndarray) -> dict:
    """The line of an evaluation."""
    means = {"chosen": 1.0, "rejected": 0.0, "accuracies": float((margin > 0).mean()), "margins": float(margin.mean())}
    return {
        **{"counters/examples": examples, "counters/updates": step, "loss/eval": 0.5},
        **{f"rewards_eval/{name}": value for name, value in means.items()},
        **{"pairs": PAIRS, "seconds": 2.0},
    }


def held_out(scores: np.ndarray, step: int, text: str) -> heldout.HeldOut:
    """Held-out pairs with these scores; the two most wrong have their texts."""
    wrong = [int(i) for i in np.argsort(scores[:, 0] - scores[:, 1])[:2]]
    return heldout.HeldOut(
        step=step,
        pair=[f"{i:032x}" for i in range(len(scores))],
        source=[f"{text}.jsonl:{i + 1}" for i in range(len(scores))],
        scores=scores,
        tokens=np.stack([np.arange(len(scores)) % 7 + 3, np.full(len(scores), 6)], 1),
        texts={i: {name: f"{name} {i} {text}" for name in heldout.TEXTS} for i in wrong},
    )
