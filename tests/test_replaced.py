import contextlib
import os
from pathlib import Path

import pytest

from rmkit.storage import replaced
from rmkit.storage.run_folder import _settle
from support.listing import listing

NAMES = ("FINAL", "checkpoints", "metrics.jsonl")


class Killed(BaseException):
    """A kill -9: nothing is cleaned up"""


def run(folder: Path, word: str) -> dict[str, str]:
    for name in ("FINAL", "checkpoints"):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").write_text(word)
    (folder / "metrics.jsonl").write_text(word)
    return listing(folder, without=(replaced.NAME,))


def kill_at(monkeypatch, count: int) -> None:
    """Kill the process at the count-th change of a name, before it is done or (odd counts) behind it."""
    calls = iter(range(10**6))

    def killing(real):
        def change(*arguments, **keywords):
            now = next(calls)
            if now == count // 2 and count % 2 == 0:
                raise Killed
            done = real(*arguments, **keywords)
            if now == count // 2:
                raise Killed
            return done

        return change

    for name in ("rename", "mkdir", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, killing(getattr(os, name)))


def test_what_is_kept_comes_back(tmp_path):
    before = run(tmp_path, "old")
    replaced.keep(tmp_path, NAMES)
    assert replaced.holds(tmp_path)
    assert listing(tmp_path / replaced.NAME, without=(replaced.MARK,)) == before
    (tmp_path / "metrics.jsonl").write_text("new")
    assert replaced.put_back(tmp_path, NAMES)
    assert listing(tmp_path) == before
    assert not replaced.put_back(tmp_path, NAMES)


def test_what_is_whole_lets_the_old_go(tmp_path):
    run(tmp_path, "old")
    replaced.keep(tmp_path, NAMES)
    new = run(tmp_path, "new")
    replaced.let_go(tmp_path)
    assert listing(tmp_path) == new


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("count", range(30))
def test_a_kill_at_any_moment_loses_nothing(tmp_path, monkeypatch, count, stopped):
    """Killed while it moves the old files away, or while the next start puts back: the start after that finds all.
    `stopped`: what is moved away was itself stopped at its first checkpoint, with an older run kept beside it."""
    before = run(tmp_path, "older")
    if stopped:
        replaced.keep(tmp_path, NAMES)
        (tmp_path / "checkpoints" / "step-2").mkdir(parents=True)
        (tmp_path / "metrics.jsonl").write_text("old")
        before = listing(tmp_path)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        kill_at(patch, count)
        replaced.keep(tmp_path, NAMES)
        (tmp_path / "metrics.jsonl").write_text("new")
        (tmp_path / "checkpoints").mkdir()
        replaced.put_back(tmp_path, NAMES)
    _settle(tmp_path, print)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("count", range(12))
def test_a_kill_while_the_old_is_deleted_leaves_the_new(tmp_path, monkeypatch, count):
    run(tmp_path, "old")
    replaced.keep(tmp_path, NAMES)
    new = run(tmp_path, "new")
    with monkeypatch.context() as patch:
        kill_at(patch, count)
        with contextlib.suppress(Killed):
            replaced.let_go(tmp_path)
    replaced.let_go(tmp_path)
    assert listing(tmp_path) == new


def test_a_folder_of_that_name_that_is_not_ours_is_never_touched(tmp_path):
    run(tmp_path, "mine")
    (tmp_path / replaced.NAME).mkdir()
    (tmp_path / replaced.NAME / "thesis.tex").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(ValueError, match="old-run is not of rmkit's making"):
        replaced.keep(tmp_path, NAMES)
    replaced.let_go(tmp_path)
    assert not replaced.put_back(tmp_path, NAMES)
    assert listing(tmp_path) == before


def test_links_are_moved_and_never_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("kept")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "FINAL").symlink_to(elsewhere)
    replaced.keep(folder, NAMES)
    replaced.let_go(folder)
    assert (elsewhere / "weights").read_text() == "kept"
    assert list(folder.iterdir()) == []
