"""A launcher's settings, an error that becomes everyone's, and what the others say when a process is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rmkit import terminal
from rmkit.config import ModelConfig, ParallelConfig, TrainConfig
from rmkit.distributed import launch
from rmkit.storage.checkpoint import steps_saved
from rmkit.train import main
from support.ranks import run, started
from support.victim import make_world, poison

MINUTE = 60.0


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "w")


def flags(world: Path, cache: Path, *more: str) -> list[str]:
    """A run that goes on until something ends it."""
    given = ["--exp-name", "r", "--cache-dir", str(cache), "--model.name", str(world / "lm"), "--batch.pairs", "8"]
    given += ["--data.train", str(world / "train.jsonl"), "--data.no-shuffle", "--parallel.strategy", "fsdp"]
    return [*given, "--save.every", "0", "--optim.epochs", "100000", *more]


def wait_for_steps(cache: Path, count: int) -> None:
    file, end = cache / "r" / "metrics.jsonl", time.monotonic() + MINUTE
    while not (file.exists() and file.read_text().count("\n") >= count):
        assert time.monotonic() < end, "the run does not start"
        time.sleep(0.02)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_rank_is_named_by_the_other(world, tmp_path, dead):
    """Without a launcher, which would end the others and name the dead one too."""
    with started(2, tmp_path / "said", main, flags(world, tmp_path)) as ranks:
        wait_for_steps(tmp_path, 3)
        os.kill(ranks.processes[dead].pid, signal.SIGKILL)
        statuses = ranks.wait(MINUTE)
    assert statuses[dead] == -signal.SIGKILL
    assert statuses[1 - dead] == 1
    told = ranks.told(1 - dead)
    assert f"rank {dead} has ended" in told
    assert "--resume" in told
    assert "Traceback" not in ranks.err(1 - dead)


def dies_of_a_bug(arguments: list[str]) -> int:
    """Rank 0 finds a fault of ours in its second batch."""
    from rmkit.batch.build import Batches

    pack, done = Batches.pack, []

    def fails(*given):
        done.append(1)
        assert os.environ["RANK"] == "1" or len(done) < 2, "a fault of ours"
        return pack(*given)

    Batches.pack = fails
    return main(arguments)


def test_a_bug_on_one_rank_is_its_traceback_and_a_word_of_the_other(world, tmp_path):
    with started(2, tmp_path / "said", dies_of_a_bug, flags(world, tmp_path)) as ranks:
        assert ranks.wait(MINUTE) == [1, 1]
    assert "a fault of ours" in ranks.err(0)
    assert "rank 0 has ended" in ranks.told(1)


@pytest.mark.parametrize("poisoned", [{"margin": 1e300}, {"weight": 3e38}], ids=["loss", "gradient"])
def test_a_step_that_is_not_finite_on_one_rank_is_refused_by_all(tmp_path, poisoned):
    world = make_world(tmp_path / "w")
    place = poison(world / "train.jsonl", poisoned)
    with started(2, tmp_path / "said", main, flags(world, tmp_path)) as ranks:
        assert ranks.wait(MINUTE) == [2, 2]
    assert "step 1" in ranks.told(0)
    assert place in ranks.told(0)
    assert ranks.err(1) == "", "it is said once"
    assert (tmp_path / "r" / "metrics.jsonl").read_text() == ""


def asked_to_stop(arguments: list[str], rank: int) -> int:
    """One rank alone receives a signal, after its third step."""
    shown = terminal.Progress.show

    def asked(self, done, text):
        shown(self, done, text)
        if done == 3 and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGTERM)

    terminal.Progress.show = asked
    return main(arguments)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(world, tmp_path, rank):
    """The sums of the fourth step tell the others, with no collective of its own."""
    with started(2, tmp_path / "said", asked_to_stop, flags(world, tmp_path), rank) as ranks:
        assert ranks.wait(MINUTE) == [128 + signal.SIGTERM] * 2
    assert "stopped by SIGTERM at step 4: go on with --resume" in ranks.out(0)
    assert steps_saved(tmp_path / "r") == [4]


def without_its_file(arguments: list[str], rank: int) -> int:
    """One rank does not find what the others read."""
    if os.environ["RANK"] == str(rank):
        arguments[arguments.index("--data.train") + 1] = "nowhere.jsonl"
    return main(arguments)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_file_that_one_rank_does_not_find_ends_all(world, tmp_path, rank):
    with started(2, tmp_path / "said", without_its_file, flags(world, tmp_path), rank) as ranks:
        assert ranks.wait(MINUTE) == [2, 2]
    told = ranks.told(0)
    assert "nowhere.jsonl" in told
    assert told.startswith("rank 1: " if rank else "--data.train")
    assert ranks.err(1) == "", "it is said once"


def test_accelerate_launch_with_a_configuration_that_asks_for_other_engines(world, tmp_path):
    """Its two processes are used; its precision and sharding are not, and that is said."""
    wanted = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "use_cpu": True, "num_processes": 2}
    wanted |= {"num_machines": 1, "mixed_precision": "bf16"}
    # Where transformers finds this, every process but the first gets a model without its weights.
    wanted |= {"fsdp_config": {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": True, "fsdp_offload_params": True}}
    file = tmp_path / "accelerate.json"
    file.write_text(json.dumps(wanted))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "-m", "rmkit.train"]
    given = flags(world, tmp_path, "--optim.max-steps", "2", "--parallel.strategy", "ddp")
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for said in ("mixed precision bf16", "FSDP, which is not done: --parallel.strategy ddp holds", "on 2 x cpu"):
        assert said in done.stdout, done.stdout
    steps = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert main(flags(world, tmp_path / "alone", "--optim.max-steps", "2", "--parallel.strategy", "auto")) == 0
    alone = [json.loads(line) for line in (tmp_path / "alone" / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [s["loss/train"] for s in steps] == pytest.approx([s["loss/train"] for s in alone], rel=1e-5)


def allocator(file: Path, given: dict[str, str]) -> None:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        os.environ.pop(name, None)  # of a program that ran in the process of the tests
    os.environ.update(given)
    launch.grow_segments()
    file.write_text(json.dumps([os.environ.get(name) for name in names]))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ["expandable_segments:True", None]),
        ({"PYTORCH_ALLOC_CONF": "x"}, ["x", None]),
        ({"PYTORCH_CUDA_ALLOC_CONF": "x"}, [None, "x"]),
    ],
)
def test_the_allocator_is_told_to_grow_its_segments_unless_the_user_says_otherwise(tmp_path, given, found):
    run(1, tmp_path / "said", allocator, tmp_path / "found", given)
    assert json.loads((tmp_path / "found").read_text()) == found


def overruled(monkeypatch, config: TrainConfig, **environment: str) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return " ".join(launch.overruled(config))


def test_nothing_is_overruled_where_flags_and_configuration_agree(monkeypatch):
    config = TrainConfig(
        model=ModelConfig(precision="bf16", gradient_checkpointing="on"),
        parallel=ParallelConfig(strategy="fsdp", replicate=0, cpu_offload=True),
    )
    asked = {
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "FSDP_OFFLOAD_PARAMS": "true",
        "FSDP_ACTIVATION_CHECKPOINTING": "true",
        "FSDP_SHARDING_STRATEGY": "HYBRID_SHARD",
    }
    assert overruled(monkeypatch, config, **asked) == ""
    told = overruled(monkeypatch, TrainConfig(parallel=ParallelConfig(strategy="ddp")), **asked)
    for flag in ("--model.precision", "--parallel.strategy fsdp", "--parallel.cpu-offload", "--parallel.replicate 0"):
        assert flag in told
    assert "--model.gradient-checkpointing on" in told


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "--parallel.replicate 1"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "mixed precision fp8"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "torch.compile"),
    ],
)
def test_what_no_flag_does_is_said(monkeypatch, variable, value, word):
    assert word in overruled(monkeypatch, TrainConfig(), **{variable: value})


def test_errors_that_come_from_nowhere_else_are_not_taken_for_a_lost_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.lost(RuntimeError("shapes do not fit")) is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launch.lost(RuntimeError("gloo")) is None
