import pytest
import torch
from torch.nn import attention
from transformers import Gemma2Config, LlamaConfig

from rmkit.config import BatchConfig, ModelConfig, TrainConfig
from rmkit.model import flash

GPU = torch.device("cuda", 0)
INSTALLED, HOPPER, AMPERE = object(), (9, 0), (8, 0)


@pytest.fixture
def machine(monkeypatch):
    """Pretend a GPU, and that the package is installed or not."""

    def has(capability, package):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
        monkeypatch.setattr(flash, "find_spec", lambda name: package if name == "flash_attn_interface" else None)
        monkeypatch.setattr(flash, "activate_flash_attention_impl", lambda name: None)
        monkeypatch.setattr(flash, "restore_flash_attention_impl", lambda: None)

    return has


def chosen(asked, device=GPU, architecture=None, precision="auto", layout="trie", say=pytest.fail):
    config = TrainConfig(model=ModelConfig(attention=asked, precision=precision), batch=BatchConfig(layout=layout))
    return flash.chosen(config, architecture or LlamaConfig(), device, say)


@pytest.mark.parametrize(
    ("capability", "package", "found"), [(HOPPER, INSTALLED, "fa3"), (HOPPER, None, "fa2"), (AMPERE, INSTALLED, "fa2")]
)
def test_auto_is_the_third_where_it_is_installed_on_a_gpu_that_runs_it(machine, capability, package, found):
    machine(capability, package)
    assert chosen("auto") == found
    assert chosen("fa2") == "fa2"


def test_the_third_is_refused_with_what_is_missing(machine):
    machine(HOPPER, None)
    with pytest.raises(ValueError, match=r"^--model.attention fa3: the package flash_attn_interface is not installed"):
        chosen("fa3")
    machine(AMPERE, INSTALLED)
    with pytest.raises(ValueError, match=r"^--model.attention fa3: FlashAttention 3 needs a Hopper GPU .* a GPU;"):
        chosen("fa3")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"device": torch.device("cpu")}, "it needs a GPU, and there is none here"),
        ({"precision": "fp32"}, "it computes in 16 bits"),
        ({"layout": "padded"}, "padded rows need a mask"),
        ({"architecture": Gemma2Config()}, "a gemma2 model caps its logits"),
    ],
)
def test_where_neither_runs_auto_is_neither_and_others_are_refused(machine, how, why):
    machine(HOPPER, INSTALLED)
    assert chosen("auto", **how) is None
    for asked in ("fa2", "fa3"):
        with pytest.raises(ValueError, match=f"^--model.attention {asked}: {why}"):
            chosen(asked, **how)


def test_it_is_active_within_the_block_alone(monkeypatch):
    done = []
    monkeypatch.setattr(flash, "activate_flash_attention_impl", done.append)
    monkeypatch.setattr(flash, "restore_flash_attention_impl", lambda: done.append("restored"))
    for kernel in ("fa2", None):
        with flash.running(kernel):
            assert done == []

    def fails():
        with flash.running("fa3"):
            assert done == ["FA3"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert done == ["FA3", "restored"]


@pytest.mark.parametrize("error", [ImportError, RuntimeError, OSError])
def test_where_torch_cannot_use_the_package_auto_says_so_and_takes_the_second(machine, monkeypatch, error):
    machine(HOPPER, INSTALLED)

    def fails(name):
        raise error("undefined symbol\nand a long story")

    monkeypatch.setattr(flash, "activate_flash_attention_impl", fails)
    said = []
    assert chosen("auto", say=said.append) == "fa2"
    assert said == ["flash_attn_interface cannot be used (undefined symbol): FlashAttention 2 is used"]
    with pytest.raises(ValueError, match=r"^--model.attention fa3: flash_attn_interface cannot be used \(undefined"):
        chosen("fa3")
    assert chosen("fa2") == "fa2"


def test_torch_itself_is_asked(machine, monkeypatch):
    """The package is pretended, and its import fails."""
    machine(HOPPER, INSTALLED)
    monkeypatch.setattr(flash, "activate_flash_attention_impl", attention.activate_flash_attention_impl)
    said = []
    assert chosen("auto", say=said.append) == "fa2"
    assert said == [
        "flash_attn_interface cannot be used (No module named 'flash_attn_interface'): FlashAttention 2 is used"
    ]


def test_what_is_tried_is_left_as_it_was(machine, monkeypatch):
    machine(HOPPER, INSTALLED)
    done = []
    monkeypatch.setattr(flash, "activate_flash_attention_impl", done.append)
    monkeypatch.setattr(flash, "restore_flash_attention_impl", lambda: done.append("restored"))
    assert chosen("auto") == "fa3"
    assert done == ["FA3", "restored"]
