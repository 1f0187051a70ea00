"""What every test relies on: no network, no GPU unless -m gpu asks for one, and Triton's interpreter without one."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny tensors gain nothing from a second core, which another worker (pytest -n 2) uses; what tests start inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


def wants_gpu(markers: str) -> bool:
    """Whether -m selects tests that need a GPU. The others compare bit for bit, or put two ranks on one device."""
    return "gpu" in markers.replace("not gpu", "")


def pytest_configure(config: pytest.Config) -> None:
    if not wants_gpu(config.getoption("markexpr")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything asks for a device; processes of tests inherit it
    # Read when a kernel is decorated, so before any test imports rmkit_kernels.
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
