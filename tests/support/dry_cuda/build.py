"""fake_cuda.cpp as a shared library against the torch that runs, built with g++ once for all who ask."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from filelock import FileLock

SOURCE = Path(__file__).with_name("fake_cuda.cpp")


def library(folder: Path) -> Path:
    """Build it in this folder."""
    torch_folder = Path(torch.__file__).parent
    include, lib = torch_folder / "include", torch_folder / "lib"
    built = folder / "fake_cuda.so"
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(SOURCE), "-o", str(built)]
    command += [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    subprocess.run([*command, f"-L{lib}", f"-Wl,-rpath,{lib}", "-ltorch_cpu", "-lc10"], check=True)
    return built


def shared(folders: pytest.TempPathFactory) -> Path:
    """The one of this run of the tests, which its workers (pytest -n 2) share; whoever asks first builds it."""
    folder = folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "fake_cuda.lock"):
        built = folder / "fake_cuda.so"
        return built if built.exists() else library(folder)
