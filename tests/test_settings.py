"""Configurations as flags."""

import json

import pytest

from rmkit.config import BatchConfig, ModelConfig, OptimConfig, TrainConfig, to_dict
from rmkit.pages import settings


def held(**given) -> dict:
    return json.loads(json.dumps(to_dict(TrainConfig(**given).resolved())))


def test_a_run_by_default_changed_nothing():
    assert settings.changed(held()) == []
    assert settings.changed(held(exp_name="x", cache_dir="y", overwrite=True)) == []


def test_what_a_run_changed_stands_beside_its_default():
    config = held(model=ModelConfig(name="lm"), optim=OptimConfig(lr=1e-4), batch=BatchConfig(pairs=8))
    found = settings.changed(config)
    assert ("--model.name", "lm", "demo") in found
    assert ("--optim.lr", "0.0001", "5e-06") in found
    assert ("--batch.pairs", "8", "64") in found
    assert len(found) == 3
    others = dict(settings.unchanged(config))
    assert others["--data.train"] == "ultrabin"
    assert not {flag for flag, *_ in found} & others.keys()


def test_a_flag_of_another_version_is_told_as_such():
    config = held()
    config["optim"]["momentum"] = 0.5
    assert settings.changed(config) == [("--optim.momentum", "0.5", "(unknown)")]


def test_only_what_differs_is_listed_and_an_older_run_has_the_default():
    first, second = (
        held(optim=OptimConfig(lr=1e-4), exp_name="a"),
        held(optim=OptimConfig(lr=1e-4), seed=3, exp_name="b"),
    )
    assert settings.differing([first, second]) == {"--seed": ["0", "3"]}
    del second["loss"]["ratings"], second["seed"]
    assert settings.differing([first, second]) == {}
    assert settings.differing([first, {}, held(seed=1)])["--seed"] == ["0", "?", "1"]
    assert settings.differing([first, {}]) == {}


@pytest.mark.parametrize("spoiled", [{}, {"model": 3}, {"model": {"name": 7}}, {"model": {"name": "a\0"}}, {"x": [1]}])
def test_a_spoiled_configuration_is_no_error(spoiled):
    settings.changed(spoiled)
    settings.unchanged(spoiled)
    settings.differing([spoiled, held()])
