"""FINAL on the hub: whole where it can be, one sentence where it cannot, status 0 always."""

import os
import subprocess
import sys
import time

import datasets
import pytest
from huggingface_hub import ModelCard, constants, get_session

from rmkit.config import HubConfig, TrainConfig
from rmkit.data import hub as reached
from rmkit.data.demo import preferences
from rmkit.storage import push as pushing
from rmkit.storage.push import command, foresee, push
from support.hub_server import TOKEN, hub, settings
from support.saved import CONFIG, TOKENIZER, small, write_model
from support.victim import save_lm, write_rows

CONFIG_OF_HUB = HubConfig(push="me/my-rm")


@pytest.fixture
def final(tmp_path):
    """A FINAL with what no model has beside it."""
    write_model(small(), TOKENIZER, CONFIG, 77, tmp_path / "r" / "FINAL")
    (tmp_path / "r" / "FINAL" / "core.1234").write_text("of a crash")
    return tmp_path / "r" / "FINAL"


@pytest.fixture
def pushed(final, monkeypatch):
    """push(config) to a stand-in, as a process does for which that is the hub; what it says."""
    reached.answers.cache_clear()
    for name in ("HF_HUB_OFFLINE", *reached.PROXIES):
        monkeypatch.delenv(name, raising=False)
    for module, name in (
        (constants, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_DATASETS_OFFLINE"),
    ):
        monkeypatch.setattr(module, name, False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def run(server, config=CONFIG_OF_HUB, token=TOKEN, folder=final):
        monkeypatch.setattr(constants, "ENDPOINT", server if isinstance(server, str) else server.url)
        monkeypatch.setenv("HF_TOKEN", token)
        said = []
        push(folder, config, said.append)
        return said

    yield run
    reached.answers.cache_clear()


def of_the_model(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "core.1234")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_whole_model_and_nothing_else_is_uploaded(pushed, final):
    (final / "adapter").mkdir()
    (final / "adapter" / "adapter_model.safetensors").write_bytes(b"as --lora.keep both leaves it")
    with hub() as server:
        said = pushed(server)
    assert said == [
        "no part of the model, so it stays here: core.1234",
        f"FINAL is on the hub: {server.url}/me/my-rm",
    ]
    assert server.files == of_the_model(final)
    assert server.created == {"name": "my-rm", "organization": "me"}
    assert server.revision == "main"
    assert get_session().timeout.read is None, "the client of others waits as it did"


def test_private_and_a_branch(pushed):
    with hub() as server:
        said = pushed(server, HubConfig(push="me/my-rm", private=True, revision="v1"))
    assert said[-1] == f"FINAL is on the hub: {server.url}/me/my-rm/tree/v1"
    assert server.created["visibility"] == "private"
    assert "POST /api/models/me/my-rm/branch/v1" in server.asked
    assert server.revision == "v1"


def test_a_repository_that_is_there_already_is_updated(pushed, final):
    with hub(public=True) as server:
        pushed(server)
    assert server.files == of_the_model(final)


def test_nothing_private_goes_where_all_can_read_it(pushed):
    with hub(public=True) as server:
        said = pushed(server, HubConfig(push="me/my-rm", private=True))
    assert "is there already and public, and --hub.private was asked for" in said[0]
    assert not server.files
    assert not server.objects


@pytest.mark.parametrize(
    ("fails", "token", "words"),
    [
        ({}, "hf_wrong", "answered 401: it does not know who you are; run hf auth login, or set HF_TOKEN"),
        ({"preupload": 403}, TOKEN, "answered 403: your token may not write there"),
        ({"create": 404}, TOKEN, "answered 404: it knows no such owner"),
        ({"create": 500}, TOKEN, "answered 500: the stand-in was told to"),
        ({"create": 0}, TOKEN, "said nothing for 1 seconds"),
        ({"validate-yaml": 0}, TOKEN, "said nothing for 1 seconds"),
    ],
)
def test_what_goes_wrong_is_one_sentence_with_the_command_for_later(pushed, final, fails, token, words, monkeypatch):
    monkeypatch.setattr(pushing, "PATIENCE", 1.0)
    (final / "README.md").write_text("---\ntags: [x]\n---\n")
    with hub(fails) as server:
        said = pushed(server, token=token)
    assert words in said[-1]
    assert said[-1].startswith("warning: FINAL was not pushed to me/my-rm: ")
    assert said[-1].endswith(f"\n{command(final, CONFIG_OF_HUB)}")
    assert not server.files
    assert not any("authorization" in text.lower() or TOKEN in text for text in said)


def test_a_hub_that_is_not_there_is_told_at_once(pushed, monkeypatch):
    began = time.monotonic()
    assert "http://127.0.0.1:9 does not answer" in pushed("http://127.0.0.1:9")[0]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the constant is set by now
    assert "HF_HUB_OFFLINE is set" in pushed("http://127.0.0.1:9")[0]
    assert time.monotonic() - began < 5


def test_whoever_is_not_logged_in_is_told_before_the_training(monkeypatch):
    said = []
    monkeypatch.setattr(pushing, "_offline", lambda: "")
    monkeypatch.setattr(pushing, "get_token", lambda: None)
    foresee(CONFIG_OF_HUB, said.append)
    assert "would fail (there is no token; run hf auth login, or set HF_TOKEN); the training goes on" in said[0]
    monkeypatch.setattr(pushing, "get_token", lambda: TOKEN)
    foresee(CONFIG_OF_HUB, said.append)
    foresee(HubConfig(), said.append)
    assert len(said) == 1


def test_ctrl_c_still_ends_the_program(pushed, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing, "_upload", interrupted)
    with hub() as server, pytest.raises(KeyboardInterrupt):
        pushed(server)


def test_the_command_for_later_says_it_all(tmp_path):
    config = HubConfig(push="me/my-rm", private=True, revision="v1")
    assert command(tmp_path / "a b" / "FINAL", config) == (
        f"hf upload me/my-rm '{tmp_path}/a b/FINAL' . --private --revision v1"
    )


@pytest.mark.parametrize(
    "name", ["", "my-rm", "a/b/c", "/x", "x/", "me/my rm", "me/..", "me/a--b", "me/.x", "me/x.git", "me/" + "x" * 95]
    + ["https://huggingface.co/me/x", "me/caf\u00e9", "me/x\n"],
)  # fmt: skip
def test_a_malformed_name_is_refused_before_anything_is_read(name):
    with pytest.raises(ValueError, match=r"(?s)^--hub\.push .*: write OWNER/NAME, such as"):
        HubConfig(push=name)


@pytest.mark.parametrize("name", ["me/my-rm", "Me_2/a.b-c_d", "0/1"])
def test_a_name_that_the_hub_takes_is_taken(name):
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    assert HubConfig(push=name).push == name


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"private": True}, "--hub.private True: set --hub.push OWNER/NAME too"),
        ({"revision": "v1"}, "--hub.revision v1: set --hub.push OWNER/NAME too"),
        ({"push": "me/x", "revision": "../main"}, "--hub.revision ../main: write the name of a branch"),
        ({"push": "me/x", "revision": ""}, "--hub.revision '': write the name of a branch"),
    ],
)
def test_flags_that_do_not_fit_are_refused(more, words):
    with pytest.raises(ValueError, match=r"^--hub\.") as told:
        HubConfig(**more)
    assert words in str(told.value)
    assert TrainConfig().hub.push is None


def test_the_command_trains_and_pushes_and_ends_well_where_it_cannot(tmp_path):
    save_lm(tmp_path / "lm")
    write_rows(tmp_path / "rows.jsonl", [row for _, row in zip(range(8), preferences("train"), strict=False)])
    flags = ["--model.name", "lm", "--data.train", "rows.jsonl", "--optim.max-steps", "1", "--hub.push", "me/my-rm"]
    flags += ["--exp-name", "r", "--overwrite"]
    command_line = [sys.executable, "-m", "rmkit.train", *flags]
    with hub() as server:
        settled = {**os.environ, **settings(server)}
        ran = subprocess.run(command_line, capture_output=True, text=True, env=settled, cwd=tmp_path, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.rstrip().endswith(f"FINAL is on the hub: {server.url}/me/my-rm")
    assert "it/s" not in ran.stderr
    assert server.files == of_the_model(tmp_path / "runs" / "r" / "FINAL")
    assert ModelCard(server.files["README.md"].decode()).data.pipeline_tag == "text-classification"
