"""Saved and resumed is uninterrupted, damage is noticed, rotation keeps what matters."""

import json
import os
import resource
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from rmkit.config import SaveConfig, TrainConfig
from rmkit.config_json import from_dict
from rmkit.errors import AgreedError
from rmkit.model.pretrained import build_model, load_config
from rmkit.storage import export, training_state
from rmkit.storage.atomic import files_below
from rmkit.storage.checkpoint import Progress, Saver, newest_whole, steps_saved
from rmkit.storage.checksums import NAME, checksums, write_checksums
from rmkit.train import main
from rmkit.training.metrics import CLOCK_KEYS
from rmkit.training.optim import adamw
from support import ranks
from support.saved import CONFIG, TOKENIZER, save, small
from support.victim import make_world

transformers_logging.disable_progress_bar()


def trained(steps=3, seed=0):
    """A model, its optimizer after some steps on random gradients."""
    model = small()
    optimizer = adamw(model, CONFIG.optim)
    torch.manual_seed(seed)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path):
    model, optimizer = trained()
    progress = Progress(step=3, examples=24, best_step=2, best_loss=0.25, metrics_bytes=99)
    folder = save(tmp_path, progress, model, TOKENIZER, optimizer)
    assert folder == tmp_path / "checkpoints" / "step-3"
    for _ in range(2):
        step(model, optimizer)

    torch.manual_seed(12345)
    found, held = newest_whole(tmp_path, pytest.fail)
    assert found == folder
    assert Progress(**held["progress"]) == progress
    assert from_dict(held["config"]) == CONFIG
    loading = TrainConfig(model=type(CONFIG.model)(name=str(folder)))
    again = build_model(loading, load_config(str(folder)), 128, 0, lambda text: None)
    optimizer_again = adamw(again, CONFIG.optim)
    training_state.load(folder / "training", again, optimizer_again)
    for _ in range(2):
        step(again, optimizer_again)
    for (name, a), b in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert optimizer_again.state[a].keys() == optimizer.state[b].keys()
        for key, value in optimizer.state[b].items():
            assert torch.equal(optimizer_again.state[a][key], value), (name, key)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    model, optimizer = trained()
    for n in (9, 10):
        save(run, Progress(step=n), model, TOKENIZER, optimizer)
    return run


FILES = ("model.safetensors", "config.json", "tokenizer.json", "rmkit.json", "state.json", NAME)
FILES += ("training/shard-00001-model-00001-of-00001.safetensors",)


def flip_a_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, os.remove])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_is_used(name, damage, two_checkpoints, tmp_path):
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    assert newest_whole(run, pytest.fail)[0].name == "step-10"
    damage(run / "checkpoints" / "step-10" / name)
    said = []
    folder, held = newest_whole(run, said.append)
    assert folder.name == "step-9"
    assert held["progress"]["step"] == 9
    assert len(said) == 1
    assert "step-10 is damaged" in said[0]
    assert name.rpartition("/")[2] in said[0]


@pytest.mark.parametrize(
    "raw",
    [
        *("", "{", "[]", "{}", "3", "[" * 100_000, '{"progress": {}}', '{"progress": {"stop": 1}, "config": {}}'),
        *('{"progress": {"step": "x"}, "config": {}}', '{"progress": {"step": -1}, "config": {}}'),
        *('{"progress": {}, "config": []}', '{"progress": {}, "config": {"model": 3}}'),
    ],
)
def test_a_state_that_is_none_is_damage_although_its_checksum_fits(raw, two_checkpoints, tmp_path):
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    folder = run / "checkpoints" / "step-10"
    (folder / "state.json").write_text(raw)
    write_checksums(folder, [checksums(folder, [path for path in files_below(folder) if path.name != NAME])])
    said = []
    assert newest_whole(run, said.append)[0].name == "step-9"
    assert "step-10 is damaged (state.json" in said[0]


def test_every_file_has_a_checksum(two_checkpoints):
    folder = two_checkpoints / "checkpoints" / "step-10"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= {*FILES, "tokenizer_config.json"}
    assert {line[66:] for line in (folder / NAME).read_text().splitlines()[:-1]} == files - {NAME}


def full_disk(tensors, file, **more):
    file.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_said_and_leaves_the_older_checkpoint_of_that_step(two_checkpoints, tmp_path, monkeypatch):
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    model, optimizer = trained(steps=1)
    monkeypatch.setattr(export, "save_file", full_disk)
    with pytest.raises(AgreedError) as caught:
        save(run, Progress(step=10), model, TOKENIZER, optimizer)
    for word in ("checkpoint of step 10", "No space left on device", "GB are free", "--resume goes on from step 10"):
        assert word in str(caught.value)
    assert newest_whole(run, pytest.fail)[0].name == "step-10"
    assert sorted(os.listdir(run / "checkpoints")) == ["step-10", "step-9"]


def lines(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK_KEYS} for row in rows]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_that_go_on_are_the_uninterrupted_two_bit_for_bit(strategy, tmp_path):
    world = make_world(tmp_path / "world")
    run = tmp_path / "r"
    arguments = ["--exp-name", "r", "--cache-dir", str(tmp_path), "--model.name", str(world / "lm")]
    arguments += ["--data.train", str(world / "train.jsonl"), "--batch.pairs", "8", "--save.every", "2"]
    arguments += ["--optim.max-steps", "5", "--optim.lr", "1e-3", "--parallel.strategy", strategy, "--save.keep", "0"]
    ranks.run(2, tmp_path / "said", main, arguments)
    metrics, final = lines(run), load_file(run / "FINAL" / "model.safetensors")
    shutil.rmtree(run / "FINAL")
    shutil.rmtree(run / "checkpoints" / "step-4")
    again = ranks.run(2, tmp_path / "said", main, [*arguments, "--resume"])
    assert "resumed at step 2 of 5" in again.out(0)
    assert lines(run) == metrics
    found = load_file(run / "FINAL" / "model.safetensors")
    assert [name for name in final if not torch.equal(found[name], final[name])] == []


def on_a_small_disk(arguments):
    """As if the disk were full: no file may grow beyond 64 KiB, which the weights do."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    return main(arguments)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_on_a_full_disk_all_ranks_end_with_status_2(strategy, tmp_path):
    world = make_world(tmp_path / "world")
    arguments = ["--exp-name", "r", "--cache-dir", str(tmp_path), "--model.name", str(world / "lm")]
    arguments += ["--data.train", str(world / "train.jsonl"), "--batch.pairs", "8", "--save.every", "2"]
    assert main([*arguments, "--optim.max-steps", "2"]) == 0
    arguments += ["--parallel.strategy", strategy, "--optim.epochs", "100000", "--resume"]
    with ranks.started(2, tmp_path / "said", on_a_small_disk, arguments) as started:
        assert started.wait(60) == [2, 2], started.err(0) + started.err(1)
    for word in ("checkpoint of step 4 could not be written", "GB are free", "--resume goes on from step 2"):
        assert word in started.told(0)
    assert started.err(1) == ""
    assert os.listdir(tmp_path / "r" / "checkpoints") == ["step-2"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    model, optimizer = trained(steps=0)
    (tmp_path / "checkpoints").write_text("a file in its place")
    with pytest.raises(AgreedError, match=r"step 1 could not be written .* --resume starts from the first step"):
        save(tmp_path, Progress(step=1), model, TOKENIZER, optimizer)


def test_what_was_saved_is_the_state_of_its_step_although_training_went_on(tmp_path, monkeypatch):
    """The disk is slow: it writes when two more steps are done."""
    model, optimizer = trained()
    wanted = {name: tensor.clone() for name, tensor in model.classifier.state_dict().items()}
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.classifier.named_parameters()}
    went_on, write = threading.Event(), export.write

    def slow(*arguments):
        assert went_on.wait(60)
        return write(*arguments)

    monkeypatch.setattr(export, "write", slow)
    with Saver(tmp_path, CONFIG) as saver:
        saver.save(Progress(step=3, metrics_bytes=5), model, TOKENIZER, optimizer, 77)
        for _ in range(2):
            step(model, optimizer)
        assert steps_saved(tmp_path) == []
        assert not saver.failed()
        went_on.set()
    folder, held = newest_whole(tmp_path, pytest.fail)
    assert held["progress"]["metrics_bytes"] == 5
    found = load_file(folder / "model.safetensors")
    training = load_file(folder / "training" / "shard-00001-model-00001-of-00001.safetensors")
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(training[f"optimizer.{name}.exp_avg"], moments[name])
        assert training[f"optimizer.{name}.step"] == 3
        assert not torch.equal(model.classifier.get_parameter(name), tensor)


def test_a_failure_is_told_once_and_the_next_checkpoint_is_written(tmp_path, monkeypatch):
    model, optimizer = trained(steps=1)
    with Saver(tmp_path, CONFIG) as saver:
        with monkeypatch.context() as patch:
            patch.setattr(export, "save_file", full_disk)
            saver.save(Progress(step=1), model, TOKENIZER, optimizer, 77)
            with pytest.raises(AgreedError, match="step 1"):
                saver.save(Progress(step=2), model, TOKENIZER, optimizer, 77)
        assert not saver.failed()
        saver.save(Progress(step=3), model, TOKENIZER, optimizer, 77)
    assert steps_saved(tmp_path) == [3]


def test_an_error_of_training_waits_for_the_checkpoint_and_stays_the_error(tmp_path):
    model, optimizer = trained(steps=1)

    def train():
        with Saver(tmp_path, CONFIG) as saver:
            saver.save(Progress(step=1), model, TOKENIZER, optimizer, 77)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert newest_whole(tmp_path, pytest.fail)[0].name == "step-1"


def test_what_a_killed_save_left_is_deleted_by_the_next(tmp_path):
    model, optimizer = trained(steps=1)
    (tmp_path / "checkpoints" / ".step-4.partial").mkdir(parents=True)
    assert newest_whole(tmp_path, pytest.fail) is None
    save(tmp_path, Progress(step=5), model, TOKENIZER, optimizer)
    assert os.listdir(tmp_path / "checkpoints") == ["step-5"]


def saved_steps(run, steps, keep, best=None):
    model, optimizer = trained(steps=0)
    for n in steps:
        reached = best if best is not None and best <= n else None
        config = TrainConfig(save=SaveConfig(keep=keep))
        folder = save(run, Progress(step=n, best_step=reached), model, TOKENIZER, optimizer, config)
        assert folder.exists()
    return steps_saved(run)


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    assert saved_steps(tmp_path / "a", [1, 2, 9, 10], keep=2) == [9, 10]
    assert saved_steps(tmp_path / "b", [1, 2, 9, 10], keep=2, best=1) == [1, 9, 10]
    assert saved_steps(tmp_path / "c", [1, 2, 3], keep=1, best=3) == [3]
    assert saved_steps(tmp_path / "d", [1, 2, 3], keep=0) == [1, 2, 3]
    for name in ("step-7.old", "notes", "step-x"):
        (tmp_path / "b" / "checkpoints" / name).mkdir()
    assert saved_steps(tmp_path / "b", [11], keep=1) == [11]
    assert len(list((tmp_path / "b" / "checkpoints").iterdir())) == 4


def test_rotation_leaves_all_while_a_checkpoint_is_being_written(tmp_path, monkeypatch):
    saved_steps(tmp_path, [1, 2], keep=1, best=1)
    model, optimizer = trained(steps=0)
    seen, write = [], export.write

    def look(*arguments):
        seen.extend(steps_saved(tmp_path))
        return write(*arguments)

    monkeypatch.setattr(export, "write", look)
    save(tmp_path, Progress(step=3, best_step=3), model, TOKENIZER, optimizer, TrainConfig(save=SaveConfig(keep=1)))
    assert seen == [1, 2]
    assert steps_saved(tmp_path) == [3]


def test_a_step_that_is_saved_is_not_written_again(tmp_path, monkeypatch):
    model, optimizer = trained(steps=0)
    with Saver(tmp_path, CONFIG) as saver:
        with monkeypatch.context() as patch:
            patch.setattr(export, "save_file", full_disk)
            saver.save(Progress(step=1), model, TOKENIZER, optimizer, 77)
            with pytest.raises(AgreedError):
                saver.wait()
        saver.save(Progress(step=1), model, TOKENIZER, optimizer, 77)  # it is not: it failed
        saver.wait()
        assert steps_saved(tmp_path) == [1]
        monkeypatch.setattr(export, "save_file", full_disk)
        saver.save(Progress(step=1), model, TOKENIZER, optimizer, 77)


def test_rotation_never_deletes_what_was_just_written(tmp_path):
    """Resumed from step 5, because step 20 was damaged: the next checkpoint is older than the damaged one."""
    saved_steps(tmp_path, [5, 20], keep=2)
    flip_a_byte(tmp_path / "checkpoints" / "step-20" / "model.safetensors")
    saved_steps(tmp_path, [10], keep=1, best=5)
    assert newest_whole(tmp_path, lambda text: None)[0].name == "step-10"


def test_the_thread_that_writes_is_on_the_device_of_its_rank(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda n: seen.append((threading.current_thread().name, n)))
    model, optimizer = trained()
    save(tmp_path, Progress(step=3), model, TOKENIZER, optimizer)
    assert seen == [("checkpoint_0", 3)]
