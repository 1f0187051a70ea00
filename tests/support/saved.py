"""A small trained-looking model and its folder, for the tests of saving."""

from dataclasses import replace

import numpy as np
import torch

from rmkit.config import DataConfig, OptimConfig, SaveConfig, TrainConfig
from rmkit.data import demo
from rmkit.data.tokenizer import render
from rmkit.model.posterior import posterior
from rmkit.storage.checkpoint import Saver
from rmkit.storage.export import write_model
from rmkit.storage.trust import Trust
from support.oracle import reward_model, tiny_classifier

CONFIG = TrainConfig(data=DataConfig(overlong="keep-end"), optim=OptimConfig(lr=0.01))
TOKENIZER = demo.tokenizer()
TEXTS = [
    render(TOKENIZER, [{"role": "user", "content": user}, {"role": "assistant", "content": answer}])
    for user, answer in (("reverse abc", "cba"), ("reverse abc", "bca"), ("hi", "a much longer answer"), ("hi", "b"))
]


def small(family="llama", *, head=1, **extra):
    layers = {"num_hidden_layers": 2, "vocab_size": 128, "num_labels": head, "problem_type": "regression"}
    return reward_model(tiny_classifier(family, **{**layers, **extra}), "trie")


def written(folder, model, tokenizer=TOKENIZER, worth=None, **save):
    """FINAL, with what its scores are worth, and --save.* as given."""
    write_model(model, tokenizer, replace(CONFIG, save=SaveConfig(**save)), 77, folder, None, worth)
    return folder


def drawn(hidden, seed=0):
    """A posterior of random end states."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(3 * hidden, hidden)))
    return posterior(x.T @ x / 10, torch.ones(hidden).double(), torch.zeros(hidden).double())


def drawn_trust(model):
    """Temperatures and a posterior, as every FINAL of a training with held-out pairs has them."""
    return Trust(temperature=2.0, temperature_with_se=1.5, posterior=drawn(model.config.hidden_size))


def save(run, progress, model, tokenizer, optimizer, config=CONFIG, max_length=77):
    """Write one checkpoint and wait for it; its folder."""
    with Saver(run, config) as saver:
        saver.save(progress, model, tokenizer, optimizer, max_length)
    return run / "checkpoints" / f"step-{progress.step}"
