import platform

import pytest
import torch

from rmkit.model import precision


@pytest.mark.parametrize(
    ("asked", "device", "able", "wanted"),
    [
        ("auto", "cpu", True, "fp32"),
        ("auto", "cpu", False, "fp32"),
        ("bf16", "cpu", True, "bf16"),
        ("bf16", "cpu", False, "fp32"),
        ("fp32", "cpu", True, "fp32"),
        ("auto", "cuda", False, "bf16"),
        ("bf16", "cuda", False, "bf16"),
        ("fp32", "cuda", False, "fp32"),
    ],
)
def test_what_is_computed_in_is_said(monkeypatch, asked, device, able, wanted):
    monkeypatch.setattr(precision, "has_bf16", lambda: able)
    said = []
    assert precision.resolved(asked, device, said.append) == wanted
    assert [text.startswith(f"computes in {wanted}") for text in said] == [True]
    refused = (asked, device, able) == ("bf16", "cpu", False)
    assert ("no bf16 instructions" in said[0]) == refused


@pytest.mark.parametrize(
    ("capability", "instructions", "able"),
    [("AVX512", True, True), ("AVX512", False, False), ("AVX2", True, False), ("DEFAULT", True, False)],
)
def test_x86_needs_the_instructions_and_torch_to_use_them(monkeypatch, capability, instructions, able):
    """ATEN_CPU_CAPABILITY is what torch says that its capability is."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    assert precision.has_bf16() is able


def test_this_processor_is_looked_at():
    assert precision.has_bf16() in (True, False)
