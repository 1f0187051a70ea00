import dataclasses
import json
import math
from pathlib import Path

import pytest

from rmkit.config import (
    BatchConfig,
    DataConfig,
    EvalConfig,
    HubConfig,
    LogConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    SaveConfig,
    TrainConfig,
    to_dict,
)
from rmkit.config_json import from_dict

OTHER = TrainConfig(
    exp_name="x",
    cache_dir="elsewhere",
    seed=2**63 - 1,
    overwrite=True,
    model=ModelConfig(name="a/b", head="binary", precision="bf16", gradient_checkpointing="on"),
    data=DataConfig(train=("a", "b.jsonl"), test=("c",), max_length=2, overlong="keep-end", shuffle=False, workers=3),
    batch=BatchConfig(pairs=1, max_tokens=2, layout="padded", group="none"),
    parallel=ParallelConfig(strategy="fsdp", replicate=0, cpu_offload=True),
    loss=LossConfig(label_smoothing=0.49, center=0.5),
    optim=OptimConfig(lr=1e-6, schedule="cosine", warmup_ratio=1.0, weight_decay=0.0, max_steps=7, epochs=2),
    lora=LoraConfig(rank=3, alpha=0.5, targets=("q_proj", "x"), keep="both"),
    eval=EvalConfig(every=0),
    save=SaveConfig(every=0, keep=0),
    log=LogConfig(to=("wandb", "tensorboard"), project="p"),
    hub=HubConfig(push="me/my-rm", private=True, revision="v1"),
)
PARTS = {
    "model": ModelConfig,
    "data": DataConfig,
    "batch": BatchConfig,
    "parallel": ParallelConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "lora": LoraConfig,
    "eval": EvalConfig,
    "save": SaveConfig,
    "log": LogConfig,
    "hub": HubConfig,
}


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig().resolved(), OTHER], ids=["bare", "demo", "other"])
def test_json_and_back(config):
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_missing_key_takes_its_default():
    assert from_dict({}) == TrainConfig()
    assert from_dict({"optim": {"lr": 0.1}}).optim == OptimConfig(lr=0.1)


def test_an_unknown_key_is_named():
    with pytest.raises(ValueError, match="unknown key 'sed'"):
        from_dict({"sed": 1})
    with pytest.raises(ValueError, match=r"unknown key 'optim\.learning_rate'"):
        from_dict({"optim": {"learning_rate": 1}})


def test_a_wrong_value_in_the_file_is_refused_as_a_flag_is():
    with pytest.raises(ValueError, match=r"^--batch\.pairs 0: "):
        from_dict({"batch": {"pairs": 0}})


WRONG = [
    ("data.max_length", 1),
    ("data.workers", -1),
    ("batch.pairs", 0),
    ("batch.max_tokens", 1),
    ("parallel.replicate", -1),
    ("loss.label_smoothing", 0.5),
    ("loss.label_smoothing", -0.1),
    ("loss.label_smoothing", math.nan),
    ("loss.center", -1.0),
    ("loss.center", math.inf),
    ("optim.lr", 0.0),
    ("optim.lr", -1.0),
    ("optim.lr", math.inf),
    ("optim.lr", math.nan),
    ("optim.warmup_ratio", -0.1),
    ("optim.warmup_ratio", 1.1),
    ("optim.warmup_ratio", math.nan),
    ("optim.weight_decay", -1.0),
    ("optim.weight_decay", math.inf),
    ("optim.max_grad_norm", -1.0),
    ("optim.max_grad_norm", math.nan),
    ("optim.epochs", 0),
    ("optim.max_steps", -1),
    ("eval.every", -1),
    ("save.every", -1),
    ("save.keep", -1),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_refused_by_its_flag(name, value):
    part, key = name.split(".")
    with pytest.raises(ValueError) as caught:
        PARTS[part](**{key: value})
    assert str(caught.value).startswith(f"--{name.replace('_', '-')} {value}: ")


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"replicate": 2}, "--parallel.replicate 2: it belongs to fsdp"),
        ({"cpu_offload": True}, "--parallel.cpu-offload: it belongs to fsdp"),
    ],
)
def test_what_belongs_to_fsdp_is_refused_under_ddp(values, start):
    ParallelConfig(strategy="fsdp", **values)
    ParallelConfig(**values)
    with pytest.raises(ValueError) as caught:
        ParallelConfig(strategy="ddp", **values)
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"seed": -1}, "--seed -1: "),
        ({"seed": 2**63}, f"--seed {2**63}: "),
        ({"cache_dir": "a/" * 257}, "--cache-dir 257 folders deep: "),
        ({"exp_name": "a/b"}, "--exp-name 'a/b': "),
        ({"exp_name": "a\\b"}, "--exp-name "),
        ({"exp_name": ".."}, "--exp-name '..': "),
        ({"exp_name": "."}, "--exp-name '.': "),
        ({"exp_name": ""}, "--exp-name '': "),
        ({"resume": True, "overwrite": True}, "--resume --overwrite: "),
        ({"data": DataConfig(max_length=65), "batch": BatchConfig(max_tokens=64)}, "--data.max-length 65: "),
    ],
)
def test_a_wrong_run_is_refused_by_its_flag(values, start):
    with pytest.raises(ValueError) as caught:
        TrainConfig(**values)
    assert str(caught.value).startswith(start)


def test_values_at_the_edge_are_taken():
    TrainConfig(seed=0, data=DataConfig(max_length=64), batch=BatchConfig(max_tokens=64), resume=True)
    LossConfig(label_smoothing=0.0, center=0.0)
    OptimConfig(warmup_ratio=0.0, max_grad_norm=0.0, weight_decay=0.0)


def test_demo_defaults():
    found = TrainConfig().resolved()
    assert (found.exp_name, found.data.train, found.data.test, found.optim.lr) == ("demo", ("demo",), ("demo",), 2e-3)
    assert found.folder == Path("runs/demo")


@pytest.mark.parametrize("name", ["meta/Llama-3-8B", "/models/Llama-3-8B", "Llama-3-8B/"])
def test_model_defaults(name):
    found = TrainConfig(model=ModelConfig(name=name)).resolved()
    assert (found.data.train, found.data.test, found.optim.lr) == (("ultrabin",), ("ultrabin",), 5e-6)
    assert found.folder == Path("runs/Llama-3-8B-bt")


@pytest.mark.parametrize("name", ["runs/x/FINAL", "x/FINAL/adapter/", "runs/x/checkpoints/step-20", "x", "a/x/FINAL"])
def test_a_model_of_a_run_goes_by_the_name_of_the_run(name):
    assert TrainConfig(model=ModelConfig(name=name)).resolved().exp_name == "x-bt"


def test_what_was_given_stays():
    assert OTHER.resolved() == OTHER
    given = TrainConfig(data=DataConfig(train=("a",))).resolved().data
    assert (given.train, given.test) == (("a",), ())
    assert TrainConfig(data=DataConfig(test=("t",))).resolved().data == DataConfig(train=("demo",), test=("t",))


def test_resolving_twice_changes_nothing():
    once = TrainConfig(model=ModelConfig(name="a/b")).resolved()
    assert once.resolved() == once


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch": 3}, "batch is 3, not an object"),
        ({"batch": {"layout": "zig"}}, "batch.layout is 'zig'"),
        ({"optim": {"lr": "fast"}}, "optim"),
        ({"log": {"to": ["wandb", "mlflow"]}}, "log.to holds 'mlflow'; it can be tensorboard, wandb, trackio"),
        ({"log": {"to": "wandb"}}, "log.to is 'wandb'; it is a list of tensorboard, wandb, trackio"),
        ({"log": {"to": [["wandb"]]}}, r"log.to holds \['wandb'\]"),
        ({"log": {"project": " "}}, "--log.project ' ': set a name"),
    ],
)
def test_a_wrong_value_in_the_file_is_named(values, words):
    with pytest.raises(ValueError, match=words):
        from_dict(values)
