import contextlib
import dataclasses
import json
import subprocess
import sys
import types

import pytest
import torch

from rmkit.config import BatchConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig, to_dict
from rmkit.data import demo
from rmkit.model import adapter
from rmkit.storage import checkpoint, lock, run_folder, training_state
from rmkit.storage.checkpoint import Progress
from rmkit.storage.checksums import checksums, write_checksums
from rmkit.storage.run_folder import check_apart, check_same, claimed, open_run, replace_earlier
from rmkit.training.optim import adamw
from support.listing import listing
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


def finished(config) -> dict[str, str]:
    """A finished run in the folder of `config`, and something of the user's; what stands there."""
    write_checkpoint(config, 4)
    for name in ("FINAL", "tensorboard", "wandb"):
        (config.folder / name).mkdir()
        (config.folder / name / "file").write_text("old")
    for name in ("metrics.jsonl", "config.json", "env.json", "notes.txt"):
        (config.folder / name).write_text("old")
    return listing(config.folder)


def kept_in(folder):
    return listing(folder / "old-run", without=("ABOUT.txt", "old-run"))


def test_overwrite_moves_the_results_away_and_nothing_else(tmp_path):
    config, said = run_of(tmp_path, overwrite=True), []
    before = finished(config)
    assert opened(config) == (None, Progress(), [])
    assert listing(config.folder) == before, "nothing moves before all inputs are read"
    replace_earlier(config, said.append)
    assert sorted(path.name for path in config.folder.iterdir()) == ["notes.txt", "old-run"]
    assert kept_in(config.folder) == {name: text for name, text in before.items() if name != "notes.txt"}
    assert "moved FINAL, checkpoints, metrics.jsonl of an earlier run to" in said[0]


def test_without_overwrite_nothing_moves(tmp_path):
    config = run_of(tmp_path, resume=True)
    before = finished(config)
    with claimed(config, print):
        replace_earlier(config, print)
        assert listing(config.folder) == before


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), RuntimeError("a rank is lost")])
def test_a_run_that_fails_before_its_first_checkpoint_leaves_the_earlier_one(tmp_path, error):
    config, said = run_of(tmp_path, overwrite=True), []
    before = finished(config)
    with contextlib.suppress(type(error)), claimed(config, said.append):
        replace_earlier(config, print)
        (config.folder / "metrics.jsonl").write_text("new")
        (config.folder / "tensorboard").mkdir()
        raise error
    assert listing(config.folder) == before
    assert said == [f"--overwrite came to no checkpoint: the earlier run is back in {config.folder}"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_run_that_is_stopped_with_a_checkpoint_keeps_both(tmp_path):
    config, said = run_of(tmp_path, overwrite=True), []
    old = {name: text for name, text in finished(config).items() if name != "notes.txt"}
    with claimed(config, said.append):
        replace_earlier(config, print)
        write_checkpoint(config, 2)
    assert kept_in(config.folder) == old
    assert f"is kept in {config.folder / 'old-run'}" in said[0]
    with contextlib.suppress(ZeroDivisionError), claimed(config, print):  # overwritten again, by mistake
        replace_earlier(config, print)
        assert kept_in(config.folder / "old-run") == old
        raise ZeroDivisionError
    assert kept_in(config.folder) == old
    assert checkpoint.steps_saved(config.folder) == [2]
    with claimed(dataclasses.replace(config, overwrite=False, resume=True), print):
        (config.folder / "FINAL").mkdir()
    assert not (config.folder / "old-run").exists()


def test_the_earlier_run_goes_with_the_second_checkpoint(tmp_path):
    config = run_of(tmp_path, overwrite=True)
    finished(config)
    with claimed(config, print):
        replace_earlier(config, print)
        write_checkpoint(config, 2)
        checkpoint._rotate(config.folder, 1, Progress(step=2))
        assert (config.folder / "old-run").is_dir()
        write_checkpoint(config, 4)
        checkpoint._rotate(config.folder, 1, Progress(step=4))
        assert not (config.folder / "old-run").exists()
    assert checkpoint.steps_saved(config.folder) == [4]


def test_what_a_kill_left_is_put_back_by_the_next_start(tmp_path):
    config, said = run_of(tmp_path, overwrite=True), []
    before = finished(config)
    replace_earlier(config, print)
    (config.folder / "metrics.jsonl").write_text("new")
    with pytest.raises(ValueError, match="holds FINAL"), claimed(run_of(tmp_path), said.append):
        opened(run_of(tmp_path))
    assert listing(config.folder) == before
    assert "the earlier run is back" in said[0]


def test_a_folder_has_one_training_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    config = run_of(tmp_path)
    code = "import sys; from rmkit.storage.lock import locked\n"
    code += "with locked(__import__('pathlib').Path(sys.argv[1]), ''): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(config.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=r"another training is at work there; wait"), claimed(config, print):
        pytest.fail("it is locked")
    other.kill()
    other.communicate()
    with claimed(config, print):
        pass
    assert list(tmp_path.iterdir()) == [], "neither a lock nor an empty folder stays"


@pytest.mark.parametrize("way", ["plain", "relative", "link to the folder", "link to the run", "links to files"])
def test_a_model_in_the_folder_that_it_would_replace_is_refused(tmp_path, way, monkeypatch):
    config = run_of(tmp_path, overwrite=True)
    final = config.folder / "FINAL"
    final.mkdir(parents=True)
    (final / "model.safetensors").write_text("weights")
    monkeypatch.chdir(tmp_path)
    name = str(final)
    if way == "relative":
        name = "x/../x/FINAL/"
    elif way == "link to the folder":
        (tmp_path / "link").symlink_to(final)
        name = "link"
    elif way == "link to the run":
        (tmp_path / "runs").symlink_to(tmp_path)
        name = "runs/x/FINAL"
    elif way == "links to files":
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / "model.safetensors").symlink_to(final / "model.safetensors")
        name = "copy"
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=r"--model.name .*: it lies in .* give another --exp-name"):
        check_apart(changed(config, "model.name", name))
    assert listing(tmp_path) == before
    check_apart(changed(run_of(tmp_path, overwrite=True, seed=1), "model.name", "no/such"))


def test_an_adapter_whose_base_is_in_the_folder_is_refused(tmp_path, monkeypatch):
    config = run_of(tmp_path, overwrite=True)
    (config.folder / "FINAL").mkdir(parents=True)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / adapter.CONFIG).write_text("{}")
    of = types.SimpleNamespace(base=str(config.folder / "FINAL"))
    monkeypatch.setattr(adapter, "adapter_in", lambda name: of)
    with pytest.raises(ValueError, match=r"FINAL: it lies in"):
        check_apart(changed(config, "model.name", str(tmp_path / "adapter")))


def test_a_run_never_writes_into_its_models_own_folder(tmp_path):
    """Its config.json would take the place of the model's."""
    config = run_of(tmp_path)
    config.folder.mkdir()
    with pytest.raises(ValueError, match=r"itself, which the run would write into; give another --exp-name"):
        check_apart(changed(config, "model.name", str(config.folder)))


def test_the_first_rank_decides_for_all(tmp_path, monkeypatch):
    """Another rank may see the folder when the first one has moved the old run, or begun to write the new one."""
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
