"""A folder is whole or absent, whatever happens while it is written."""

import os

import pytest
from transformers.utils import logging as transformers_logging

from rmkit.storage.atomic import delete_partial, written_aside, written_together

transformers_logging.disable_progress_bar()


class BrokenError(Exception):
    pass


def fail_after_writing(folder):
    with written_aside(folder) as partial:
        (partial / "a").write_text("half")
        raise BrokenError


def test_a_folder_is_whole_or_absent(tmp_path):
    folder = tmp_path / "runs" / "FINAL"
    with pytest.raises(BrokenError):
        fail_after_writing(folder)
    assert not folder.exists()
    with written_aside(folder) as partial:
        assert list(partial.iterdir()) == []  # what the failure left is gone
        (partial / "a").write_text("1")
        (partial / "only here").write_text("1")
        assert not folder.exists()
    with pytest.raises(BrokenError):
        fail_after_writing(folder)
    assert (folder / "a").read_text() == "1"
    with written_aside(folder) as partial:
        (partial / "a").write_text("2")
        assert (folder / "a").read_text() == "1"
    assert (folder / "a").read_text() == "2"
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert [path.name for path in folder.parent.iterdir()] == ["FINAL"]


def test_everything_is_on_the_disk_before_the_folder_takes_its_name(tmp_path, monkeypatch):
    before, after = [], []

    def fsync(descriptor):
        synced = after if (tmp_path / "x").exists() else before
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    with written_aside(tmp_path / "x") as partial:
        (partial / "a").write_text("1")
        (partial / "in").mkdir()
        (partial / "in" / "b").write_text("2")
    assert set(before) == {str(partial), *(str(partial / name) for name in ("a", "in", "in/b"))}
    assert after == [str(tmp_path)]  # the name itself


def test_what_a_failure_left_is_deleted(tmp_path):
    with pytest.raises(BrokenError):
        fail_after_writing(tmp_path / "runs" / "FINAL")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_is_written_together_is_whole_or_absent(tmp_path):
    folder = tmp_path / "FINAL"

    def fill(partial):
        (partial / "a").write_text("1")
        return "filled"

    def finish(partial, outcomes):
        assert outcomes == ["filled"]
        assert not folder.exists()
        (partial / "b").write_text("2")

    written_together(folder, fill, finish)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]

    def breaks(*arguments):
        raise BrokenError

    for broken in ((breaks, finish), (fill, breaks)):
        with pytest.raises(BrokenError):
            written_together(folder, *broken)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["FINAL"]


def test_the_rest_of_killed_processes_is_deleted(tmp_path):
    for name in (".step-3.partial", "step-2", ".hidden"):
        (tmp_path / name / "in").mkdir(parents=True)
    delete_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "step-2"]
    delete_partial(tmp_path / "nowhere")
