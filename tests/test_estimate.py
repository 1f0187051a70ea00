"""The estimate of memory and FLOPs: beside what was counted, and as the formulas of the papers have it."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from campaigns.memory import COLUMNS, GIB, MODELS, WAYS, WITHIN, counted, estimated
from rmkit.batch.trie import pack
from rmkit.model import lora
from rmkit.model.family import skeleton
from rmkit.training.estimate import STATES, Load, Way, load_of, memory, shape_of, trained, work
from support.decoders import LLAMA_3_8B, LLAMA_32_1B
from support.dry_cuda.build import shared
from support.oracle import FAMILIES, TINY

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "memory.json"
LOAD = Load(tokens=4096, pairs=2_000_000, gathered=6000, segments=16, ends=16, end_keys=6000)


def tiny(family: str = "llama", **extra):
    return AutoConfig.for_model(family, **{**TINY, **FAMILIES[family], **extra})


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_model(family):
    shape = shape_of(tiny(family))
    assert shape.parameters == sum(p.numel() for p in skeleton(tiny(family)).parameters())
    assert trained(shape, Way()) == shape.parameters


def test_a_configuration_that_makes_no_model_is_named():
    with pytest.raises(ValueError, match="its configuration cannot be used"):
        shape_of(tiny(rope_parameters={"rope_type": "defasampleult", "rope_theta": 1e4}))


def test_trained_parameters_under_lora_are_those_of_peft():
    pytest.importorskip("peft")
    from rmkit.config import LoraConfig

    for targets in ((), ("q_proj", "down_proj")):
        classifier = skeleton(tiny())
        lora.put(classifier, LoraConfig(rank=4, targets=targets), "demo", None, 0, lambda text: None)
        counted = sum(p.numel() for p in classifier.parameters() if p.requires_grad)
        assert trained(shape_of(tiny()), Way(rank=4, targets=targets)) == counted


@pytest.mark.skipif(not RESULTS.exists(), reason="python tests/campaigns/memory.py writes it")
def test_every_counted_peak_is_met():
    """What the campaign counted on the device that computes nothing, against the estimate as it is now."""
    rows = json.loads(RESULTS.read_text())["rows"]
    assert len(rows) == len(WAYS)
    for row in rows:
        assert estimated(row, row["load"]).peak / GIB == pytest.approx(row["counted"], rel=WITHIN), row


@pytest.fixture(scope="module")
def pretended(tmp_path_factory) -> Future:
    built = Future()
    built.set_result(shared(tmp_path_factory))
    return built


@pytest.mark.skipif(shutil.which("g++") is None or torch.version.cuda is not None, reason="needs g++, torch for CPUs")
@pytest.mark.parametrize("row", [("8bit", "bf16", True, 0, 1, 4096), ("fp32", "fp32", False, 0, 4, 4096)])
def test_a_peak_is_met(pretended, monkeypatch, row):
    """Four layers of the 1B shape, with few words; the campaign has them all."""
    small = {**LLAMA_32_1B, "num_hidden_layers": 4, "vocab_size": 32_000}
    monkeypatch.setitem(MODELS, "small", ("llama", small))
    row = dict(zip(COLUMNS, ("small", *row), strict=True))
    found = counted(row, pretended)
    assert estimated(row, found["load"]).peak / GIB == pytest.approx(found["peak"], rel=WITHIN)


@pytest.mark.slow
def test_the_campaign(tmp_path):
    out = tmp_path / "memory.json"
    command = [sys.executable, Path(__file__).parent / "campaigns" / "memory.py", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(out.read_text())["rows"]) == len(WAYS)


def test_states_weights_and_shards_take_their_bytes():
    shape = shape_of(tiny())
    n = shape.parameters
    for states, size in STATES.items():
        assert memory(shape, Way(states=states), LOAD).states == n * size
    assert memory(shape, Way(), LOAD).weights == 4 * n
    half = memory(shape, Way(weights="bf16"), LOAD)
    assert (half.weights, half.gradients) == (2 * n, 2 * n)
    quarter = memory(shape, Way(shards=4, sharded=True), LOAD)
    assert (quarter.weights, quarter.states) == (n, 2 * n)
    offloaded = memory(shape, Way(sharded=True, offload=True), LOAD)
    assert (offloaded.weights, offloaded.states, offloaded.host) == (0, 0, 16 * n)


def test_matrices_of_4_bits_take_what_qlora_says_and_all_else_stays():
    """0.127 bits a parameter beside the 4, and bf16 for embedding, norms and the rest."""
    shape = shape_of(tiny())
    way = Way(weights="bf16", rank=4)
    matrices, four_bit = shape.layers * shape.matrices, replace(way, four_bit=True)
    saved = memory(shape, way, LOAD).weights - memory(shape, four_bit, LOAD).weights
    assert saved == pytest.approx((2 - 4.127 / 8) * matrices, rel=1e-4)
    found = memory(shape_of(AutoConfig.for_model("llama", **LLAMA_3_8B, num_labels=1)), four_bit, LOAD)
    assert found.weights / 1e9 == pytest.approx(6.98 * 4.127 / 8 + 0.526 * 2, rel=0.02)


def test_what_saves_memory_saves_it():
    shape, way = shape_of(tiny(num_hidden_layers=8)), Way()
    peak = memory(shape, way, LOAD).peak
    for other in (replace(way, recompute=True), replace(way, weights="bf16"), replace(way, states="8bit")):
        assert memory(shape, other, LOAD).peak < peak
    assert memory(shape, way, replace(LOAD, tokens=2048, gathered=3000)).peak < peak


def test_one_microbatch_meets_no_earlier_gradients():
    shape = shape_of(tiny())
    once, twice = (memory(shape, Way(), replace(LOAD, tokens=64, microbatches=n)) for n in (1, 2))
    assert once.peak <= twice.peak
    assert once.peak >= 16 * shape.parameters


@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
def test_flops_are_those_that_pytorch_counts(layout):
    """Forward, in float32 by one SDPA call a sequence; PyTorch counts all (query, key) pairs of a call, causal or not,
    so only matrices are compared. Backward is twice that."""
    from support.oracle import reward_model, tiny_classifier

    rng = np.random.default_rng(0)
    said = rng.integers(3, 90, 20)
    sequences = [np.concatenate([said, rng.integers(3, 90, n)]) for n in (9, 14)]
    model = reward_model(tiny_classifier("llama"), layout)
    batch = pack(sequences, [0], [1], layout=layout)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    by_operator = counter.get_flop_counts()["Global"]
    matrices = sum(n for name, n in by_operator.items() if str(name) in ("aten.mm", "aten.addmm"))
    load = load_of(batch)
    counted = work(shape_of(tiny()), Way(bf16=False), load.tokens, 0, load.ends, 0)
    assert counted.model == 3 * matrices


def test_attention_counts_what_each_token_attends_to():
    said = np.arange(5)
    batch = pack([np.concatenate([said, [7, 8]]), np.concatenate([said, [9]])], [0], [1])
    load = load_of(batch)
    assert load.tokens == 8
    assert load.pairs == sum(range(1, 8)) + 6  # the second answer's one token sees six
    assert (load.segments, load.ends, load.end_keys, load.gathered) == (2, 2, 13, 13)
    shape = shape_of(tiny())
    without, with_pairs = (work(shape, Way(), 8, pairs, 2, 13).model for pairs in (0, load.pairs))
    assert with_pairs - without == 3 * 4 * shape.queries * 3 * load.pairs


def test_recomputation_is_a_forward_pass_of_all_layers_but_the_last():
    shape = shape_of(tiny())
    plain, again = work(shape, Way(), 100, 1000, 4, 100), work(shape, Way(recompute=True), 100, 1000, 4, 100)
    assert plain.again == 0
    assert again.model == plain.model
    assert again.again == 2 * 3 * shape.matrices * 100 + 4 * shape.queries * 3 * 1000
