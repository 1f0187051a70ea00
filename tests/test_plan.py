"""--plan.only, the line that a training says of its memory, what auto decides, and a full GPU's sentence."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoConfig

from rmkit import train
from rmkit.config import BatchConfig, ModelConfig, OptimConfig, PlanConfig, TrainConfig
from rmkit.data import demo
from rmkit.training import plan, run
from rmkit.training.estimate import Way, memory, shape_of
from rmkit.training.plan import GIB, Devices, Plan, told_if_full
from rmkit.training.workload import workload
from support.decoders import LLAMA_3_8B
from support.pairs_of import batches_of, random_tokenised, tokenised
from support.victim import write_rows


@pytest.fixture(scope="module")
def shape():
    return shape_of(AutoConfig.for_model("llama", **LLAMA_3_8B, num_labels=1, pad_token_id=0))


def planned(shape, gib: float | None, kind: str = "cuda", **model) -> Plan:
    """A plan of an 8B model on one GPU, with microbatches of 16,000 tokens."""
    w = workload(batches_of(random_tokenised(24)), TrainConfig())
    load = replace(
        w.load, tokens=16_000, pairs=8_000_000, gathered=20_000, segments=40, ends=40, end_keys=20_000, microbatches=4
    )
    devices = Devices(count=1, kind=kind, memory=gib, rate=989.5e12, name="H100 SXM")
    return Plan(
        config=TrainConfig(model=ModelConfig(name="a/b", **model)),
        way=Way(recompute=model.get("gradient_checkpointing") == "on"),
        stored_bf16=True,
        shape=shape,
        devices=devices,
        workload=replace(w, load=load),
        longest=4000,
    )


def test_a_workload_is_what_the_batches_hold():
    batches = batches_of(random_tokenised(40), max_tokens=200)
    config = TrainConfig()
    config = replace(config, batch=replace(config.batch, pairs=8))
    w = workload(batches, config)
    order = plan_order(batches, config)
    packed = [b for start in range(0, 40, 8) for b, _ in batches.microbatches(order[start : start + 8])]
    assert (w.pairs, w.steps) == (40, 5)
    assert w.flat == sum(b.flat_tokens for b in packed)
    assert w.computed >= sum(b.tokens for b in packed)  # counted group by group
    assert w.load.tokens <= 200
    assert w.microbatches == len(packed) / 5
    twice = workload(batches, replace(config, optim=replace(config.optim, epochs=2)))
    assert (twice.pairs, twice.steps, twice.flat) == (80, 10, 2 * w.flat)


def test_the_longest_pair_is_counted_however_few_steps_are_planned():
    rng = np.random.default_rng(0)
    sides = [[rng.integers(3, 97, n) for n in [10] * 40] for _ in "cr"]
    config = replace(TrainConfig(), batch=BatchConfig(pairs=2, max_tokens=400))
    order = plan_order(batches_of(tokenised(*sides)), config)
    sides[0][order[31]] = rng.integers(3, 97, 300)  # no evenly spaced few of 20 steps have it
    batches = batches_of(tokenised(*sides), max_tokens=400)
    whole, few = workload(batches, config), workload(batches, config, 4)
    assert few.load == whole.load
    assert few.load.tokens == 300 + 10 + 2 * 10
    assert few.flat == 40 * 2 * 10, "work is told of the evenly spaced steps"
    stopped = replace(config, optim=OptimConfig(max_steps=15))
    assert workload(batches, stopped, 4).load.tokens == 40, "it is in none of the steps that are run"


def plan_order(batches, config):
    from rmkit.batch.planner import epoch_order

    return epoch_order(batches.items.group, 0, config)


@pytest.mark.parametrize(("gib", "kind", "asked", "decided"), [
    (80.0, "cuda", "auto", "on"),
    (400.0, "cuda", "auto", "off"),
    (80.0, "cuda", "off", "off"),
    (400.0, "cuda", "on", "on"),
    (None, "cuda", "auto", "off"),
    (None, "cpu", "auto", "off"),
])  # fmt: skip
def test_auto_recomputes_where_the_step_would_not_fit_without(shape, gib, kind, asked, decided):
    found = planned(shape, gib, kind, gradient_checkpointing=asked).decided()
    assert found.config.model.gradient_checkpointing == decided
    assert found.way.recompute == (decided == "on")


def test_the_line_of_a_training(shape):
    line = planned(shape, 139.8).decided().line()
    assert line.startswith("memory, estimated: 12")
    assert "GiB of 139.8 on each GPU (weights 28.0 GiB, gradients 28.0 GiB, Adam 55.9 GiB, activations 1" in line
    on_cpu = planned(shape, None, "cpu").line()
    assert on_cpu == "memory: weights, gradients and Adam's state take 111.8 GiB, activations beside"


def test_offers_fit_and_are_the_cheapest_first(shape):
    found = planned(shape, 80.0)
    offers = list(found.offers())
    assert offers
    costs = ["gradient-checkpointing", "max-tokens", "states", "weights", "lora", "with", "offload"]
    dearest = [max(i for flag in o.flags for i, word in enumerate(costs) if word in flag[0]) for o in offers]
    assert dearest == sorted(dearest)
    assert offers[0].shown.split()[::2] == ["--model.gradient-checkpointing", "--batch.max-tokens", "--optim.states"]
    for offer in offers:
        assert memory(shape, offer.way, offer.load).peak / GIB * 1.05 + 1 <= 80
    kinds = [{flag[0] for flag in o.flags} for o in offers]
    assert not any(a < b for a in kinds for b in kinds)
    assert list(planned(shape, 2.0).offers()) == []


def test_a_full_gpu_is_told_in_a_sentence(shape):
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("CUDA error: out of memory")):
        with (
            pytest.raises(
                ValueError, match=r"the memory of the GPU is full; the estimate was .* of 80.0: give --"
            ) as e,
            told_if_full(planned(shape, 80.0)),
        ):
            raise error
        assert "\n" not in str(e.value)
    cause = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(ValueError, match=r"full; the estimate .* give --"), told_if_full(planned(shape, 80.0)):
        raise ValueError("the weights could not be loaded") from cause
    with pytest.raises(ValueError, match=r"^no such file$"), told_if_full(planned(shape, 80.0)):
        raise ValueError("no such file")
    with pytest.raises(RuntimeError, match="something else"), told_if_full(planned(shape, 80.0)):
        raise RuntimeError("something else")
    with pytest.raises(ValueError, match="take a smaller model"), told_if_full(planned(shape, 2.0)):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_rank_says_that_it_is_the_one(shape, monkeypatch):
    monkeypatch.setattr(plan, "ranks", lambda: 4)
    monkeypatch.setattr(plan, "rank", lambda: 2)
    with pytest.raises(ValueError, match=r"^rank 2: the memory of the GPU is full"), told_if_full(planned(shape, 80.0)):
        raise torch.OutOfMemoryError("CUDA out of memory")


def said(*flags: str, monkeypatch) -> tuple[int, str]:
    out = io.StringIO()
    monkeypatch.setattr("rmkit.cli.Console", lambda **_: Console(file=out, width=200, color_system=None))
    return train.main([*flags]), out.getvalue()


def test_the_command_needs_no_weights_and_leaves_nothing(tmp_path, monkeypatch):
    model, data = tmp_path / "model", tmp_path / "pairs.jsonl"
    model.mkdir()
    values = {**LLAMA_3_8B, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (model / "config.json").write_text(json.dumps(values))
    demo.tokenizer().save_pretrained(model)
    rows = [{"prompt": f"say {i}", "chosen": "ab" * (i + 1), "rejected": "b"} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    given = ["--plan.only", "--model.name", str(model), "--data.train", str(data), "--batch.pairs", "16"]
    status, told = said(*given, "--plan.gpus", "1", "--plan.memory", "80", monkeypatch=monkeypatch)
    assert status == 0
    for part in ("7,504,928,768 parameters", "40 in 3 steps of 16", "55.9 GiB, fp32", "1 x H100 SXM, 80.0 GiB each"):
        assert part in told
    assert "it does not fit" in told
    assert "--optim.states 8bit" in told
    assert not (tmp_path / "runs").exists()
    status, told = said(*given, monkeypatch=monkeypatch)
    assert status == 0
    assert "activations are estimated for GPUs alone" in told


def test_a_plan_of_4_bit_weights(tmp_path, monkeypatch):
    values = {**LLAMA_3_8B, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "hello", "chosen": "a" * 4000, "rejected": "b"}])
    given = f"--plan.only --plan.gpus 1 --data.train {tmp_path}/pairs.jsonl --model.name {tmp_path} --lora.rank 16"
    given = [*given.split(), "--model.load", "4bit", "--lora.keep", "adapter"]
    status, told = said(*given, "--plan.memory", "24", monkeypatch=monkeypatch)
    assert status == 0
    assert "4.5 GiB, 4-bit matrices, else bf16" in told
    assert "it fits" in told
    status, told = said(*given, "--plan.memory", "2", monkeypatch=monkeypatch)
    assert status == 0
    assert "no flags make it fit" in told, "fsdp cannot shard them: neither more GPUs nor the host's memory help"


def test_a_configuration_alone_is_enough_for_a_plan(tmp_path, monkeypatch, capsys):
    model, data = tmp_path / "model", tmp_path / "pairs.jsonl"
    model.mkdir()
    (model / "config.json").write_text(
        json.dumps({**LLAMA_3_8B, "architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    )
    sides = [[f"word {i} and another", f"word {i}"] for i in range(8)]
    write_rows(data, [{"prompt": "hello", "chosen": chosen, "rejected": rejected} for chosen, rejected in sides])
    given = ["--model.name", str(model), "--data.train", str(data), "--cache-dir", str(tmp_path / "runs")]
    status, told = said("--plan.only", *given, monkeypatch=monkeypatch)
    assert status == 0
    assert "has no tokenizer: tokens are guessed as bytes / 4" in told
    texts = [f"<s>user: hello\n\nassistant: {side}</s>" for pair in sides for side in pair]
    assert f"{sum(-(-len(text) // 4) for text in texts):,} flat" in told
    assert said(*given, monkeypatch=monkeypatch)[0] == 2
    refused = " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    assert "no tokenizer is there; put its tokenizer.json beside config.json" in refused


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"only": True, "gpus": 0}, "--plan.gpus 0: set at least 1"),
        ({"only": True, "memory": -1.0}, "--plan.memory -1.0: set a positive number"),
        ({"memory": 80.0}, "--plan.memory 80.0: it is for a plan; set --plan.only too"),
        ({"gpus": 2}, "--plan.gpus 2: it is for a plan"),
        ({"only": True, "mfu": 0.0}, "--plan.mfu 0.0: set a share"),
    ],
)
def test_wrong_flags(given, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        PlanConfig(**given)


def test_a_folder_without_a_configuration(tmp_path, capsys):
    assert train.main(["--plan.only", "--model.name", str(tmp_path)]) == 2
    assert "no model configuration was found" in " ".join(capsys.readouterr().err.replace("\u2502", " ").split())


@pytest.mark.parametrize(
    ("module", "name"),
    [(run, "build_model"), (run, "distribute"), (run, "adamw"), (train, "train_step"), (train, "write_model")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_full_gpu_ends_the_program_with_status_2(tmp_path, monkeypatch, capsys, module, name):
    """From where weights are read to where they are saved."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, name, full)
    rows = [{"prompt": f"reverse {word}", "chosen": word[::-1], "rejected": word} for word in ("abc", "lamb", "edge")]
    write_rows(tmp_path / "a.jsonl", rows)
    flags = ["--data.train", str(tmp_path / "a.jsonl"), "--batch.pairs", "2", "--data.workers", "1"]
    assert train.main(["--cache-dir", str(tmp_path), *flags]) == 2
    told = " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    assert "the memory of the GPU is full" in told
    assert "Traceback" not in told
