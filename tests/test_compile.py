"""Compiled layers against the same layers as they are; dry_cuda counts their compilations on a GPU's path."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from rmkit.model.compile import compile_layers, compiling, uncompiled, wanted
from support.oracle import gradients, random_pairs, reward_model, rewards_of, run, tiny_classifier


def assert_same(model, plain, sequences, pairs, layout, bound: float) -> None:
    """Loss, rewards and every gradient agree to `bound`, relative to the largest gradient."""
    losses = []
    for each in (model, plain):
        each.zero_grad()
        losses.append(run(each, sequences, pairs, layout)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=bound)
    found, truth = gradients(model), gradients(plain)
    largest = max(g.abs().max() for g in truth.values())
    for name, gradient in found.items():
        assert (gradient - truth[name]).abs().max() <= bound * largest, name


def both(family: str, layout: str, dtype: torch.dtype, recomputed: bool = False, **how):
    classifier = tiny_classifier(family, dtype=dtype, num_hidden_layers=3)
    if recomputed:
        classifier.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        classifier.model.layers[-1].gradient_checkpointing = False
    model, plain = reward_model(classifier, layout), reward_model(classifier, layout)
    compile_layers(model, **how)
    return model, plain


@pytest.mark.slow
def test_a_compiled_model_is_the_same_model_and_compiles_once():
    """Float64, by the graphs that dynamo and autograd make; the last layer, and attention on a CPU, are outside them.
    Two layers share one compilation, and so do batches of other sizes."""
    counter = CompileCounterWithBackend("aot_eager")
    model, plain = both("llama", "trie", torch.float64, backend=counter)
    frames = []
    with compiling():
        for seed in range(3):
            sequences, pairs = random_pairs(np.random.default_rng(seed), 3 + seed)
            assert_same(model, plain, sequences, pairs, "trie", 1e-12)
            frames.append(counter.frame_count)
    assert frames[0] > 0
    assert frames == [frames[0]] * 3
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    with uncompiled(model), torch.no_grad():
        assert torch.equal(rewards_of(model, sequences), rewards_of(plain, sequences))
        assert counter.frame_count == frames[0]
    assert all("forward" in vars(layer) for layer in model.backbone.layers[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
def test_inductor_keeps_the_bound_of_the_ladder(layout, recomputed):
    """Float32, with the kernels that a user runs; as near to float64 as the ladder asks."""
    model, plain = both("llama", layout, torch.float32, recomputed)
    with compiling():
        for seed in range(2):
            assert_same(model, plain, *random_pairs(np.random.default_rng(seed), 4), layout, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi3"])
def test_other_families_compile(family):
    model, plain = both(family, "trie", torch.float64, backend="aot_eager")
    with compiling():
        assert_same(model, plain, *random_pairs(np.random.default_rng(0), 4), "trie", 1e-12)


def test_auto_compiles_on_a_gpu_alone():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [wanted(asked, cpu) for asked in ("auto", "off")] == [False, False]
    assert [wanted(asked, gpu) for asked in ("auto", "on", "off")] == [True, True, False]


def test_without_a_compiler_it_is_refused_on_a_cpu(monkeypatch):
    def absent():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", absent)
    with pytest.raises(ValueError, match=r"^--model.compile on: no C\+\+ compiler was found; install g\+\+"):
        wanted("on", torch.device("cpu"))


def test_what_torch_was_told_before_holds_afterwards():
    settings = torch._dynamo.config
    before = settings.optimize_ddp, settings.recompile_limit
    with compiling():
        assert not settings.optimize_ddp
    assert (settings.optimize_ddp, settings.recompile_limit) == before
