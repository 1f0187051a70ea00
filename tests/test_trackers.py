"""Trackers: the sentence for one that is missing, one of the user's own, TensorBoard's files read back."""

import json
import sys
from pathlib import Path

import pytest
from accelerate.tracking import GeneralTracker

from rmkit.config import LogConfig, TrainConfig
from rmkit.train import main
from rmkit.training import trackers
from rmkit.training.metrics import Metrics
from rmkit.training.trackers import TRACKERS, check_trackers, open_mirrors


class Kept(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self, run_name, folder, config, step):
        super().__init__()
        self.made_with = run_name, folder, config, step
        self.told = []

    @property
    def tracker(self):
        return self.told

    def start(self):
        self.told.append("start")

    def log(self, values, step=None, **kwargs):
        self.told.append((step, values))

    def finish(self):
        self.told.append("finish")


@pytest.fixture
def kept(monkeypatch) -> list[Kept]:
    """The trackers that were made under the name "kept", which a user adds in one line."""
    made = []
    monkeypatch.setitem(TRACKERS, "kept", lambda *given: made.append(Kept(*given)) or made[-1])
    return made


@pytest.fixture
def uninstalled(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)


def run_of(tmp_path: Path, *names: str) -> TrainConfig:
    return TrainConfig(exp_name="x", cache_dir=str(tmp_path), log=LogConfig(to=names, project="p"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_one_that_is_not_installed_ends_in_the_pip_line(uninstalled, name):
    with pytest.raises(ValueError) as caught:
        check_trackers([name])
    assert str(caught.value) == f"--log.to {name}: {name} is not installed; pip install 'rmkit[{name}]'"


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    """wandb leaves a folder called wandb where it was started, and Python takes it for a namespace package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ValueError, match="wandb is not installed"):
        check_trackers(["wandb"])


def test_an_unknown_one_is_refused_with_the_known_ones(kept, tmp_path):
    for asked in (lambda: check_trackers(["mlflow"]), lambda: open_mirrors(run_of(tmp_path, "mlflow"), tmp_path, 0)):
        with pytest.raises(ValueError) as caught:
            asked()
        assert str(caught.value) == "--log.to mlflow: no such tracker; it can be tensorboard, wandb, trackio, kept"


def test_one_of_your_own_is_made_once_and_started(kept, tmp_path):
    config = run_of(tmp_path, "kept", "kept")
    assert open_mirrors(config, config.folder, 7) == kept
    assert len(kept) == 1
    run_name, folder, values, step = kept[0].made_with
    assert (run_name, folder, step) == ("x", tmp_path / "x", 7)
    assert values["log"] == {"to": ["kept", "kept"], "project": "p"}
    assert kept[0].told == ["start"]


def test_only_the_first_rank_opens_any(kept, tmp_path):
    assert open_mirrors(run_of(tmp_path, "kept"), None, 0) == []
    assert kept == []
    assert open_mirrors(run_of(tmp_path), tmp_path, 0) == []


def test_one_that_does_not_start_is_a_sentence_and_the_others_are_finished(kept, tmp_path, monkeypatch):
    def no_login(*given):
        raise RuntimeError("no API key\nsee the manual")

    monkeypatch.setitem(TRACKERS, "locked", no_login)
    with pytest.raises(ValueError) as caught:
        open_mirrors(run_of(tmp_path, "kept", "locked"), tmp_path, 0)
    assert str(caught.value) == "--log.to locked: it does not start: no API key"
    assert kept[0].told == ["start", "finish"]


def test_wandb_takes_up_its_run_by_the_id_in_the_run_folder(tmp_path):
    config = {"log": {"project": "p"}}
    first = TRACKERS["wandb"]("x", tmp_path, config, 0).init_kwargs
    resumed = TRACKERS["wandb"]("x", tmp_path, config, 5).init_kwargs
    anew = TRACKERS["wandb"]("x", tmp_path, config, 0).init_kwargs
    assert first["id"] == resumed["id"] != anew["id"]
    assert (first["resume"], first["name"], first["dir"]) == ("allow", "x", str(tmp_path))


def test_trackio_takes_up_its_run_by_name():
    config = {"log": {"project": "p"}}
    resume = [TRACKERS["trackio"]("x", Path("."), config, step).init_kwargs["resume"] for step in (0, 5)]
    assert resume == ["never", "allow"]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of the event files in `folder`."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(each.step, each.value) for each in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def test_tensorboard_shows_one_curve_of_a_resumed_run(tmp_path):
    """Steps 3 and 4 came behind the checkpoint of step 2 and are done again."""
    pytest.importorskip("tensorboard")
    config = run_of(tmp_path, "tensorboard")
    for begun, steps, loss in ((0, (0, 1, 2, 3, 4), 0.5), (2, (3, 4, 5), 0.25)):
        metrics = Metrics(config.folder, 0, open_mirrors(config, config.folder, begun))
        for step in steps:
            metrics.write({"loss/train": loss, "counters/updates": step})
        metrics.close()
    wanted = [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.25), (4, 0.25), (5, 0.25)]
    assert curves(config.folder / "tensorboard")["loss/train"] == wanted
    metrics = Metrics(config.folder, 0, open_mirrors(config, config.folder, 0))
    metrics.write({"loss/train": 0.75, "counters/updates": 0})
    metrics.close()
    assert curves(config.folder / "tensorboard")["loss/train"] == [(0, 0.75)]


def demo(cache: Path, *more: str) -> list[str]:
    return ["--exp-name", "r", "--cache-dir", str(cache), "--optim.max-steps", "2", "--batch.pairs", "4", *more]


def test_the_command_mirrors_every_line_of_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    few = str(tmp_path / "few.jsonl")
    row = {"prompt": "reverse abc", "chosen": "cba", "rejected": "abc"}
    Path(few).write_text("".join(json.dumps({**row, "prompt": f"reverse {i}"}) + "\n" for i in range(8)))
    assert main(demo(tmp_path, "--log.to", "tensorboard", "--data.train", few, "--data.test", few)) == 0
    rows = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    shown = curves(tmp_path / "r/tensorboard")
    assert {"loss/train", "loss/eval"} <= shown.keys()
    assert shown.keys() == set().union(*rows)
    for name, points in shown.items():
        held = [(row["counters/updates"], row[name]) for row in rows if name in row]
        assert [step for step, _ in points] == [step for step, _ in held]
        # TensorBoard keeps float32.
        assert [value for _, value in points] == pytest.approx([value for _, value in held], rel=2**-24, abs=1e-45)


def test_the_command_names_what_to_install_before_it_deletes_or_reads_anything(tmp_path, uninstalled, capsys):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/metrics.jsonl").write_text("{}\n")
    asked = ["--overwrite", "--model.name", "no/such-model", "--log.to", "wandb"]
    assert main(demo(tmp_path, *asked)) == 2
    assert "pip install 'rmkit[wandb]'" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "r/metrics.jsonl").read_text() == "{}\n"
