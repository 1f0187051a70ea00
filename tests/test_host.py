import pytest
import torch

from rmkit.storage import export, host, training_state
from rmkit.training.optim import adamw
from support.saved import CONFIG, TOKENIZER, small


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_copy_is_contiguous_and_its_own(device):
    held = torch.arange(12.0, device=device).reshape(3, 4)
    found = [host.copied(held), host.copied(held.T), host.copied(held[0, 0])]
    host.wait()
    held.zero_()
    wanted = torch.arange(12.0).reshape(3, 4)
    for copy, same in zip(found, (wanted, wanted.T, wanted[0, 0]), strict=True):
        assert torch.equal(copy, same)
        assert copy.is_contiguous()
        assert copy.is_pinned() == (device == "cuda")


def test_what_is_saved_is_waited_for_once(monkeypatch):
    model = small()
    optimizer = adamw(model, CONFIG.optim)
    waits = []
    monkeypatch.setattr(host, "wait", lambda: waits.append(1))
    training_state.copied(model, optimizer)
    assert len(waits) == 1
    export.snapshot(model, TOKENIZER, CONFIG, 77)
    assert len(waits) == 2
