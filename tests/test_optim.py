import math

import pytest
import torch
from torch import nn

from rmkit.config import OptimConfig
from rmkit.training.optim import adamw, clip, learning_rate
from support.oracle import reward_model, tiny_classifier


def after_one_step_without_a_gradient(family, **config):
    """Names of the parameters, and of those that shrank by lr x weight decay."""
    model = reward_model(tiny_classifier(family, num_hidden_layers=1), "trie")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand_like(parameter) + 1.0)
            parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.classifier.named_parameters()}
    adamw(model, OptimConfig(lr=0.1, weight_decay=0.5, **config)).step()
    shrunk = set()
    for name, parameter in model.classifier.named_parameters():
        if not torch.equal(parameter, before[name]):
            torch.testing.assert_close(parameter.detach(), before[name] * 0.95)
            shrunk.add(name)
    return set(before), shrunk


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weight_matrices_are_decayed_and_norms_biases_and_head_are_not(family):
    names, shrunk = after_one_step_without_a_gradient(family)
    kept = {name for name in names if "norm" in name or name.endswith("bias") or name == "score.weight"}
    assert any(name.endswith("bias") for name in names) == (family == "qwen2")
    assert "score.weight" in kept
    assert shrunk == names - kept


def test_decay_all_decays_all():
    names, shrunk = after_one_step_without_a_gradient("qwen2", decay_all=True)
    assert shrunk == names


def test_first_step_is_that_of_adamw():
    """m / (sqrt(v) + eps) is g / (|g| + 1e-8), whatever the betas; the second step tells those."""
    model = reward_model(tiny_classifier("llama", num_hidden_layers=1), "trie")
    weight = model.classifier.score.weight
    start = weight.detach().clone()
    optimizer = adamw(model, OptimConfig(lr=0.1))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    torch.testing.assert_close(start - weight.detach(), torch.full_like(start, 0.1))
    start = weight.detach().clone()
    weight.grad = torch.full_like(weight, 3.0)
    optimizer.step()
    mean = (0.9 * 0.1 + 0.1 * 3.0) / (1 - 0.9**2)
    square = (0.999 * 0.001 + 0.001 * 9.0) / (1 - 0.999**2)
    torch.testing.assert_close(start - weight.detach(), torch.full_like(start, 0.1 * mean / math.sqrt(square)))


SCHEDULES = {
    "constant": [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "linear": [0.5, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6],
    "cosine": [0.5, 1.0, *((1 + math.cos(math.pi * i / 6)) / 2 for i in range(6))],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule(schedule):
    config = OptimConfig(lr=3.0, schedule=schedule, warmup_ratio=0.2)  # 0.2 of 8 steps, rounded up: 2
    rates = [learning_rate(config, step, 8) / 3.0 for step in range(8)]
    assert rates == pytest.approx(SCHEDULES[schedule])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_at_its_edges(schedule):
    def rates(warmup_ratio, steps):
        config = OptimConfig(lr=1.0, schedule=schedule, warmup_ratio=warmup_ratio)
        return [learning_rate(config, step, steps) for step in range(steps)]

    assert rates(0.0, 3)[0] == 1.0
    assert rates(0.1, 1) == [1.0]
    assert rates(1.0, 4) == [0.25, 0.5, 0.75, 1.0]
    assert min(rates(0.3, 7)) > 0.0


def norm_model():
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))])
    model[0].grad, model[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    return model


@pytest.mark.parametrize(("max_norm", "scale"), [(0.0, 1.0), (10.0, 1.0), (5.5, 1.0), (2.5, 0.5)])
def test_clip_returns_the_norm_before_and_scales_all_gradients_alike(max_norm, scale):
    model = norm_model()
    norm = clip(model, max_norm)
    assert norm.item() == pytest.approx(5.0)
    assert model[0].grad.tolist() == pytest.approx([3.0 * scale, 0.0], rel=1e-5)
    assert model[1].grad.tolist() == pytest.approx([4.0 * scale], rel=1e-5)


def test_clip_tells_a_gradient_that_is_not_finite():
    model = norm_model()
    model[1].grad = torch.tensor([math.nan])
    assert not math.isfinite(clip(model, 1.0))
