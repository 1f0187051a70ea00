import json
import subprocess

import torch

from rmkit import runtime
from rmkit.runtime import commit, environment
from rmkit.training.metrics import Metrics, describe


def test_metrics_are_on_the_disk_when_write_returns(tmp_path):
    metrics = Metrics(tmp_path / "run")
    metrics.write({"loss/train": 0.5})
    first = metrics.bytes
    metrics.write({"loss/train": 0.25})
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"loss/train": 0.5}, {"loss/train": 0.25}]
    assert (first, metrics.bytes) == (len(lines[0]) + 1, len(lines[0]) + len(lines[1]) + 2)
    metrics.close()


def test_metrics_are_cut_back_to_where_the_checkpoint_stood(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.write({"step": 1})
    kept = metrics.bytes
    metrics.write({"step": 2})
    metrics.close()
    again = Metrics(tmp_path, kept)
    assert again.bytes == kept
    again.write({"step": "2 again"})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": "2 again"}\n'
    again.close()
    Metrics(tmp_path, 10**6).close()
    assert (tmp_path / "metrics.jsonl").stat().st_size > kept  # a shorter file is not filled up with zeros
    assert "\0" not in (tmp_path / "metrics.jsonl").read_text()
    Metrics(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_metrics_of_other_ranks_write_nothing():
    metrics = Metrics(None)
    metrics.write({"step": 1})
    assert metrics.bytes == 0
    metrics.close()


class Mirror:
    """A tracker that keeps what it is told, until it is told of step `fails_at`."""

    name = "mirror"

    def __init__(self, fails_at=None):
        self.fails_at, self.told = fails_at, []

    def log(self, values, step):
        if step == self.fails_at:
            raise ConnectionError("no route [to] host\nand a long trace")
        self.told.append((step, dict(values)))
        values.clear()  # a tracker that spoils its copy spoils nothing else

    def finish(self):
        if self.fails_at == "finish":
            raise OSError
        self.told.append("finished")


def test_mirrors_get_each_line_with_its_step(tmp_path):
    mirrors = [Mirror(), Mirror()]
    metrics, plain_metrics = Metrics(tmp_path / "a", 0, mirrors), Metrics(tmp_path / "b")
    rows = [{"counters/updates": step, "loss/train": 0.5**step} for step in (0, 1, 1)]
    for row in rows:
        metrics.write(row)
        plain_metrics.write(row)
    metrics.close()
    metrics.close()
    plain_metrics.close()
    for mirror in mirrors:
        assert mirror.told == [*((row["counters/updates"], row) for row in rows), "finished"]
    assert [row["counters/updates"] for row in rows] == [0, 1, 1]
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_a_mirror_that_fails_is_named_once_and_dropped(tmp_path):
    broken, unfinished, whole, said = Mirror(2), Mirror("finish"), Mirror(), []
    metrics = Metrics(tmp_path, 0, [broken, unfinished, whole], said.append)
    for step in (1, 2, 3):
        metrics.write({"counters/updates": step})
    told = "mirror failed and gets nothing more, metrics.jsonl has it all: "
    assert said == [told + "no route [to] host"]
    metrics.close()
    assert said == [told + "no route [to] host", told + "OSError"]
    assert [step for step, _ in broken.told] == [1]
    assert [each if each == "finished" else each[0] for each in whole.told] == [1, 2, 3, "finished"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_describe_writes_config_and_environment(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py", "--seed", "3"])
    describe(None, {}, torch.device("cpu"), 1)
    describe(tmp_path, {"seed": 3}, torch.device("cpu"), 2)
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 3}
    found = json.loads((tmp_path / "env.json").read_text())
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["ranks"] == 2
    assert found["threads"] == torch.get_num_threads()
    assert found["command"] == ["train.py", "--seed", "3"]  # without the folders of this machine
    assert found["device"]
    assert found["commit"] == commit()


def test_environment_of_a_package_that_is_not_installed(monkeypatch):
    def missing(package):
        raise runtime.PackageNotFoundError

    monkeypatch.setattr(runtime, "version", missing)
    assert set(environment(torch.device("cpu"), 1)["versions"].values()) == {None}


def test_commit_is_that_of_the_checkout_the_code_runs_from(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "rmkit/runtime.py"))
    assert commit() is None

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--no-verify", "-m", "one")
    head = git("rev-parse", "HEAD").stdout[:12]
    assert commit() == head
    (tmp_path / "file").write_text("2")
    assert commit() == f"{head}-dirty"

    def no_git(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", no_git)
    assert commit() is None


def test_a_run_that_goes_on_knows_its_last_evaluation(tmp_path):
    """Killed behind its last step, it evaluates no more, and its model card still tells the figure."""
    first = Metrics(tmp_path)
    for values in ({"loss/eval": 0.5}, {"loss/train": 0.4}, {"loss/eval": 0.25}):
        first.write({"counters/updates": 1, **values})
    kept = first.bytes
    first.write({"counters/updates": 2, "loss/eval": 9.0})
    first.close()
    again = Metrics(tmp_path, kept)
    again.close()
    assert again.evaluated == {"counters/updates": 1, "loss/eval": 0.25}
    assert Metrics(None).evaluated == {}
