"""--model.load 4bit: what is refused, what from_pretrained is given, and what the folder says."""

import importlib.util
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rmkit.config import LoraConfig, ModelConfig, ParallelConfig, PlanConfig, TrainConfig
from rmkit.distributed.sharding import _placed
from rmkit.model import quantised
from rmkit.model.pretrained import build_model, load_config
from rmkit.storage.self_check import verify
from support.oracle import TINY, tiny_classifier
from support.saved import TOKENIZER, small, written

ADAPTER = LoraConfig(rank=4, keep="adapter")


def asked(name="a/b", lora=ADAPTER, **more) -> TrainConfig:
    precision = more.pop("precision", "auto")
    return TrainConfig(model=ModelConfig(name=str(name), load="4bit", precision=precision), lora=lora, **more)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"lora": LoraConfig()}, "set --lora.rank too"),
        ({"lora": LoraConfig(rank=4)}, "set --lora.keep adapter"),
        ({"lora": LoraConfig(rank=4, keep="both")}, "set --lora.keep adapter"),
        ({"name": "demo", "lora": LoraConfig(rank=4)}, "the demo model is drawn"),
        ({"parallel": ParallelConfig(strategy="fsdp")}, "set --parallel.strategy ddp"),
        ({"parallel": ParallelConfig(cpu_offload=True)}, "set --parallel.strategy ddp"),
        ({"parallel": ParallelConfig(replicate=0)}, "set --parallel.strategy ddp"),
    ],
)
def test_flags_that_do_not_go_with_it_are_refused(given, told):
    with pytest.raises(ValueError, match=rf"^--model\.load 4bit: .*{told}"):
        asked(**given)


def library(monkeypatch, found: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if found else None)


def test_a_machine_that_cannot_do_it_is_told_before_weights_are_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^--model\.load 4bit: it needs a GPU"):
        quantised.check(asked(), 1)
    library(monkeypatch, False)
    with pytest.raises(ValueError, match=r"^--model\.load 4bit: .*pip install bitsandbytes$"):
        quantised.check(asked(), 1)
    library(monkeypatch, True)
    quantised.check(asked(), 1)
    with pytest.raises(ValueError, match=r"^--model\.load 4bit: fsdp, .*set --parallel\.strategy ddp$"):
        quantised.check(asked(), 2)
    quantised.check(asked(parallel=ParallelConfig(strategy="ddp")), 2)
    quantised.check(TrainConfig(), 2)


def test_a_plan_needs_nothing_here_but_gpus_that_can_do_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    quantised.check(asked(plan=PlanConfig(only=True, gpus=1, memory=80.0)), 1)
    with pytest.raises(ValueError, match=r"^--model\.load 4bit: fsdp, .*set --parallel\.strategy ddp$"):
        quantised.check(asked(plan=PlanConfig(only=True, gpus=2)), 1)
    quantised.check(asked(plan=PlanConfig(only=True, gpus=2), parallel=ParallelConfig(strategy="ddp")), 1)


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.bfloat16), ("fp32", torch.float32)])
def test_from_pretrained_is_given_nf4_for_all_but_the_head(tmp_path, monkeypatch, precision, dtype):
    architecture = AutoConfig.for_model("llama", **{**TINY, "pad_token_id": None})
    AutoModelForCausalLM.from_config(architecture).save_pretrained(tmp_path)
    given = {}

    def loaded(name, **more):
        given.update(more)
        return tiny_classifier("llama"), {"missing_keys": {"score.weight"}}

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", loaded)
    config = asked(tmp_path, precision=precision)
    model = build_model(config, load_config(str(tmp_path)), 97, 5, lambda text: None)
    asked_for = given["quantization_config"]
    assert asked_for.quantization_method() == "nf4"
    assert (asked_for.load_in_4bit, asked_for.bnb_4bit_use_double_quant) == (True, True)
    assert asked_for.bnb_4bit_compute_dtype == dtype
    assert asked_for.llm_int8_skip_modules == ["score"]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name or "score" in name for name in trained)
    given.clear()
    plain = TrainConfig(model=ModelConfig(name=str(tmp_path)))
    build_model(plain, load_config(str(tmp_path)), 97, 5, lambda text: None)
    assert "quantization_config" not in given


def test_scores_of_4_bit_weights_are_not_asked_of_the_base_as_it_is(tmp_path):
    model = small()
    model.classifier.is_loaded_in_4bit = True
    folder = written(tmp_path / "m", model)
    contract = json.loads((folder / "rmkit.json").read_text())
    assert contract["load"] == "4bit"
    contract["self_check"]["scores"] = [s + 1.0 for s in contract["self_check"]["scores"]]
    (folder / "rmkit.json").write_text(json.dumps(contract))
    with pytest.raises(ValueError, match="the self-check failed"):
        verify(model, TOKENIZER, folder)
    assert "its self-check is not compared" in verify(small(), TOKENIZER, folder)
    assert "load" not in json.loads((written(tmp_path / "plain", small()) / "rmkit.json").read_text())


@pytest.mark.gpu
def test_4_bit_weights_under_lora_learn_and_stay(tmp_path):
    pytest.importorskip("bitsandbytes")
    architecture = AutoConfig.for_model("llama", **{**TINY, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16})
    AutoModelForCausalLM.from_config(architecture).bfloat16().save_pretrained(tmp_path)  # auto keeps these in bf16
    config = asked(tmp_path)
    quantised.check(config, 1)
    model = build_model(config, load_config(str(tmp_path)), 97, 5, lambda text: None)
    assert quantised.is_4bit(model.classifier)
    held = [p for p in model.parameters() if p.dtype == torch.uint8]
    assert len(held) == 7 * TINY["num_hidden_layers"]
    learns(_placed(model, torch.device("cuda")))


def learns(model) -> None:
    """Ten steps on one batch lower its loss, and no frozen weight moves."""
    import numpy as np

    from rmkit.batch.trie import pack
    from rmkit.config import LossConfig, OptimConfig
    from rmkit.training.optim import adamw
    from support.oracle import random_pairs

    sequences, pairs = random_pairs(np.random.default_rng(0), 6)
    batch = pack(sequences, *zip(*pairs, strict=True), layout="trie").to(model.device)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer, losses = adamw(model, OptimConfig(lr=1e-2)), []
    for _ in range(10):
        loss = model(batch, LossConfig(), len(pairs)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
