"""Peak rates by the names that CUDA gives GPUs."""

import pytest

from rmkit.training.cards import rate_of


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA B200", 2250),
    ],
)
def test_known_cards(name, tera):
    assert rate_of(name) == tera * 1e12


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA L40", ""])
def test_of_others_nothing_is_claimed(name):
    assert rate_of(name) is None
