"""A small trained-looking model and its folder, for the tests of saving."""

from dataclasses import replace

from rmkit.config import DataConfig, OptimConfig, SaveConfig, TrainConfig
from rmkit.data import demo
from rmkit.data.tokenizer import render
from rmkit.storage.checkpoint import Saver
from rmkit.storage.export import write_model
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


def written(folder, model, tokenizer=TOKENIZER, **save):
    """FINAL, with --save.* as given."""
    write_model(model, tokenizer, replace(CONFIG, save=SaveConfig(**save)), 77, folder)
    return folder


def save(run, progress, model, tokenizer, optimizer, config=CONFIG, max_length=77):
    """Write one checkpoint and wait for it; its folder."""
    with Saver(run, config) as saver:
        saver.save(progress, model, tokenizer, optimizer, max_length)
    return run / "checkpoints" / f"step-{progress.step}"
