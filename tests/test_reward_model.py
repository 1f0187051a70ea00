"""Rungs 1 and 2 of the exactness ladder, for every family: trie, packed and padded against one sequence at a time."""

import numpy as np
import pytest
import torch

from rmkit.batch.trie import pack
from rmkit.config import LossConfig
from support.oracle import (
    FAMILIES,
    gradients,
    random_pairs,
    reference_loss,
    reward_model,
    rewards_of,
    run,
    scores_one_by_one,
    tiny_classifier,
)

LAYOUTS = ("trie", "packed", "padded")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def truth(family: str, sequences, pairs):
    """Scores, loss and gradients in float64, one sequence at a time, plain transformers."""
    classifier = tiny_classifier(family).double()
    scores = scores_one_by_one(classifier, sequences)
    loss = reference_loss(scores, pairs)
    loss.backward()
    return classifier, scores.detach(), loss.detach(), gradients(classifier)


# transformers' eager attention softmaxes in float32, where the float64 mask value of a padded row overflows to NaN.
FLOAT64 = [(family, layout) for family in FAMILIES for layout in LAYOUTS if (family, layout) != ("gemma2", "padded")]


@pytest.mark.parametrize(("family", "layout"), FLOAT64)
def test_float64_layout_is_the_truth(family, layout):
    sequences, pairs = random_pairs(np.random.default_rng(1), 4)
    classifier, scores, loss, wanted = truth(family, sequences, pairs)
    model = reward_model(classifier, layout)
    model.zero_grad()
    found_loss, found, _ = run(model, sequences, pairs, layout)
    # transformers' norms and rotary embeddings compute in float32 whatever the weights are.
    assert relative(found, scores) < 1e-6
    assert relative(found_loss, loss) < 1e-6
    for name, gradient in gradients(model).items():
        assert relative(gradient, wanted[name]) < 2e-5, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_layout_within_1e_5(family, layout):
    sequences, pairs = random_pairs(np.random.default_rng(2), 4)
    classifier, scores, loss, wanted = truth(family, sequences, pairs)
    model = reward_model(classifier.float(), layout)
    model.zero_grad()
    found_loss, found, _ = run(model, sequences, pairs, layout)
    assert relative(found.double(), scores) < 1e-5
    assert relative(found_loss.double(), loss) < 1e-5
    largest = max(g.abs().max() for g in wanted.values())
    for name, gradient in gradients(model).items():
        assert ((gradient.double() - wanted[name]).abs().max() / largest).item() < 1e-5, name


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_trie_no_worse_than_twice_plain_bf16(family):
    sequences, pairs = random_pairs(np.random.default_rng(3), 6)
    classifier, scores, _, wanted = truth(family, sequences, pairs)
    plain = reward_model(classifier.float(), "padded", bf16=True)
    trie = reward_model(classifier.float(), "trie", bf16=True)
    errors = {}
    for layout, model in (("padded", plain), ("trie", trie)):
        model.zero_grad()
        _, found, _ = run(model, sequences, pairs, layout)
        flat = torch.cat([(g.double() - wanted[name]).flatten() for name, g in gradients(model).items()])
        errors[layout] = ((found - scores).square().mean().sqrt().item(), flat.norm().item())
    assert errors["trie"][0] <= 2 * errors["padded"][0]
    assert errors["trie"][1] <= 2 * errors["padded"][1]


def test_transformers_own_forward_still_works_on_the_wrapped_classifier():
    """The hook that gathers end tokens sleeps unless our forward asked for them."""
    sequences, pairs = random_pairs(np.random.default_rng(1), 2)
    classifier = tiny_classifier("llama")
    model = reward_model(classifier, "padded")
    run(model, sequences, pairs, "padded")
    found = scores_one_by_one(model.classifier, sequences)
    assert relative(found.detach(), scores_one_by_one(classifier, sequences).detach()) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_without_gradients_are_the_truth(family, layout):
    """Scoring has ways of its own: shared prefixes at once on a CPU, one cast for several projections."""
    sequences, pairs = random_pairs(np.random.default_rng(5), 4, longest=60)
    classifier, scores, _, _ = truth(family, sequences, pairs)
    model = reward_model(classifier.float(), layout)
    with torch.no_grad():
        found = rewards_of(model, sequences, layout)
    assert relative(found.double(), scores) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_scores_without_gradients_no_worse_than_twice_plain_bf16(family):
    sequences, pairs = random_pairs(np.random.default_rng(6), 6, longest=60)
    classifier, scores, _, _ = truth(family, sequences, pairs)
    errors = []
    for layout in ("padded", "trie"):
        model = reward_model(classifier.float(), layout, bf16=True)
        with torch.no_grad():
            found = rewards_of(model, sequences, layout)
        errors.append((found - scores).square().mean().sqrt().item())
    assert errors[1] <= 2 * errors[0]


@pytest.mark.parametrize("layout", ["trie", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_runs_on_end_tokens_only(family, layout):
    sequences, pairs = random_pairs(np.random.default_rng(1), 3)
    model = reward_model(tiny_classifier(family), layout)
    seen = []
    for layer in model.backbone.layers[-2:]:
        layer.mlp.register_forward_hook(lambda mlp, inputs, output: seen.append(output.shape[1]))
    run(model, sequences, pairs, layout)
    assert seen == [pack(sequences, layout=layout).tokens, len(sequences)]


def test_a_batch_without_sequences_reaches_every_parameter():
    """What a rank runs that has nothing left: DDP waits for the gradient of each parameter."""
    model = reward_model(tiny_classifier("llama"), "trie")
    loss, scores, _ = model(pack([]), LossConfig())
    loss.backward()
    assert scores.shape == (0,)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_final_norm_runs_on_end_tokens_only(family, layout):
    sequences, pairs = random_pairs(np.random.default_rng(1), 3)
    model = reward_model(tiny_classifier(family), layout)
    seen = []
    model.backbone.norm.register_forward_hook(lambda norm, inputs, output: seen.append(tuple(output.shape)))
    run(model, sequences, pairs, layout)
    assert seen == [(1, len(sequences), 32)]


def test_no_bf16_copy_of_a_weight_outlives_its_product():
    """autocast's cache holds those of all layers to the end of the forward pass: 14 GB for Llama-3-8B."""
    model, seen = reward_model(tiny_classifier("llama"), "trie", bf16=True), []
    model.backbone.layers[0].mlp.up_proj.register_forward_hook(
        lambda *_: seen.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
    )
    run(model, *random_pairs(np.random.default_rng(1), 2), "trie")
    assert seen == [(True, False)]
