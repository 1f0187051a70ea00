import os

import pytest
import torch

from rmkit.training.repeat import WORKSPACE, repeatable


def settings() -> tuple:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get(WORKSPACE),
    )


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.delenv(WORKSPACE, raising=False)


@pytest.mark.parametrize("given", [None, ":16:8", "other"])
def test_within_the_block_kernels_sum_in_order_and_afterwards_all_is_as_before(gpu, monkeypatch, given):
    if given:
        monkeypatch.setenv(WORKSPACE, given)
    before = settings()

    def fails():
        with repeatable(True):
            assert settings() == (True, False, False, ":16:8" if given == ":16:8" else ":4096:8")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert settings() == before


def test_not_asked_for_or_on_a_cpu_nothing_changes(gpu, monkeypatch):
    before = settings()
    with repeatable(False):
        assert settings() == before
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with repeatable(True):
        assert settings() == before


def test_a_process_that_has_used_cuda_is_told_what_to_set(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match=rf"^--deterministic: .* set {WORKSPACE}=:4096:8 in its environment"):
        repeatable(True).__enter__()
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with repeatable(True):
        assert torch.are_deterministic_algorithms_enabled()
