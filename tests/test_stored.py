"""Weights kept in bf16: the scores of float32 weights with the same numbers, and their gradients rounded once."""

import numpy as np
import pytest
import torch
from torch import nn

from rmkit.config import LoraConfig, ModelConfig, TrainConfig
from rmkit.distributed.sharding import _placed
from rmkit.model import lora
from rmkit.model.pretrained import _kept_in
from rmkit.model.stored import placed
from support.oracle import FAMILIES, gradients, random_pairs, reward_model, run, tiny_classifier

CPU = torch.device("cpu")


def kept(classifier, weights: torch.dtype, *, bf16: bool = False, recomputed: bool = False):
    """The classifier as a reward model whose weights are kept in a dtype."""
    model = reward_model(classifier, "trie", bf16=bf16)
    model.weights = weights
    if recomputed:
        model.classifier.gradient_checkpointing_enable({"use_reentrant": False})
        model.backbone.layers[-1].gradient_checkpointing = False  # as build_model has it
    return _placed(model, CPU)


def on_the_grid(family: str):
    """A classifier whose embedding and decoder layers are numbers that bf16 has."""
    classifier = tiny_classifier(family)
    with torch.no_grad():
        for name, parameter in classifier.named_parameters():
            if "layers" in name or "embed" in name:
                parameter.copy_(parameter.bfloat16())
    return classifier


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_float32_weights_bit_for_bit_and_gradients_rounded_once(family, recomputed):
    sequences, pairs = random_pairs(np.random.default_rng(1), 4)
    exact = kept(on_the_grid(family), torch.float32)
    loss, rewards, _ = run(exact, sequences, pairs, "trie")
    narrow = kept(on_the_grid(family), torch.bfloat16, recomputed=recomputed)
    found_loss, found, _ = run(narrow, sequences, pairs, "trie")
    assert torch.equal(found, rewards)
    assert torch.equal(found_loss, loss)
    wanted = gradients(exact)
    for name, gradient in gradients(narrow).items():
        low = "layers" in name or "embed" in name
        assert gradient.dtype == (torch.bfloat16 if low else torch.float32), name
        assert torch.equal(gradient, wanted[name].to(gradient.dtype)), name


def rewards(model) -> torch.Tensor:
    sequences, pairs = random_pairs(np.random.default_rng(1), 2)
    return run(model, sequences, pairs, "trie")[1].detach()


def test_beside_frozen_weights_the_scores_are_those_of_autocast_bit_for_bit():
    models = [kept(on_the_grid("llama"), weights, bf16=True) for weights in (torch.float32, torch.bfloat16)]
    for name, parameter in models[1].named_parameters():
        parameter.requires_grad_("score" in name)
    assert torch.equal(*map(rewards, models))


def test_with_a_bf16_residual_stream_scores_err_no_more_than_plain_bf16():
    """Rung 2's bound for bf16."""
    exact = rewards(kept(on_the_grid("llama"), torch.float32))
    plain = rewards(reward_model(on_the_grid("llama").bfloat16(), "trie"))
    found = rewards(kept(on_the_grid("llama"), torch.bfloat16, bf16=True))
    assert 0.0 < (found - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_a_part_of_a_layer_compiles_whole():
    model = kept(tiny_classifier("llama"), torch.bfloat16)
    part = model.backbone.layers[0].mlp
    compiled = torch.compile(part, fullgraph=True, backend="eager")
    x = torch.randn(5, 32)
    assert torch.equal(compiled(x), part(x))


def test_what_is_kept_in_what():
    model = reward_model(tiny_classifier("qwen2"), "trie")
    lora.put(model.classifier, LoraConfig(rank=2), "a base", None, 0, lambda text: None)
    model.weights = torch.bfloat16
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in _placed(model, CPU).named_parameters():
        low = ("layers" in name or "embed" in name) and ".lora_" not in name
        assert parameter.dtype == (torch.bfloat16 if low else torch.float32), name
        assert torch.equal(parameter, before[name].to(parameter.dtype))
        assert parameter.requires_grad == (".lora_" in name or "score" in name)


def test_a_weight_that_needs_no_change_is_a_copy():
    """What it was loaded into may be a file's own memory."""
    layer = nn.Linear(3, 2, bias=False).bfloat16()
    loaded = layer.weight
    assert placed(layer, CPU, torch.bfloat16).weight.data_ptr() != loaded.data_ptr()


@pytest.mark.parametrize(
    ("weights", "rank", "stored", "bf16", "found"),
    [
        ("auto", 0, torch.bfloat16, True, torch.float32),
        ("auto", 4, torch.bfloat16, True, torch.bfloat16),
        ("auto", 4, torch.bfloat16, False, torch.float32),
        ("auto", 4, torch.float32, True, torch.float32),
        ("auto", 4, torch.float16, True, torch.float32),
        ("fp32", 4, torch.bfloat16, True, torch.float32),
        ("bf16", 0, torch.float32, False, torch.bfloat16),
    ],
)
def test_auto_keeps_frozen_bf16_weights_where_autocast_would_make_them_so(weights, rank, stored, bf16, found):
    config = TrainConfig(model=ModelConfig(name="m", weights=weights), lora=LoraConfig(rank=rank))
    assert _kept_in(config, stored, bf16) == found


class Codes(nn.Linear):
    """As bitsandbytes keeps a layer: two 4-bit codes a byte, which are no numbers, and a forward that reads them."""

    def __init__(self) -> None:
        super().__init__(2, 2, bias=False)
        self.weight = nn.Parameter(torch.tensor([[1], [2]], dtype=torch.uint8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.expand(2, 2).to(x).T


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_codes_of_4_bits_stay_and_are_read_by_their_own_forward(weights):
    layers = nn.Sequential(Codes(), nn.Linear(2, 2))
    layers[0].bias = nn.Parameter(torch.ones(2))
    placed(layers, CPU, weights)
    assert layers[0].weight.dtype == torch.uint8
    assert layers[1].weight.dtype == weights
    assert layers[0](torch.tensor([[1.0, 3.0]])).tolist() == [[4.0, 8.0]]
    assert "forward" not in vars(layers[1]), "torch.compile would tell every layer from the others"
