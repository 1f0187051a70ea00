"""Planted label noise: are flipped labels found, is their share estimated, and does leaving them out help?

    python tests/campaigns/noise.py --data FOLDER --lm FOLDER     # hh_harmless and dpo_en_demo with a pretrained LM
    python tests/campaigns/noise.py --data FOLDER --words         # the same sets with word counts for features: no LM
    python tests/campaigns/noise.py --demo FINAL                  # the embedded set with a reward model of it
    python tests/campaigns/noise.py .. --retrain                  # the demo also trained anew, on noisy and kept pairs

For each set: the features of some pairs are computed once (the backbone is frozen). Then, for each share of flipped
labels and each of three seeds: labels are flipped, pairs are judged as `rmkit.inspect --model` judges them, and it is
measured

* AUROC of finding the flipped ones by the margin; precision among as many worst pairs as were planted;
* the estimated share of wrong labels beside the planted one (labels that people gave have noise of their own, so that
  the row with nothing planted says where the estimate starts);
* accuracy, on held-out pairs with their labels as they are, of a head refitted on the same frozen features: on all
  pairs, without the suspects, and without exactly the flipped pairs (what could be gained at most).

The demo's model has never seen the pairs that are flipped: they are the set's held-out prompts, dealt in two. With
--retrain it is trained anew on training pairs of which some are flipped, inspects these very pairs, and is trained
again on kept.jsonl; both are evaluated on the held-out pairs. Writes bench/results/noise.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.sparse.linalg import svds
from scipy.stats import rankdata

from rmkit.batch.pairs import tokenise
from rmkit.config import DataConfig
from rmkit.data import demo
from rmkit.inspection import features, floors, linear, reading, suspects
from rmkit.inspection.reading import Sample
from rmkit.inspection.tokens import dataset_of
from rmkit.runtime import environment
from rmkit.terminal import Terminal

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "noise.json"
SHARES = (0.0, 0.1, 0.2)
SEEDS = (0, 1, 2)
WORD_FEATURES = 200
CHUNK = 20
"""Pairs of a scoring pass; the features so far are kept, so that a stopped campaign goes on"""


def features_of(name: str, model: str, files: dict[str, str], most: dict[str, int], length: int, cache: Path) -> dict:
    """Features, prompts and samples of the train and test pairs of a set, computed once and kept in `cache`."""
    terminal, scorer, found = Terminal(Console(), True), None, {}
    for split, file in files.items():
        read = reading.read((file,), split, terminal, most=most[split])
        sample = read.sample
        order = np.argsort(sample.digests, kind="stable").tolist()  # whole prompts meet
        sample = Sample(most=0, **{n: [getattr(sample, n)[i] for i in order] for n in ("digests", "rows", "pairs")})
        parts = []
        for start in range(0, len(sample.pairs), CHUNK):
            part = sample.pairs[start : start + CHUNK]
            held = cache / f"{name}-{split}-{length}-{start}-{len(part)}.npz"  # of any larger sample too
            if not held.exists():
                scorer = scorer or features.load(model, length, print)
                began = time.perf_counter()
                pairs = tokenise(dataset_of(part), scorer.tokenizer, DataConfig(overlong="keep-end"), length, print)
                at, x = pairs.chosen.rows.astype(np.int64), scorer.features(pairs)
                np.savez(held, at=at, x=x)
                print(f"{held.name}: {len(at)} pairs in {time.perf_counter() - began:.0f} s", flush=True)
            with np.load(held) as loaded:
                parts.append((loaded["at"] + start, loaded["x"]))
        found[split] = {
            "sample": sample,
            "facts": read.facts,
            "at": np.concatenate([at for at, _ in parts]),
            "x": np.concatenate([x for _, x in parts]),
        }
    return found


def words_of(files: dict[str, str]) -> dict:
    """All pairs of a set with word counts for features: differences of log(1 + count) (`floors.differences`), projected
    on the `WORD_FEATURES` directions in which those of the training pairs vary most (truncated SVD)."""
    terminal, found, held = Terminal(Console(), True), {}, {}
    for split, file in files.items():
        read = reading.read((file,), split, terminal, most=0)
        held[split] = read
    both = floors.differences([*held["train"].sample.pairs, *held["test"].sample.pairs])[0].astype(np.float64)
    cut = len(held["train"].sample.pairs)
    size = min(WORD_FEATURES, cut - 1, both.shape[1] - 1)
    _, _, directions = svds(both[:cut], k=size, v0=np.ones(min(cut, both.shape[1])))
    for split, x in (("train", both[:cut]), ("test", both[cut:])):
        of = {"sample": held[split].sample, "facts": held[split].facts, "at": np.arange(x.shape[0])}
        found[split] = {**of, "x": np.asarray(x @ directions.T, np.float32)}
    return found


def planted(train: dict, test: tuple[np.ndarray, np.ndarray], share: float, seed: int) -> dict[str, Any]:
    """One cell: flip, judge, and refit on what is kept."""
    n = len(train["at"])
    flipped = np.zeros(n, bool)
    flipped[np.random.default_rng([seed, round(1000 * share)]).permutation(n)[: round(share * n)]] = True
    x = np.where(flipped[:, None], -train["x"], train["x"])
    judged = suspects.judge(train["sample"], train["facts"], train["at"], x, seed)
    prompt = np.array(train["sample"].digests)[train["at"]]
    rows = {"all": np.ones(n, bool), "without suspects": np.ones(n, bool), "without the flipped": ~flipped}
    rows["without suspects"][judged.suspects] = False
    noise = judged.found["noise"]
    return {
        "share": share,
        "seed": seed,
        "pairs": n,
        "planted": int(flipped.sum()),
        "auroc": auroc(-judged.margin, flipped),
        "precision": float(flipped[np.argsort(judged.margin, kind="stable")[: flipped.sum()]].mean())
        if flipped.any()
        else None,
        "mixture": noise["mixture"],
        "confident": noise["confident"],
        "suspects": judged.found["suspects"],
        "suspects_flipped": int(flipped[judged.suspects].sum()),
        "out_of_sample_accuracy": judged.found["accuracy"]["accuracy"],
        "held_out": {name: refitted(x[kept], prompt[kept], test, seed) for name, kept in rows.items()},
    }


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """The probability that a positive has the higher score (Mann and Whitney, 1947)."""
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    return float((rankdata(score)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def refitted(x: np.ndarray, prompt: np.ndarray, test: tuple[np.ndarray, np.ndarray], seed: int) -> float:
    """Held-out accuracy of a head fitted on some pairs, its l2 chosen among them."""
    inside = linear.scaled(x)
    w = linear.fit(inside, linear.best_l2(inside, prompt, seed))
    return float(linear.right(test[0] @ w).mean())


def cells(found: dict) -> list[dict[str, Any]]:
    test = found["test"]["x"].astype(np.float64), None
    return [planted(found["train"], test, share, seed) for share in SHARES for seed in SEEDS]


def of_demo(model: str, cache: Path) -> dict:
    """The demo's held-out prompts in two parts, with the features of a model that has not seen them."""
    rows = list(demo.preferences("test"))
    cut = int(len(rows) * 0.67) // demo.WRONG_ANSWERS * demo.WRONG_ANSWERS
    files = {}
    for split, part in (("train", rows[:cut]), ("test", rows[cut:])):
        files[split] = write(cache / f"demo-{split}.jsonl", part)
    return features_of("demo", model, files, {"train": 0, "test": 0}, 256, cache)


def write(file: Path, pairs: list[dict]) -> str:
    file.write_text("".join(json.dumps(suspects.row_of(pair)) + "\n" for pair in pairs))
    return str(file)


def retrained(share: float, seed: int, folder: Path) -> dict[str, Any]:
    """Train the demo on noisy pairs, inspect them with that model, train on what is kept; accuracy of both."""
    rng = np.random.default_rng([seed, round(1000 * share)])
    rows = list(demo.preferences("train"))
    flipped = rng.random(len(rows)) < share
    for row, turn in zip(rows, flipped.tolist(), strict=True):
        if turn:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    noisy = write(folder / "noisy.jsonl", rows)

    def train(data: str, name: str) -> float:
        flags = ["--data.train", data, "--data.test", "demo", "--exp-name", name, "--cache-dir", str(folder)]
        run("train", *flags, "--seed", str(seed))
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").open()]
        return [line["rewards_eval/accuracies"] for line in lines if "rewards_eval/accuracies" in line][-1]

    noisy_accuracy, out = train(noisy, "noisy"), folder / "inspect"
    run("inspect", noisy, "--model", str(folder / "noisy" / "FINAL"), "--pairs", "0", "--out", str(out))
    judged = json.loads((out / "inspect.json").read_text())["suspects"]
    numbers = [int(json.loads(line)["source"].rpartition(":")[2]) - 1 for line in (out / "suspects.jsonl").open()]
    return {
        "share": share,
        "seed": seed,
        "pairs": len(rows),
        "planted": int(flipped.sum()),
        "suspects": len(numbers),
        "suspects_flipped": int(flipped[numbers].sum()),
        "mixture": judged["noise"]["mixture"],
        "confident": judged["noise"]["confident"],
        "held_out": {"all": noisy_accuracy, "without suspects": train(str(out / "kept.jsonl"), "kept")},
    }


def run(program: str, *flags: str) -> None:
    subprocess.run([sys.executable, "-m", f"rmkit.{program}", *flags], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of NAME/train.jsonl and NAME/test.jsonl")
    parser.add_argument("--lm", help="folder of a pretrained causal LM")
    parser.add_argument("--sets", nargs="+", default=["hh_harmless", "dpo_en_demo"])
    parser.add_argument("--demo", help="folder of a reward model of the embedded set")
    parser.add_argument("--words", action="store_true")
    parser.add_argument("--retrain", action="store_true")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--test-pairs", type=int, default=150)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "rmkit-noise")
    parser.add_argument("--only-features", action="store_true")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if given.demo:
        record("demo", "a reward model trained on the set", 256, of_demo(given.demo, given.cache))
    for name in given.sets if given.data else ():
        files = {split: f"{given.data}/{name}/{split}.jsonl" for split in ("train", "test")}
        if given.words:
            record(f"{name}, words", "word counts", None, words_of(files))
        if given.lm:
            most = {"train": given.pairs, "test": given.test_pairs}
            found = features_of(name, given.lm, files, most, given.length, given.cache)
            if not given.only_features:
                record(name, Path(given.lm).name, given.length, found)
    for share in SHARES[1:] if given.retrain else ():
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                add("demo, trained anew", {}, [retrained(share, seed, Path(folder))])


def record(name: str, model: str, length: int | None, found: dict) -> None:
    """Measure every cell of a set and add them to the results."""
    about = {"features": model, "hidden": found["train"]["x"].shape[1], "max_length": length}
    about |= {f"{split}_pairs": len(found[split]["at"]) for split in ("train", "test")}
    add(name, about, cells(found))


def add(name: str, about: dict[str, Any], cells: list[dict[str, Any]]) -> None:
    """Add cells to the results file, in place of earlier ones of the same share and seed."""
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"bench": "noise", "sets": {}}
    new = {(cell["share"], cell["seed"]) for cell in cells}
    held = [c for c in result["sets"].get(name, {}).get("cells", []) if (c["share"], c["seed"]) not in new]
    result["sets"][name] = {**about, "cells": sorted(held + cells, key=lambda cell: (cell["share"], cell["seed"]))}
    command = "python tests/campaigns/noise.py --data FOLDER .."  # the paths are of one machine
    result["environment"] = {**environment(torch.device("cpu"), 1), "command": command}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for cell in cells:
        print(name, json.dumps(cell), flush=True)


if __name__ == "__main__":
    main()
