"""FINAL on the hub: uploaded when the training is over, and never the reason that one fails.

A model that is whole on this disk is worth more than its copy. So whatever goes wrong here (no network, no token, no
permission, a server that says nothing) ends in one sentence with the command that does it later.
"""

import contextlib
import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.utils import HfHubHTTPError, logging

import rmkit
from rmkit.config import HubConfig
from rmkit.data import hub
from rmkit.errors import brief, plain
from rmkit.storage.atomic import files_below

PATIENCE = 60.0
"""Seconds without a word from the server after which it is given up; huggingface_hub would wait for ever."""
OF_A_MODEL = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.md")
"""Files of a model and its tokenizer, in FINAL and in FINAL/adapter; nothing else there is uploaded."""
WHY = {
    401: "it does not know who you are; run hf auth login, or set HF_TOKEN",
    403: "your token may not write there; check the owner's name and the token's permissions",
    404: "it knows no such owner or branch, or does not show it to you",
}
"""What a status code of the hub means to the user"""


def foresee(config: HubConfig, say: Callable[[str], None]) -> None:
    """Say before the training what will keep FINAL from the hub, as far as it is known without asking it."""
    if config.push is None:
        return
    if (offline := _offline()) or get_token() is None:
        why = offline or "there is no token; run hf auth login, or set HF_TOKEN"
        say(
            f"warning: --hub.push {config.push} would fail ({why}); the training goes on, and FINAL can be pushed later"
        )


def push(folder: Path, config: HubConfig, say: Callable[[str], None]) -> None:
    """Upload a whole FINAL to the hub, and say where it is; or say why not, and the command that does it later."""
    if config.push is None:
        return
    try:
        why = _offline()
        if not why:
            with _patient():
                say(f"FINAL is on the hub: {_upload(folder, config, say)}")
            return
    except KeyboardInterrupt:
        say(_not_pushed(folder, config, "it was stopped"))
        raise
    except Exception as error:  # whatever a library, a network or a server comes up with
        why = _told(error)
    say(_not_pushed(folder, config, why))


def command(folder: Path, config: HubConfig) -> str:
    """The command that pushes by hand what `push` could not."""
    words = ["hf", "upload", str(config.push), str(folder), "."]
    words += ["--private"] if config.private else []
    words += ["--revision", config.revision] if config.revision else []
    return shlex.join(words)


def _upload(folder: Path, config: HubConfig, say: Callable[[str], None]) -> str:
    api, name = HfApi(library_name="rmkit", library_version=rmkit.__version__), str(config.push)
    url = str(api.create_repo(name, private=config.private or None, exist_ok=True))
    if config.private and not api.model_info(name).private:
        raise ValueError(f"{url} is there already and public, and --hub.private was asked for")
    if config.revision is not None:
        api.create_branch(name, branch=config.revision, exist_ok=True)
    inside = [path.relative_to(folder).as_posix() for path in files_below(folder)]
    if others := [path for path in inside if not any(fnmatch(path, pattern) for pattern in OF_A_MODEL)]:
        say(f"no part of the model, so it stays here: {', '.join(sorted(others))}")
    api.upload_folder(
        repo_id=name,
        folder_path=folder,
        revision=config.revision,
        allow_patterns=list(OF_A_MODEL),
        commit_message=f"Reward model trained with rmkit {rmkit.__version__}",
    )
    return f"{url}/tree/{config.revision}" if config.revision else url


def _offline() -> str:
    """Why the hub cannot be reached, "" where it may be."""
    hub.settle()
    if not constants.HF_HUB_OFFLINE:
        return ""
    asked = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE")
    return "HF_HUB_OFFLINE is set" if asked else f"{constants.ENDPOINT} does not answer"


def _told(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        return f"{constants.ENDPOINT} answered {code}: {WHY.get(code) or plain(error.server_message or brief(error))}"
    if "Timeout" in type(error).__name__:
        return f"{constants.ENDPOINT} said nothing for {PATIENCE:.0f} seconds"
    return plain(brief(error))


def _not_pushed(folder: Path, config: HubConfig, why: str) -> str:
    later = f"It is whole on this disk; push it later with\n{command(folder, config)}"
    return f"warning: FINAL was not pushed to {config.push}: {why.rstrip('.')}. {later}"


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Within the block a silent server is given up after `PATIENCE`, and libraries leave the telling to us."""
    client, level = get_session(), logging.get_verbosity()
    before, client.timeout = client.timeout, PATIENCE
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        client.timeout = before
        logging.set_verbosity(level)
