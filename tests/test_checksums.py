"""A changed, cut or missing file is found, the list of checksums itself among them."""

import os
import shutil
import subprocess

import pytest

from rmkit.storage.checksums import NAME, checksums, damage, write_checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    files = [tmp_path / "b", tmp_path / "in" / "a", tmp_path / "\u00e9 c"]
    for file in files:
        file.write_text(file.name * 9)
    write_checksums(tmp_path, [checksums(tmp_path, files[:2]), checksums(tmp_path, files[2:])])
    assert damage(tmp_path) is None
    return tmp_path


def spoil(file):
    """Flip a bit of each byte of a file in turn, and cut it there, stopping at each; delete it in the end."""
    whole = file.read_bytes()
    for i in range(len(whole)):
        changed = bytearray(whole)
        changed[i] ^= 1
        file.write_bytes(changed)
        yield
        file.write_bytes(whole[:i])
        yield
    file.unlink()


@pytest.mark.parametrize("name", ["b", "in/a", "\u00e9 c"])
def test_every_byte_counts(folder, name):
    file = folder / name
    for _ in spoil(file):
        assert "does not have its checksum" in damage(folder)
    assert file.name in damage(folder)


def test_every_byte_of_the_list_counts(folder):
    file = folder / NAME
    for _ in spoil(file):
        assert damage(folder) == f"{NAME} does not have its own checksum"
    assert NAME in damage(folder)


def test_a_file_beside_the_listed_ones_is_no_damage(folder):
    (folder / "notes.txt").write_text("mine")
    assert damage(folder) is None


@pytest.mark.parametrize("name", ["a", "notes", NAME])
def test_a_pipe_is_damage_and_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert damage(folder) == f"{name} is no ordinary file"


def test_a_file_that_rank_0_does_not_see_is_refused(tmp_path):
    with pytest.raises(OSError, match="a of rank 1 is not on the disk of rank 0: all ranks must share one disk"):
        write_checksums(tmp_path, [{}, {"a": "0" * 64}])


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_sha256sum_reads_it(folder):
    def checked():
        return subprocess.run(["sha256sum", "--strict", "-c", NAME], cwd=folder, capture_output=True, text=True)

    assert checked().returncode == 0, checked().stderr
    os.truncate(folder / "b", 1)
    assert checked().returncode == 1
