import dataclasses
import json

import pytest
import torch

from rmkit.config import BatchConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig, to_dict
from rmkit.data import demo
from rmkit.storage import run_folder, training_state
from rmkit.storage.checkpoint import Progress
from rmkit.storage.checksums import checksums, write_checksums
from rmkit.storage.run_folder import check_same, open_run
from rmkit.training.optim import adamw
from support.oracle import reward_model, tiny_classifier
from support.saved import save


def run_of(tmp_path, **values):
    return TrainConfig(exp_name="x", cache_dir=str(tmp_path), **values)


def write_checkpoint(config, step, *, whole=True):
    folder = config.folder / "checkpoints" / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    progress = {"step": step, "examples": 64 * step, "best_step": 3, "best_loss": 0.5, "metrics_bytes": 77}
    (folder / "state.json").write_text(json.dumps({"progress": progress, "config": to_dict(config)}))
    write_checksums(folder, [checksums(folder, [folder / "model.safetensors", folder / "state.json"])])
    if not whole:
        (folder / "model.safetensors").write_bytes(b"others")
    return folder


def opened(config):
    said = []
    return *open_run(config, said.append), said


def test_a_new_folder_starts_from_the_first_step(tmp_path):
    assert opened(run_of(tmp_path)) == (None, Progress(), [])
    assert opened(run_of(tmp_path, resume=True)) == (None, Progress(), [])
    config = run_of(tmp_path)
    config.folder.mkdir(exist_ok=True)
    (config.folder / "notes.txt").write_text("mine")
    (config.folder / "env.json").write_text("{}")
    (config.folder / "tensorboard").mkdir()
    assert opened(config) == (None, Progress(), [])


@pytest.mark.parametrize("name", ["FINAL", "checkpoints", "metrics.jsonl"])
def test_results_are_never_written_over_without_a_word(tmp_path, name):
    config = run_of(tmp_path)
    (config.folder / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"{name} of an earlier run: give --resume .* --overwrite .* --exp-name"):
        open_run(config, print)
    assert (config.folder / name).exists()


def test_overwrite_deletes_the_results_and_nothing_else(tmp_path):
    config = run_of(tmp_path, overwrite=True)
    write_checkpoint(config, 4)
    for name in ("FINAL", "tensorboard", "wandb"):
        (config.folder / name).mkdir()
    for name in ("metrics.jsonl", "config.json", "env.json", "notes.txt"):
        (config.folder / name).write_text("old")
    weights, progress, said = opened(config)
    assert (weights, progress) == (None, Progress())
    assert [path.name for path in config.folder.iterdir()] == ["notes.txt"]
    assert said == [f"deleted FINAL, checkpoints, metrics.jsonl of an earlier run in {config.folder}"]


def test_the_first_rank_decides_for_all(tmp_path, monkeypatch):
    """Another rank may see the folder when the first one has deleted the old run, or begun to write the new one."""
    config = run_of(tmp_path, overwrite=True)
    kept = write_checkpoint(config, 4)
    monkeypatch.setattr(run_folder, "on_first_rank", lambda action: False)  # what rank 0 has found
    assert opened(config) == (None, Progress(), [])
    assert kept.exists()
    assert opened(run_of(tmp_path)) == (None, Progress(), [])


def test_resume_takes_the_newest_whole_checkpoint(tmp_path):
    config = run_of(tmp_path, resume=True)
    for step in (2, 9, 10):
        newest = write_checkpoint(config, step)
    wanted = Progress(step=10, examples=640, best_step=3, best_loss=0.5, metrics_bytes=77)
    assert opened(config) == (newest, wanted, [])
    write_checkpoint(config, 11, whole=False)
    weights, progress, said = opened(config)
    assert (weights, progress) == (newest, wanted)
    assert len(said) == 1
    assert "step-11 is damaged" in said[0]


def test_resume_without_a_whole_checkpoint_starts_anew_and_says_so(tmp_path):
    config = run_of(tmp_path, resume=True)
    write_checkpoint(config, 1, whole=False)
    weights, progress, said = opened(config)
    assert (weights, progress) == (None, Progress())
    assert "no whole checkpoint" in said[-1]


def changed(config, name, value):
    part, _, key = name.rpartition(".")
    if not part:
        return dataclasses.replace(config, **{key: value})
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **{key: value})})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 3),
        ("model.name", "a/b"),
        ("model.head", "binary"),
        ("data.train", ("other.jsonl",)),
        ("data.max_length", 99),
        ("data.overlong", "keep-end"),
        ("data.shuffle", False),
        ("batch.pairs", 8),
        ("batch.group", "none"),
    ],
)
def test_a_resumed_run_keeps_its_data_and_model(tmp_path, name, value):
    config = run_of(tmp_path, resume=True).resolved()
    write_checkpoint(config, 1)
    with pytest.raises(ValueError) as caught:
        open_run(changed(config, name, value), print)
    assert str(caught.value).startswith(f"--{name.replace('_', '-')} ")
    assert f"the run in {config.folder} was started with" in str(caught.value)


def test_a_resumed_run_may_change_the_rest(tmp_path):
    config = run_of(tmp_path, resume=True, data=DataConfig(train=("a", "b")))
    saved = json.loads(json.dumps(to_dict(config)))
    for name, value in (
        ("batch.max_tokens", 99),
        ("batch.layout", "packed"),
        ("optim.max_steps", 9),
        ("resume", False),
    ):
        check_same(changed(config, name, value), saved)
    check_same(dataclasses.replace(config, model=ModelConfig(precision="bf16"), batch=BatchConfig()), saved)


def test_optimizer_state_reaches_its_own_parameter_whatever_flag_changed(tmp_path):
    """--optim.decay-all moves parameters between groups; a resume with another one is refused or does it right."""
    config = run_of(tmp_path, resume=True, optim=OptimConfig(lr=0.1, decay_all=False))
    model = reward_model(tiny_classifier("llama", vocab_size=128, num_hidden_layers=2), "trie")
    optimizer = adamw(model, config.optim)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    wanted = {p: optimizer.state[p]["exp_avg"].clone() for p in model.parameters()}
    save(config.folder, Progress(step=1), model, demo.tokenizer(), optimizer, config)
    resumed = changed(config, "optim.decay_all", True)
    refused = None
    try:
        weights, _, _ = opened(resumed)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("--optim.decay-all True: ")
        return
    again = adamw(model, resumed.optim)
    training_state.load(weights / "training", model, again)
    assert all(torch.equal(again.state[p]["exp_avg"], wanted[p]) for p in model.parameters())
