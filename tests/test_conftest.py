"""Tests see a GPU only where they are asked for by their marker."""

import os

import pytest
import torch
from conftest import wants_gpu


@pytest.mark.parametrize(
    ("markers", "wanted"),
    [
        ("gpu", True),
        ("gpu and not slow", True),
        ("slow or gpu", True),
        ("not slow", False),
        ("not gpu", False),
        ("", False),
    ],
)
def test_a_gpu_is_wanted_where_its_marker_is_selected(markers, wanted):
    assert wants_gpu(markers) == wanted


def test_no_device_is_seen_here():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()
