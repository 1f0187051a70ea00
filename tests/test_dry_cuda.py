"""What a machine without a GPU proves of the CUDA path: the whole step on a device that computes nothing.

dtype, device, shape, memory, waits and compilations are real, numbers are not. The checks (support/dry_cuda/checks.py)
run in two processes of their own, because the device must be there before torch.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from support.dry_cuda.build import shared

HERE = Path(__file__).parent
WITHIN = 600.0
"""Seconds of one check, at most"""

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="the pretended CUDA device is built with g++"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="it stands in for CUDA in a build of torch for CPUs"),
]


def has_ptxas() -> bool:
    found = find_spec("triton")
    return found is not None and (Path(found.origin).parent / "backends" / "nvidia" / "bin" / "ptxas").is_file()


def run(pretended: Future, group: list[tuple[str, ...]]) -> list[dict]:
    """What each check of a group found, in one process: of support/dry_cuda/checks.py, or another module by itself."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "FAKE_CUDA": str(pretended.result()), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    module, *arguments = group[0]
    if module == "checks":
        arguments = [json.dumps([name, *map(json.loads, values)]) for _, name, *values in group]
    command = [sys.executable, "-W", "ignore", "-m", f"support.dry_cuda.{module}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WITHIN * len(group))
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "null"))]
    assert len(found) == len(group), done.stderr[-4000:]
    assert None not in found, done.stderr[-4000:]
    return found


@pytest.fixture(scope="module")
def checks(request, tmp_path_factory):
    """Every check that a selected test reads, already on its way."""
    asked = {item.callspec.params["found"]: None for item in request.session.items if item.path == Path(__file__)}
    together = [check for check in asked if check[0] == "checks"]
    groups = [together[::2], together[1::2], *([check] for check in asked if check not in together)]
    with ThreadPoolExecutor(1) as compiler, ThreadPoolExecutor(2) as pool:
        pretended = compiler.submit(shared, tmp_path_factory)
        found = {}
        for group in filter(None, groups):
            of_group = pool.submit(run, pretended, group)
            found |= {check: (of_group, i) for i, check in enumerate(group)}
        yield found


@pytest.fixture
def found(request, checks) -> dict:
    process, place = checks[request.param]
    return process.result()[place]


def reads(*check: str, **marks):
    """The test reads what this check finds: a module of support/dry_cuda and its arguments."""
    return pytest.mark.parametrize("found", [pytest.param(check, id=" ".join(check), **marks)], indirect=True)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(("checks", "families"), id="each family"),
        pytest.param(("checks", "families", "true"), id="all ways", marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_a_step_and_scoring_fit_in_dtype_device_and_shape_and_wait_for_nothing(found):
    assert len(found) >= 13
    assert {way: wrong for way, wrong in found.items() if wrong} == {}


@reads("checks", "waits")
def test_no_microbatch_waits_for_the_device_and_a_step_reads_it_once(found):
    assert found["microbatches"] > 1
    assert found["waits"] == {}
    assert found["reads"] == 1


@reads("checks", "peak", "16384")
def test_llama_3_8b_with_recomputation_fits_one_gpu(found):
    """Float32 weights, gradients and Adam's state; an H200 has 139.8 GiB. 231.7 without what recomputation saves."""
    assert found["parameters"] == 7_504_928_768
    assert found["tokens"] > 15_000
    assert found["placed"] < 28.1, "float32 weights are made one at a time"
    assert 120.0 < found["peak"] <= 125.0


@reads("checks", "peak", "16384", '"bf16"', '"8bit"', marks=pytest.mark.slow)
def test_llama_3_8b_with_bf16_weights_and_8_bit_states_takes_less_than_52_gib(found):
    """6 bytes a parameter: weights 2, gradients 2, moments 2; the rest is what it holds while it computes."""
    assert found["parameters"] == 7_504_928_768
    assert found["tokens"] > 15_000
    assert found["placed"] < 14.1
    assert 42.0 < found["peak"] <= 52.0


@reads("checks", "peak", "16384", '"auto"', '"fp32"', "64", marks=pytest.mark.slow)
def test_llama_3_8b_with_lora_of_rank_64_takes_less_than_35_gib(found):
    """The frozen bf16 weights stay bf16 without a flag."""
    assert found["parameters"] == 7_504_928_768 + 32 * 64 * 81_920
    assert found["placed"] < 14.8
    assert 20.0 < found["peak"] <= 35.0


@reads("checks", "sharded", "4", "4096", "false", '"bf16"', '"8bit"')
def test_shards_of_bf16_weights_and_8_bit_states_are_trained_and_saved(found):
    assert_trained_and_saved(found, "cuda", tensors=39, low=True)


@reads("checks", "sharded", "4", "4096", "true", '"bf16"', '"8bit"', marks=pytest.mark.slow)
def test_offloaded_shards_of_bf16_weights_and_8_bit_states_are_trained_and_saved(found):
    assert_trained_and_saved(found, "cpu", tensors=39, low=True)


@reads("checks", "sharded", "32", "16384", "false", marks=pytest.mark.slow)
def test_llama_3_8b_under_fsdp_takes_a_quarter_of_its_state_on_each_of_four_gpus(found):
    assert 40.0 < found["peak"] <= 45.0
    assert found["peak with saving"] == found["peak"]
    assert_trained_and_saved(found, "cuda", tensors=291)


@reads("checks", "sharded", "4", "4096", "true")
def test_offloaded_shards_are_trained_and_saved_with_their_self_check(found):
    assert_trained_and_saved(found, "cpu", tensors=39)


def assert_trained_and_saved(found: dict, device: str, tensors: int, low: bool = False) -> None:
    dtypes = ["bfloat16"] * low + ["float32"]  # the final norm and the head are float32 always
    assert found["gradients"] == [f"DTensor torch.{dtype} {device}" for dtype in dtypes]
    assert found["loss"] == "torch.float32 cuda"
    assert found["copies"] == ["cpu"]
    assert found["saved"] == tensors
    assert found["scores"] == 3


ONCE = [2, *[3] * 5]
"""Compilations after a scoring pass and after each of five batches of training, for five layers: the first layer in
scoring, whose input asks for a gradient in vain, the layers above it in scoring, and all of them in training"""


@reads("checks", "compiled", '"eager"')
def test_a_layer_compiles_once_for_all_layers_and_batches(found):
    assert found["frames"] == ONCE


@reads("checks", "compiled", '"eager"', '"bf16"')
def test_a_layer_of_bf16_weights_compiles_once_for_all_layers_and_batches(found):
    assert found["frames"] == ONCE


@reads("checks", "compiled", '"eager"', '"bf16"', "2")
def test_a_layer_with_lora_compiles_once_for_all_layers_and_batches(found):
    assert found["frames"] == ONCE


@reads("checks", "compiled", '"aot_eager"', marks=pytest.mark.slow)
def test_a_compiled_layer_with_its_backward_is_compiled_for_no_later_batch(found):
    assert found["frames"][1:] == [found["frames"][1]] * 5


@reads("traffic", marks=pytest.mark.slow)
def test_a_compiled_layer_of_llama_3_8b_moves_less_than_half_of_what_it_moves_op_by_op(found):
    """GB besides matrix products and attention. Counted by hand, for the forward pass: what no fusion can save is its
    floor; the operators that transformers' layer runs under autocast, each reading and writing all it has, are eager.
    """
    eager, fused = found["eager"], found["compiled"]
    wide, inner = (found["tokens"] * size / 1e9 for size in (4096 * 4, 14_336 * 2))  # float32 stream, bf16 MLP
    half, keys = wide / 2, 1024 * 2 / 1e9  # bf16; the keys of a token, as many as its values
    casts = (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14_336) * (4 + 2) / 1e9  # of weights
    gathered = 2 * keys * (found["tokens"] + found["keys"])
    norms, rounded = 2 * 7 * wide, 5 * (wide + half)  # pow, mean, two products; for q, k, v, gate and up each
    rotated = 1.25 * (5 * half + 5 * wide + wide + half)  # queries and a quarter of them in keys; rounded at last
    by_op = casts + gathered + norms + rounded + rotated + 2 * (2 * wide + half) + 5 * inner
    assert eager["forward"] == pytest.approx(by_op, rel=0.02)
    # Read stream, write norm; q and k both ways; read stream and attention, write norm; read these and MLP, write.
    floor = casts + gathered + (wide + half) + 2.5 * half + (wide + 2 * half) + (2 * wide + 2 * half) + 3 * inner
    assert floor <= fused["forward"] < 1.1 * floor
    assert fused["total"] < min(18.0, eager["total"] / 2)


@pytest.mark.skipif(not has_ptxas(), reason="this Triton brings no assembler for GPUs")
@reads("registers")
def test_no_kernel_spills_registers(found):
    assert len(found) == 44
    for kernel, counted in found.items():
        assert counted["registers"] <= 144, kernel
        # float32 end tokens on Hopper: 8 bytes, and no training has float32 hidden states.
        assert counted["spilled"] <= (0 if "bf16" in kernel else 8), kernel
