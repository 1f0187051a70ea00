import socket

import datasets
import pytest
from huggingface_hub import constants

from rmkit.data import hub


@pytest.fixture
def online(monkeypatch):
    """A process that does not know yet whether it is; what it asks for goes to the returned list."""
    for module, name in ((constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")):
        monkeypatch.setattr(module, name, False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    asked = []

    def refuse(address, timeout):
        asked.append((address, timeout))
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    hub.settle.cache_clear()
    yield asked
    hub.settle.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once(online, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    hub.settle()
    hub.settle()
    assert online == [(("hub.example", 443), hub.SECONDS)]
    assert constants.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE


def test_behind_a_proxy_nothing_is_changed(online, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    hub.settle()
    assert online == []
    assert not constants.HF_HUB_OFFLINE
