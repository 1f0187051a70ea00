"""Decoders beside the tested families: the exactness ladder for what they run in, and a sentence for the rest."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rmkit.batch.trie import pack
from rmkit.config import BatchConfig, LoraConfig, LossConfig, ModelConfig, ParallelConfig, TrainConfig
from rmkit.data import demo
from rmkit.label import main as label
from rmkit.model.family import EXPERTS, FAMILIES, check_family, check_layout, check_training, context, without_chance
from rmkit.scorer import load_scorer
from rmkit.train import main as train
from rmkit.training.estimate import shape_of
from support.oracle import (
    TINY,
    gradients,
    random_pairs,
    reference_loss,
    reward_model,
    rewards_of,
    run,
    scores_one_by_one,
)
from support.other_families import OTHERS, other_classifier, other_config
from support.victim import write_rows

WAYS = [(kind, "padded") for kind in OTHERS] + [("qwen3_moe", "packed"), *((kind, "trie") for kind in EXPERTS)]


def gap(a, b):
    """Largest difference over the largest magnitude."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(("kind", "layout"), WAYS)
def test_scores_and_gradients_are_those_of_one_sequence_at_a_time_in_float64(kind, layout):
    sequences, pairs = random_pairs(np.random.default_rng(1), 3, longest=12)
    classifier = other_classifier(kind)
    scores = scores_one_by_one(classifier, sequences)
    loss = reference_loss(scores, pairs)
    loss.backward()
    wanted = gradients(classifier)
    model = reward_model(classifier, layout)
    model.zero_grad()
    found_loss, found, _ = run(model, sequences, pairs, layout)
    # Norms, rotary embeddings, routers and state spaces compute in float32 whatever the weights are.
    assert gap(found, scores.detach()) < 1e-6
    assert abs(found_loss / loss.detach() - 1) < 1e-6
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in gradients(model).items():
        assert ((gradient - wanted[name]).abs().max() / largest).item() < 1e-5, name


@pytest.mark.parametrize("kind", ["qwen3_moe", "jamba"])
def test_what_fills_the_rectangle_routes_nothing(kind):
    """Padding has experts too, but takes none away from others, and no balance of experts is in the loss."""
    sequences, pairs = random_pairs(np.random.default_rng(2), 3, longest=12)
    model = reward_model(other_classifier(kind).float(), "padded")
    found = []
    for filler in (0, 5):
        chosen, rejected = zip(*pairs, strict=True)
        batch = pack(sequences, chosen, rejected, layout="padded", pad_token_id=filler)
        found.append(model(batch, LossConfig()))
    # Not bit for bit: another filler sends other numbers of rows to an expert, and on some processors the round-off of
    # a product depends on that. A token that lost its expert would be off by far more than the ladder's bound.
    alone = torch.cat([rewards_of(model, [each], "padded") for each in sequences])
    for filled in found:
        assert gap(filled.rewards, alone) < 1e-5


@pytest.mark.parametrize("layout", ["padded", "trie"])
def test_a_batch_without_sequences_reaches_every_parameter(layout):
    model = reward_model(other_classifier("qwen3_moe").float(), layout)
    loss, scores, _ = model(pack([], layout=layout), LossConfig())
    loss.backward()
    assert scores.shape == (0,)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.fixture(scope="module", params=["qwen3_moe", "jamba"])
def trained(request, tmp_path_factory):
    """A causal LM of a family as its makers save it, trained for two steps as a user does it; the folder."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = other_config(request.param, vocab_size=128, pad_token_id=None, initializer_range=0.1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "lm")
    demo.tokenizer().save_pretrained(folder / "lm")
    write_rows(folder / "rows.jsonl", [row for _, row in zip(range(16), demo.preferences("train"), strict=False)])
    flags = ["--model.name", str(folder / "lm"), "--data.train", str(folder / "rows.jsonl"), "--cache-dir", str(folder)]
    flags += ["--exp-name", "r", "--batch.pairs", "8", "--optim.lr", "1e-2", "--batch.layout", "padded"]
    assert train([*flags, "--save.every", "1"]) == 0
    whole = keys(folder / "r" / "FINAL"), weights(folder / "r" / "FINAL")
    for step in (folder / "r" / "checkpoints" / "step-2", folder / "r" / "FINAL"):
        step.rename(f"{step}-first")
    assert train([*flags, "--save.every", "1", "--resume"]) == 0
    assert whole[0] == keys(folder / "r" / "FINAL")
    again = weights(folder / "r" / "FINAL")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole[1].items()), "resumed is not uninterrupted"
    return folder


def keys(folder):
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        return set(tensors.keys())


def weights(folder):
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a dict)


def test_it_is_trained_resumed_saved_under_its_own_names_and_read_by_transformers_alone(trained):
    final = trained / "r" / "FINAL"
    language_model = {name for name in keys(trained / "lm") if name != "lm_head.weight"}
    assert keys(final) == {*language_model, "score.weight"}
    assert any(".experts.0." in name for name in language_model)
    before, after = weights(trained / "lm"), weights(final)
    assert sum(torch.equal(before[name], after[name]) for name in language_model) < len(language_model) / 4
    contract = json.loads((final / "rmkit.json").read_text())["self_check"]
    model = AutoModelForSequenceClassification.from_pretrained(final).eval()
    with torch.no_grad():
        found = [model(torch.tensor([ids])).logits[0, 0].item() for ids in contract["ids"]]
    assert found == pytest.approx(contract["scores"], abs=1e-5)
    scorer = load_scorer(final, layout="padded")
    assert scorer.score(contract["messages"]) == pytest.approx(contract["scores"], abs=1e-5)


def test_it_labels(trained, capsys):
    samples, out = trained / "samples.jsonl", trained / "out.jsonl"
    write_rows(samples, [{"prompt": "reverse abc", "responses": ["cba", "abc"]}])
    final = str(trained / "r" / "FINAL")
    flags = ["--model", final, "--feedback", "scalar", "--layout", "padded", str(samples), str(out)]
    assert label(flags) == 0
    rewards = [row["reward"] for row in map(json.loads, out.read_text().splitlines())]
    wanted = load_scorer(final, layout="padded").score(prompts=["reverse abc"] * 2, responses=["cba", "abc"])
    assert rewards == pytest.approx(wanted, abs=1e-5)


def test_a_hybrid_says_why_no_trie_and_what_would_do():
    config = other_config("jamba")
    for layout in ("trie", "packed"):
        with pytest.raises(
            ValueError, match=rf"^--batch\.layout {layout}: the model is a jamba\. .*--batch\.layout padded"
        ):
            check_layout(config, layout)
    check_layout(config, "padded")
    check_layout(other_config("qwen3_moe"), "trie")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"lora": LoraConfig(rank=4)}, r"^--lora\.rank 4: the model is a gpt2, .*; set --lora\.rank 0"),
        ({"model": ModelConfig(weights="bf16")}, r"^--model\.weights bf16: .*; set --model\.weights fp32"),
        ({"model": ModelConfig(compile="on")}, r"^--model\.compile on: .*; set --model\.compile off"),
        (
            {"parallel": ParallelConfig(strategy="fsdp")},
            r"^--parallel\.strategy fsdp: .*; set --parallel\.strategy ddp",
        ),
        ({"batch": BatchConfig()}, r"^--batch\.layout trie: the model is a gpt2"),
    ],
)
def test_flags_that_take_the_layers_apart_are_refused(flags, words):
    config = TrainConfig(**{"batch": BatchConfig(layout="padded"), **flags})
    with pytest.raises(ValueError, match=words):
        check_training(config, other_config("gpt2"))
    check_training(TrainConfig(**{"batch": BatchConfig(layout="padded")}), other_config("gpt2"))


def test_what_is_random_in_training_is_refused_for_training():
    config = TrainConfig(model=ModelConfig(name="NAME"), batch=BatchConfig(layout="padded"))
    phimoe = check_family(AutoConfig.for_model("phimoe", **TINY, num_local_experts=4), "NAME")
    with pytest.raises(ValueError, match=r"^--model\.name NAME: it is a phimoe: its routers draw experts at random"):
        check_training(config, phimoe)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bert", "BertForSequenceClassification has a head of its own"),
        ("deberta-v2", "has a head of its own"),
        ("mamba", "transformers has no sequence classifier of it"),
        ("qwen3_5", "give its text model alone"),
        ("t5gemma", "encoder"),
    ],
)
def test_what_scores_no_last_token_is_refused_by_name(kind, words):
    with pytest.raises(ValueError, match=rf"^--model\.name NAME: it is a {kind} model\..*{words}"):
        check_family(AutoConfig.for_model(kind), "NAME")


def test_nothing_random_is_left_in_a_configuration():
    mixtral, gpt2 = other_config("mixtral"), other_config("gpt2")
    without_chance(mixtral)
    without_chance(gpt2)
    assert mixtral.router_jitter_noise == 0.0
    assert gpt2.resid_pdrop == gpt2.embd_pdrop == gpt2.attn_pdrop == gpt2.summary_first_dropout == 0.0


def test_contexts():
    assert context(other_config("gpt2")) == 128
    assert context(AutoConfig.for_model("bloom", n_layer=2)) > 10**6


def test_a_rough_shape_has_every_parameter():
    for kind in OTHERS:
        shape = shape_of(other_config(kind))
        assert shape.parameters == sum(p.numel() for p in other_classifier(kind).parameters()), kind
        assert not shape.counted
    assert shape_of(AutoConfig.for_model(FAMILIES[0], **TINY)).counted
