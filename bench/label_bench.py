"""Labelling speed of rmkit beside plain transformers, one sequence at a time (HALOs' way) and in padded batches.

K completions of each prompt, in two shapes: prompts of 512 tokens with responses lognormal of mean 256, and prompts of
1024 with responses of mean 128. All paths score the same texts with the same weights, each in a process of its own, as
a user would run it (rmkit also tells the allocator to keep what was freed, which would help the others beside it); they
take turns (A B C, A B C, ..) while the others sleep, so that a drift of the machine's speed meets all of them; each
does everything from text to score. Scores that do not agree with those of one at a time are not timed.

    python bench/label_bench.py                     # the 13M Llama, both shapes
    python bench/label_bench.py --prompts 2 --rounds 1 --scale 0.1    # a quick look

Speed is completions per second of a whole round. The token ratio is flat tokens over trie tokens: what sharing the
prompt can save. Writes bench/results/label_bench.json.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import NormalDist

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the programs do, before torch is loaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from llama import save_llama
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rmkit.batch.trie import pack
from rmkit.data.tokenizer import encode, render
from rmkit.model.precision import has_bf16
from rmkit.runtime import environment, keep_freed
from rmkit.scorer import load_scorer

SHAPES = {"prompt 512, response 256": (512, 256), "prompt 1024, response 128": (1024, 128)}
BASE = "one at a time"
PLAIN_BF16 = "one at a time bf16"
PATHS = (BASE, PLAIN_BF16, "padded 8", "padded 32", "rmkit fp32", "rmkit bf16")
MORE_PATHS = ("padded 8 bf16", "padded 32 bf16")
"""Under autocast, which only a GPU gains from"""
SPREAD = 0.5
"""Sigma of the lognormal response lengths."""
TOLERANCE = 1e-4
"""Largest difference of a float32 score from one at a time, relative to the largest score. In bf16 the bound is twice
the error that plain transformers make under the same autocast, one at a time."""
TEMPLATE = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}{{ eos_token }}"


def save_tokenizer(folder: Path) -> None:
    """A word a token: 8k words w4, w5, .. and the template above."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<|user|>": 2, "<|assistant|>": 3}
    vocabulary |= {f"w{i}": i for i in range(4, 8192)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def conversations(prompt: int, response: int, prompts: int, k: int) -> list[list[dict]]:
    """`k` completions of each of `prompts` prompts, in random words.

    Response lengths are the quantiles of a lognormal of mean `response`, shuffled: no luck of the draw in the ratios.
    """
    rng = random.Random(0)
    count = prompts * k
    bell = NormalDist(np.log(response) - SPREAD**2 / 2, SPREAD)
    lengths = [max(1, round(np.exp(bell.inv_cdf((i + 0.5) / count)))) for i in range(count)]
    rng.shuffle(lengths)

    def text(length: int) -> str:
        return " ".join(f"w{rng.randrange(4, 8192)}" for _ in range(length))

    prompt_turns = [{"role": "user", "content": text(prompt)} for _ in range(prompts)]
    return [[prompt_turns[i // k], {"role": "assistant", "content": text(n)}] for i, n in enumerate(lengths)]


def transformers_path(
    folder: Path, batch: int, device: torch.device, *, bf16: bool = False
) -> Callable[[list], np.ndarray]:
    """Plain transformers, `batch` conversations at a time in the file's order, padded to the longest."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(turns: list) -> np.ndarray:
        rewards = []
        for start in range(0, len(turns), batch):
            texts = [tokenizer.apply_chat_template(t, tokenize=False) for t in turns[start : start + batch]]
            inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(device)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                rewards += model(**inputs).logits[:, -1].float().tolist()
        return np.array(rewards)

    return score


def rmkit_path(
    folder: Path, precision: str, max_tokens: int | None, device: torch.device
) -> Callable[[list], np.ndarray]:
    """What rmkit.label does with a chunk: render, encode, score in trie batches."""
    if device.type == "cpu":
        keep_freed()  # as every program of rmkit does
    scorer = load_scorer(
        str(folder), device=device, precision=precision, max_tokens=max_tokens, max_length=4096, say=lambda _: None
    )

    def score(turns: list) -> np.ndarray:
        sequences = encode(scorer.tokenizer, [render(scorer.tokenizer, t) for t in turns])
        group = np.unique([t[0]["content"] for t in turns], return_inverse=True)[1]
        return scorer.score_tokens([np.array(ids, np.int32) for ids in sequences], group)

    return score


def serve(name: str, folder: Path, max_tokens: int | None, pipe: Connection) -> None:
    """One path in this process: for each list of conversations that comes, its scores and the seconds they took."""
    transformers_logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("rmkit"):
        path = rmkit_path(folder, name.removeprefix("rmkit "), max_tokens, device)
    else:
        batch = int(name.split()[1]) if name.startswith("padded") else 1
        path = transformers_path(folder, batch, device, bf16=name.endswith("bf16"))
    while (turns := pipe.recv()) is not None:
        path(turns[:8])  # it has slept while the others ran, and labelling runs for hours
        start = time.perf_counter()
        scores = path(turns)  # comes to the host, so a device has ended by then
        pipe.send((scores, time.perf_counter() - start))


def start(name: str, folder: Path, max_tokens: int | None) -> Callable[[list | None], tuple[np.ndarray, float]]:
    """A process that serves a path; what is returned asks it, and ends it when given None."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(name, folder, max_tokens, theirs), daemon=True)
    process.start()
    theirs.close()

    def ask(turns: list | None) -> tuple[np.ndarray, float]:
        ours.send(turns)
        if turns is None:
            process.join()
            return np.empty(0), 0.0
        return ours.recv()

    return ask


def measure(paths: dict[str, Callable], turns: list, rounds: int, console: Console) -> dict:
    """Agreement of the scores first, which warms each path up too; then completions per second, round by round."""
    scores = {}
    for name, ask in paths.items():
        console.print(f"  {name}: scores", highlight=False)
        scores[name] = ask(turns)[0]
    truth, result = scores[BASE], {}
    largest = np.abs(truth).max()
    differences = {name: float(np.abs(of_path - truth).max() / largest) for name, of_path in scores.items()}
    for name, worst in differences.items():
        bound = 2 * differences[PLAIN_BF16] if name.endswith("bf16") else TOLERANCE
        if not worst <= bound:
            sys.exit(f"{name}: scores differ from {BASE} by {worst:.1e}, more than {bound:.1e}; nothing is timed")
        result[name] = {"largest_difference": worst, "bound": bound, "rounds": []}
    for i in range(rounds):
        for name, ask in paths.items():
            seconds = ask(turns)[1]
            result[name]["rounds"].append(len(turns) / seconds)
            console.print(f"  round {i + 1} of {rounds}: {name}, {len(turns) / seconds:.2f}/s", highlight=False)
    return result


def summary(result: dict[str, dict]) -> None:
    """Add medians, and ratios to every transformers path round by round, so that drift cancels."""
    for row in result.values():
        row["completions_per_second"] = _spread(row["rounds"])
        row["times"] = {
            base: _spread([a / b for a, b in zip(row["rounds"], other["rounds"], strict=True)])
            for base, other in result.items()
            if not base.startswith("rmkit")
        }


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.2, 0.5, 0.8])
    return {"median": float(median), "q20": float(low), "q80": float(high), "min": min(values), "max": max(values)}


def show(shape: str, tokens: dict, result: dict[str, dict], console: Console) -> None:
    bases = [base for base in result if not base.startswith("rmkit")]
    title = f"{shape}: {tokens['completions']} completions, token ratio {tokens['ratio']:.2f}"
    table = Table("path", "completions/s (20-80 %)", *(f"times {base}" for base in bases), "difference", title=title)
    for name, row in result.items():
        speed = row["completions_per_second"]
        ratios = [f"{r['median']:.2f} ({r['min']:.2f}-{r['max']:.2f})" for r in row["times"].values()]
        cells = [name, f"{speed['median']:.2f} ({speed['q20']:.2f}-{speed['q80']:.2f})", *ratios]
        table.add_row(*cells, f"{row['largest_difference']:.1e}")
    console.print(table)


def measure_shapes(folder: Path, names: list[str], settings: argparse.Namespace, console: Console) -> dict[str, dict]:
    """Tokens, agreement and speed of the paths `names` on each of SHAPES, by the flags of this program."""
    shapes = {}
    paths = {name: start(name, folder, settings.max_tokens) for name in names}
    for shape, lengths in SHAPES.items():
        console.print(shape, highlight=False)
        prompt, response = (max(1, round(length * settings.scale)) for length in lengths)
        turns = conversations(prompt, response, settings.prompts, settings.k)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = [np.array(x) for x in encode(tokenizer, [render(tokenizer, t) for t in turns])]
        flat, trie = sum(map(len, ids)), pack(ids).tokens
        tokens = {"completions": len(turns), "flat": flat, "trie": trie, "ratio": flat / trie}
        result = measure(paths, turns, settings.rounds, console)
        summary(result)
        show(shape, tokens, result, console)
        shapes[shape] = {"tokens": tokens, "paths": result}
    for ask in paths.values():
        ask(None)
    return shapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a sequence classifier; by default the 13M Llama, made on the spot")
    parser.add_argument("--prompts", type=int, default=8, help="prompts of each shape")
    parser.add_argument("--k", type=int, default=8, help="completions of each prompt")
    parser.add_argument("--rounds", type=int, default=5, help="how often each path is timed")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the lengths, for a quick look")
    parser.add_argument("--max-tokens", type=int, help="tokens of one forward pass of rmkit; by default its own choice")
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=PATHS + MORE_PATHS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "label_bench.json")
    arguments = parser.parse_args()
    names = list(dict.fromkeys([BASE, PLAIN_BF16, *arguments.paths]))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # the table in a log
    if not (torch.cuda.is_available() or has_bf16()):
        names = [name for name in names if not name.endswith("bf16")]
        console.print("no bf16 paths: this processor has no bf16 instructions", highlight=False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.model or Path(temporary)
        if arguments.model is None:
            # The model of step_bench, with a longer context.
            save_tokenizer(folder)
            save_llama(folder, context=4096)
        shapes = measure_shapes(folder, names, arguments, console)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result_file = {
        "bench": "label_bench",
        "settings": {key: getattr(arguments, key) for key in ("prompts", "k", "rounds", "scale", "max_tokens")},
        "environment": environment(device, 1),
        "shapes": shapes,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result_file, indent=1) + "\n")
    print(
        json.dumps(
            {
                shape: {name: row["completions_per_second"]["median"] for name, row in part["paths"].items()}
                for shape, part in shapes.items()
            }
        )
    )


if __name__ == "__main__":
    main()
