"""What only a GPU can tell: memory as it is, waits as they are, and the programs on the card from start to end.

Kernels, attention and losses have tests marked gpu in their own files; the ladder of all families on the card is
bench/contact/ladder.py. Nothing of this runs without `pytest -m gpu` and a card.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.linalg import norm
from safetensors import safe_open

from rmkit import evaluate, label
from rmkit.batch.planner import SEGMENTS
from rmkit.batch.trie import pack
from rmkit.config import LossConfig
from rmkit.data import demo
from rmkit.model import attention
from rmkit.model.loss import PairSums
from rmkit.scorer import load_scorer
from rmkit.train import main
from support.oracle import random_pairs, reward_model, tiny_classifier
from support.victim import save_lm, write_rows

pytestmark = pytest.mark.gpu
CARD = torch.device("cuda")
HEAD_WIDTHS = {"llama": 128, "qwen3": 128, "gemma3_text": 64}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a tiny causal LM (lm/) and real little preferences."""
    folder = tmp_path_factory.mktemp("world")
    save_lm(folder / "lm")
    write_rows(folder / "train.jsonl", [row for _, row in zip(range(24), demo.preferences("train"), strict=False)])
    return folder


def flags(world: Path, cache: Path, *more: str) -> list[str]:
    """A run of six steps."""
    out = ["--exp-name", "r", "--cache-dir", str(cache), "--model.name", str(world / "lm")]
    out += [
        "--data.train",
        str(world / "train.jsonl"),
        "--batch.pairs",
        "8",
        "--optim.epochs",
        "2",
        "--optim.lr",
        "1e-3",
    ]
    return [*out, *more]


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss/train"] for row in rows if "loss/train" in row]


def step(model, batch) -> None:
    model.zero_grad()
    model(batch, LossConfig(), 8.0).loss.backward()


@pytest.mark.parametrize("layout", ["trie", "packed"])
@pytest.mark.parametrize("family", HEAD_WIDTHS)
def test_a_microbatch_waits_for_nothing(family, layout):
    """CUDA's own count, where tests/test_dry_cuda.py has that of a device that computes nothing. Under padded
    transformers asks its mask whether all of it is seen (masking_utils, `padding_mask.all()`), but not of fake tensors.
    """
    sequences, pairs = random_pairs(np.random.default_rng(0), 8)
    model = reward_model(tiny_classifier(family, head_dim=HEAD_WIDTHS[family]), layout, bf16=True).to(CARD)
    chosen, rejected = zip(*pairs, strict=True)
    batch = pack(sequences, chosen, rejected, layout=layout)
    step(model, batch.to(CARD))  # kernels are compiled and loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, batch.to(CARD))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_recomputation_takes_less_memory():
    rng, peaks = np.random.default_rng(0), []
    sequences = [rng.integers(3, 97, 512) for _ in range(16)]
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "max_position_embeddings": 1024}
    batch = pack(sequences, range(8), range(8, 16)).to(CARD)
    for recomputed in (False, True):
        model = reward_model(tiny_classifier("llama", head_dim=64, **sizes), "trie", bf16=True).to(CARD).train()
        if recomputed:
            model.classifier.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        step(model, batch)
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, batch)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del model
    assert peaks[1] < 0.6 * peaks[0], peaks


def test_as_many_segments_as_the_planner_allows():
    """Flash attention's backward keeps 128 rows of scratch for each, and counts them in 32 bits: 2^30 numbers here."""
    rng, heads, kv, dim = np.random.default_rng(0), 32, 8, 128
    prompt = rng.integers(3, 90, 8)
    batch = pack([np.concatenate([prompt, [i, i]]) for i in range(SEGMENTS)]).to(CARD)
    assert len(batch.segments.lengths) == SEGMENTS
    g = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, h, batch.tokens, dim, generator=g).to(CARD, torch.bfloat16) for h in (heads, kv, kv)]
    upstream = torch.randn(1, batch.tokens, heads, dim, generator=g).to(CARD, torch.bfloat16)

    def found(function, dtype):
        inputs = [x.detach().to(dtype).requires_grad_() for x in leaves]
        out = function(*inputs)
        return [out, *torch.autograd.grad(out, inputs, upstream.to(dtype))]

    def plain(q, k, v):
        return attention._per_segment(q, k, v, batch.segments, dim**-0.5, None, None)

    def ours(q, k, v):
        return attention.attend(None, q, k, v, segments=batch.segments)[0]

    truth, bar = found(plain, torch.float64), found(plain, torch.bfloat16)
    for name, a, b, t in zip(("out", "query", "key", "value"), found(ours, torch.bfloat16), bar, truth, strict=True):
        assert (a.double() - t).norm() <= 2 * (b.double() - t).norm() + 1e-3 * t.norm(), name


def test_the_demo_learns_and_its_model_scores_the_same_on_both_devices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # train, label and evaluate find one another by runs/demo
    assert main([]) == 0
    rows = [json.loads(row) for row in (tmp_path / "runs/demo/metrics.jsonl").read_text().splitlines()]
    # 0.984 on a CPU in float32 (README).
    assert [row for row in rows if "loss/eval" in row][-1]["rewards_eval/accuracies"] >= 0.9
    turns = [[*row["prompt"], *row["chosen"]] for _, row in zip(range(16), demo.preferences("test"), strict=False)]
    final = tmp_path / "runs/demo/FINAL"
    fp32, cpu = (load_scorer(final, device=d, precision="fp32").score(turns) for d in (CARD, torch.device("cpu")))
    np.testing.assert_allclose(fp32, cpu, rtol=1e-4, atol=1e-4 * np.abs(cpu).max())
    bf16 = load_scorer(final, device=CARD, precision="bf16").score(turns)
    assert 0 < np.abs(np.subtract(bf16, cpu)).max() < 0.05 * np.abs(cpu).max()
    assert label.main([]) == 0
    assert evaluate.main([]) == 0


def test_a_run_goes_on_from_its_checkpoint(world, tmp_path):
    """Attention's gradients are added up in any order, so runs agree to what bf16 tells, not to the bit."""
    assert main(flags(world, tmp_path / "whole")) == 0
    arguments = flags(world, tmp_path / "halves", "--save.every", "3")
    read, reads = PairSums.as_dict, []

    def crash_at_5(sums):
        reads.append(1)
        if len(reads) == 5:
            raise KeyboardInterrupt
        return read(sums)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairSums, "as_dict", crash_at_5)
        assert main(arguments) == 130
    assert main([*arguments, "--resume"]) == 0
    assert (tmp_path / "halves/r/FINAL/model.safetensors").is_file()
    np.testing.assert_allclose(losses(tmp_path / "halves/r"), losses(tmp_path / "whole/r"), rtol=0.02)


RECOMPUTED = ("--model.gradient-checkpointing", "on")


@pytest.mark.parametrize("more", [("--parallel.cpu-offload",), RECOMPUTED, ("--lora.rank", "4")], ids=lambda m: m[0])
def test_what_trains_otherwise_trains_the_same(world, tmp_path, more):
    if "--lora.rank" in more:
        pytest.importorskip("peft")
    assert main(flags(world, tmp_path / "plain", "--save.every", "3")) == 0
    assert main(flags(world, tmp_path / "other", "--save.every", "3", *more)) == 0
    assert (tmp_path / "other/r/FINAL/model.safetensors").is_file()
    first = [losses(tmp_path / way / "r")[0] for way in ("plain", "other")]
    assert first[1] == pytest.approx(first[0], rel=0.02)


@pytest.fixture(scope="module")
def uncompiled(world, tmp_path_factory) -> dict[str, np.ndarray]:
    """Losses of the steps in float32 and in bf16, with no layer compiled."""
    found = {}
    for precision in ("fp32", "bf16"):
        cache = tmp_path_factory.mktemp(precision)
        assert main(flags(world, cache, "--model.compile", "off", "--model.precision", precision)) == 0
        found[precision] = np.array(losses(cache / "r"))
    return found


def within_what_bf16_errs(found: np.ndarray, plain: np.ndarray, truth: np.ndarray) -> bool:
    """The ladder's bound: twice the error of what is plain, by norms."""
    return norm(found - truth) <= 2 * norm(plain - truth) + 1e-3 * norm(truth)


def test_compiled_layers_give_the_losses_of_the_others(world, tmp_path, uncompiled):
    for precision in ("fp32", "bf16"):
        assert main(flags(world, tmp_path / precision, "--model.compile", "on", "--model.precision", precision)) == 0
    fp32, bf16 = (np.array(losses(tmp_path / precision / "r")) for precision in ("fp32", "bf16"))
    # Either may err 1e-5; from the second step on Adam's division makes more of it.
    assert fp32[0] == pytest.approx(uncompiled["fp32"][0], rel=2e-5)
    assert within_what_bf16_errs(bf16, uncompiled["bf16"], uncompiled["fp32"])


def test_bf16_weights_and_8_bit_states_train(world, tmp_path, uncompiled):
    low = ("--optim.states", "8bit", "--model.weights", "bf16", "--save.every", "3", "--model.compile", "off")
    assert main(flags(world, tmp_path, *low)) == 0
    found = np.array(losses(tmp_path / "r"))
    assert within_what_bf16_errs(found, uncompiled["bf16"], uncompiled["fp32"])
    assert found[-3:].mean() < found[:3].mean()
    with safe_open(tmp_path / "r/FINAL/model.safetensors", "pt") as final:
        assert {final.get_tensor(key).dtype for key in final.keys()} == {torch.bfloat16, torch.float32}  # noqa: SIM118


def test_a_deterministic_run_repeats_bit_for_bit(world, tmp_path):
    """In processes of their own: cuBLAS reads how it is to sum when CUDA is first used."""
    finals = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "rmkit.train", *flags(world, tmp_path / name, "--deterministic")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        finals.append((tmp_path / name / "r/FINAL/model.safetensors").read_bytes())
    assert finals[0] == finals[1]
    assert losses(tmp_path / "one/r") == losses(tmp_path / "two/r")


def test_nccl_with_one_process(world, tmp_path):
    """torchrun, the process group of both devices, FSDP2 with its shards on the host, a checkpoint and the end."""
    arguments = flags(world, tmp_path, "--parallel.cpu-offload", "--save.every", "3")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run([*launcher, "-m", "rmkit.train", *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert len(losses(tmp_path / "r")) == 6
    assert (tmp_path / "r/FINAL/model.safetensors").is_file()
