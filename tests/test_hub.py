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
    hub.answers.cache_clear()
    yield asked
    hub.answers.cache_clear()


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


def test_what_is_in_no_cache_of_an_offline_machine_is_absent(online, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    assert hub.absent("datasets", "owner/set")
    assert hub.absent("models", "gpt2")
    (tmp_path / "hub" / "models--gpt2").mkdir(parents=True)
    assert not hub.absent("models", "gpt2")
    (tmp_path / "datasets" / "owner___another_spelling").mkdir(parents=True)
    assert not hub.absent("datasets", "owner/set"), "it may be that one"
    assert hub.absent("models", "owner/set")
    with monkeypatch.context() as patch:
        patch.setattr(hub, "answers", lambda: True)
        assert not hub.absent("models", "owner/set")
