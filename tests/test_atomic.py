"""A file or a folder is whole or absent, whatever happens while it is written."""

import errno
import os

import pytest
import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from rmkit.distributed.collectives import rank
from rmkit.storage.atomic import delete_partial, written_file, written_folder
from support.ranks import run

transformers_logging.disable_progress_bar()


class BrokenError(Exception):
    pass


def fails(*arguments):
    raise BrokenError


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_file_is_whole_or_absent(tmp_path, elsewhere):
    file, folder = tmp_path / "a.json", tmp_path / "elsewhere" if elsewhere else None
    (tmp_path / "elsewhere").mkdir()

    def written(*texts):
        with written_file(file, folder) as out:
            for text in texts:
                out.write(text())
            assert [path.name for path in (folder or tmp_path).glob(".*")] == [".a.json.partial"]

    with pytest.raises(BrokenError):
        written(lambda: "half", fails)
    assert os.listdir(tmp_path) == ["elsewhere"]
    written(lambda: "old")
    with pytest.raises(BrokenError):
        written(lambda: "half", fails)
    assert file.read_text() == "old"
    written(lambda: "\ud800\u00fc", lambda: "\r\n")
    assert file.read_bytes() == b"\\ud800\xc3\xbc\r\n"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "elsewhere"]
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    file, synced = tmp_path / "a", []
    monkeypatch.setattr(
        os, "fsync", lambda n: synced.append((os.readlink(f"/proc/self/fd/{n}"), os.fstat(n).st_size, file.exists()))
    )
    with written_file(file) as out:
        out.write("123")
    assert synced[0] == (str(tmp_path / ".a.partial"), 3, False)
    assert [(name, there) for name, _, there in synced[1:]] == [(str(tmp_path), True)]


def test_a_file_that_cannot_be_written_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), written_file(tmp_path / "a") as out:
        out.write("1")
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError), written_file(tmp_path / "nowhere" / "a"):
        pass


def test_a_file_takes_over_what_a_kill_left(tmp_path):
    (tmp_path / ".a.partial").write_text("what was written before the kill, and longer")
    with written_file(tmp_path / "a") as out:
        out.write("1")
    assert (tmp_path / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["a"]


def fail_after_writing(folder, **how):
    with written_folder(folder, **how) as partial:
        (partial / "a").write_text("half")
        raise BrokenError


def test_a_folder_is_whole_or_absent(tmp_path):
    folder = tmp_path / "runs" / "FINAL"
    with pytest.raises(BrokenError):
        fail_after_writing(folder)
    assert not folder.exists()
    with written_folder(folder) as partial:
        assert list(partial.iterdir()) == []  # what the failure left is gone
        (partial / "a").write_text("1")
        (partial / "only here").write_text("1")
        assert not folder.exists()
    with pytest.raises(BrokenError):
        fail_after_writing(folder)
    assert (folder / "a").read_text() == "1"
    with written_folder(folder) as partial:
        (partial / "a").write_text("2")
        assert (folder / "a").read_text() == "1"
    assert (folder / "a").read_text() == "2"
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert [path.name for path in folder.parent.iterdir()] == ["FINAL"]


def test_a_kill_between_the_two_names_loses_neither(tmp_path):
    """The old folder has given its name away, and the new one has not taken it."""
    (tmp_path / ".FINAL.old").mkdir()
    (tmp_path / ".FINAL.old" / "a").write_text("1")
    with pytest.raises(BrokenError):
        fail_after_writing(tmp_path / "FINAL")
    assert (tmp_path / "FINAL" / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["FINAL"]


def test_everything_is_on_the_disk_before_the_folder_takes_its_name(tmp_path, monkeypatch):
    before, after = [], []

    def fsync(descriptor):
        synced = after if (tmp_path / "x").exists() else before
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    with written_folder(tmp_path / "x") as partial:
        (partial / "a").write_text("1")
        (partial / "in").mkdir()
        (partial / "in" / "b").write_text("2")
    assert set(before) == {str(partial), *(str(partial / name) for name in ("a", "in", "in/b"))}
    assert after == [str(tmp_path)]  # the name itself


def test_what_a_failure_left_is_deleted(tmp_path):
    with pytest.raises(BrokenError):
        fail_after_writing(tmp_path / "runs" / "FINAL")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_of_all_ranks_is_whole_or_absent_without_a_group_too(tmp_path):
    folder = tmp_path / "FINAL"
    with written_folder(folder, all_ranks=True) as partial:
        (partial / "a").write_text("1")
        assert not folder.exists()
    assert os.listdir(folder) == ["a"]
    with pytest.raises(BrokenError):
        fail_after_writing(folder, all_ranks=True)
    assert os.listdir(folder) == ["a"]
    assert os.listdir(tmp_path) == ["FINAL"]


def fill_on_each_rank(folder, failing):
    dist.init_process_group("gloo")
    try:
        with written_folder(folder, all_ranks=True) as partial:
            (partial / str(rank())).write_text("1")
            if rank() == failing:
                raise ValueError(f"rank {rank()} fails")
        print(sorted(os.listdir(folder)))
    except ValueError as error:
        print(error, folder.exists())
    if rank() == 0:
        with written_folder(folder.with_name("alone")):  # no other rank takes part
            pass
    dist.barrier()


@pytest.mark.parametrize("failing", [None, 0, 1])
def test_two_ranks_fill_a_folder_and_where_one_fails_all_raise(tmp_path, failing):
    ranks = run(2, tmp_path / "ranks", fill_on_each_rank, tmp_path / "in" / "x", failing)
    for number in range(2):
        who = "" if number == failing else f"rank {failing}: "
        told = "['0', '1']" if failing is None else f"{who}rank {failing} fails False"
        assert ranks.out(number).splitlines()[-1] == told
    assert sorted(os.listdir(tmp_path / "in")) == ["alone", *(["x"] if failing is None else [])]


def test_the_rest_of_killed_processes_is_deleted(tmp_path):
    for name in (".step-3.partial", "step-2", ".hidden"):
        (tmp_path / name / "in").mkdir(parents=True)
    delete_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "step-2"]
    delete_partial(tmp_path / "nowhere")
