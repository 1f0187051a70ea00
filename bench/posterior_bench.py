"""What the posterior of the head and the temperature are worth: python bench/posterior_bench.py [--steps 150 400].

The demo is trained for so many steps (it is not at its end then, so that there are wrong pairs to tell) and its head is
looked at on held-out prompts, with the end states fixed:
* coverage: the head is refitted on bootstrap samples of N training pairs; how the margins of held-out pairs spread over
  the refits, beside the standard errors of a posterior of the same N pairs;
* sampling: standard errors of a posterior of fewer pairs, scaled to stand for all N as in training, beside all N's;
* calibration before and after: temperatures of one half of the held-out prompts, measured on the other, both ways;
* whether the model knows what it has wrong: risk-coverage area and AUROC by |margin|, calibrated confidence and
  standard error alone;
* cost: CPU seconds of posterior and temperature beside those of the rest, of these trainings and of the whole demo.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from scipy import optimize

from rmkit import OptimConfig, TrainConfig, fit, load_scorer, runtime
from rmkit.batch.pairs import TokenisedPairs, tokenise
from rmkit.config import DataConfig
from rmkit.data import source
from rmkit.evaluation import trust as measured
from rmkit.model import probability
from rmkit.model.posterior import Posterior, posterior
from rmkit.storage.trust import Trust
from rmkit.training import trust

PAIRS = 4096
"""Training pairs of the refits."""
SAMPLES = (8, 16, 32, 64, 128, 256, 512, 1024)
"""Fewer of them, to see what sampling costs"""


def trained(steps: int, folder: Path) -> tuple[Path, dict]:
    """The demo after so many steps (0: all), and the CPU seconds of its parts."""
    seconds, inner = {}, trust.worth

    def timed(*arguments):
        began = time.process_time()
        found = inner(*arguments)
        seconds["posterior and temperature"] = time.process_time() - began
        return found

    trust.worth, began = timed, time.process_time()
    try:
        optim = OptimConfig(max_steps=steps)
        final = fit(TrainConfig(exp_name=f"steps-{steps}", cache_dir=str(folder), optim=optim), quiet=True).final
    finally:
        trust.worth = inner
    seconds["the rest of the training"] = time.process_time() - began - seconds["posterior and temperature"]
    seconds["share"] = seconds["posterior and temperature"] / seconds["the rest of the training"]
    return final, seconds


def read(scorer, split: str, count: int | None = None) -> TokenisedPairs:
    preferences = source.load(("demo",), split, lambda text: None)
    if count:
        preferences = preferences.select(np.random.default_rng(0).permutation(len(preferences))[:count])
    return tokenise(preferences, scorer.tokenizer, DataConfig(), scorer.max_length, lambda text: None)


def head(x: np.ndarray, times: np.ndarray, prior: float, start: np.ndarray) -> np.ndarray:
    """The head of the largest posterior density, each pair counted so many times."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w
        slope = -(x * (times / (1 + np.exp(z)))[:, None]).sum(0) + prior * w
        return float(times @ np.logaddexp(0, -z) + prior / 2 * w @ w), slope

    return optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-6, "maxiter": 2000}).x


def at(w: np.ndarray, x: np.ndarray, stands_for: int | None = None) -> Posterior:
    p = 1 / (1 + np.exp(-x @ w))
    hessian = torch.from_numpy((x * (p * (1 - p))[:, None]).T @ x) * ((stands_for or len(x)) / len(x))
    return posterior(hessian, torch.from_numpy(w), torch.zeros(len(w)).double())


def coverage(w: np.ndarray, train: np.ndarray, test: np.ndarray, refits: int) -> dict:
    """Standard errors of a posterior of the pairs `train`, beside the spread of heads refitted on samples of them."""
    prior, rng = at(w, train).prior, np.random.default_rng(1)
    whole = head(train, np.ones(len(train)), prior, w)
    heads = [
        head(train, np.bincount(rng.integers(0, len(train), len(train)), minlength=len(train)), prior, whole)
        for _ in range(refits)
    ]
    margins = test @ np.stack(heads, 1)
    found = {"pairs": len(train), "refits": refits, "prior": prior}
    for name, weights in (("at the trained head", w), ("at the refitted head", whole)):
        se = at(weights, train).difference_se(test)
        ratio = margins.std(1, ddof=1) / se
        inside = np.abs(margins - (test @ whole)[:, None]) <= 1.96 * se[:, None]
        low, median, high = np.quantile(ratio, [0.05, 0.5, 0.95])
        found[name] = {
            "spread of refits / standard error": {"q05": low, "median": median, "q95": high},
            "refits within 1.96 standard errors": float(inside.mean()),
            "rank correlation of spread and standard error": float(np.corrcoef(rank(margins.std(1)), rank(se))[0, 1]),
        }
    return found


def sampling(w: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict:
    """How many times as large standard errors are where fewer pairs are looked at."""
    order, se, found = np.random.default_rng(3).permutation(len(train)), at(w, train).difference_se(test), {}
    for count in SAMPLES:
        ratio = at(w, train[order[:count]], len(train)).difference_se(test) / se
        low, median, high = np.quantile(ratio, [0.05, 0.5, 0.95])
        found[count] = {"q05": low, "median": median, "q95": high}
    return found


def rank(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort()


def calibration(margin: np.ndarray, se: np.ndarray, group: np.ndarray) -> dict:
    """Losses and calibration errors of each half of the prompts under the temperatures of the other, and their mean."""
    halves, rows = np.random.default_rng(2).permutation(int(group.max()) + 1)[group] % 2, []
    for half in (0, 1):
        fitted, judged = halves != half, halves == half
        other = Trust(
            temperature=probability.temperature(margin[fitted]),
            temperature_with_se=probability.temperature(margin[fitted], 1.0, se[fitted]),
        )
        rows.append(measured.measure(margin[judged], se[judged], other)["calibration"])
    return {
        kind: {key: float(np.mean([row[kind][key] for row in rows])) for key in figures}
        for kind, figures in rows[0].items()
    }


def look(final: Path, refits: int) -> dict:
    scorer = load_scorer(final)
    w = scorer.model.classifier.score.weight[0].detach().double().numpy()
    test, train = read(scorer, "test"), scorer.features(read(scorer, "train", PAIRS)).astype(np.float64)
    x = scorer.features(test).astype(np.float64)
    margin, se = x @ w, scorer.trust.posterior.difference_se(x)
    figures = measured.measure(margin, se, scorer.trust)
    for found in figures["risk_coverage"].values():
        del found["curve"]
    return {
        "held-out pairs": len(x),
        "accuracy": float((margin > 0).mean()),
        "temperature": scorer.trust.temperature,
        "temperature_with_se": scorer.trust.temperature_with_se,
        "coverage": coverage(w, train, x, refits),
        "standard error of a sample / of all pairs": {"hidden": len(w), "pairs": len(train), **sampling(w, train, x)},
        "calibration on the other half": calibration(margin, se, test.group),
        "risk_coverage": figures["risk_coverage"],
        "auroc_wrong": figures["auroc_wrong"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[150, 400], help="optimizer steps of each training")
    parser.add_argument("--refits", type=int, default=60, help="bootstrap refits of each head")
    parser.add_argument("--out", type=Path, default=Path("bench/results/posterior.json"))
    settings = parser.parse_args()
    torch.set_num_threads(1)
    console, runs = Console(), {}
    result = {"bench": "posterior", "command": " ".join(["python", *sys.argv]), "runs": runs}
    with tempfile.TemporaryDirectory() as folder:
        for steps in settings.steps:
            final, seconds = trained(steps, Path(folder))
            runs[steps] = {"cpu_seconds": seconds, **look(final, settings.refits)}
            console.print_json(json.dumps({steps: runs[steps]}))
        result["cpu_seconds of the whole demo"] = trained(0, Path(folder))[1]
    result["environment"] = runtime.environment(torch.device("cpu"), 1)
    settings.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
