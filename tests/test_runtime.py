"""glibc is asked for the two thresholds, and takes them; another C library is left alone."""

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rmkit.runtime import keep_freed


def test_both_thresholds_are_set(monkeypatch):
    asked = {}
    library = SimpleNamespace(mallopt=lambda name, value: asked.update({name: value}) or 1)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert keep_freed()
    assert asked == {-1: 2**31 - 1, -3: 2**25}  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def test_another_library_is_not_asked(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not keep_freed()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_takes_them():
    """In a process of its own, for the thresholds stay."""
    code = "from rmkit.runtime import keep_freed; print(keep_freed())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
