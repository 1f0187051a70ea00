"""Whether the hub can be reached: asked once, for libraries try again for half a minute before they say so."""

import functools
import os
import socket
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from huggingface_hub import constants

SECONDS = 3.0
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@functools.cache
def answers() -> bool:
    """Whether the hub may be asked: it answers, or stands behind a proxy, where nothing is known."""
    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return True
    where = urlparse(constants.ENDPOINT)
    try:
        port = where.port or {"http": 80}.get(where.scheme, 443)
        socket.create_connection((where.hostname or "", port), SECONDS).close()
    except OSError:
        return False
    return True


def settle() -> None:
    """Where the hub does not answer, have the libraries read their caches alone, as HF_HUB_OFFLINE=1 does.

    To be called before a hub id is read.
    """
    if not answers():
        import datasets  # names on the command line are judged without it

        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True


def absent(kind: Literal["datasets", "models"], name: str) -> bool:
    """Whether a hub id can be had from nowhere: the hub does not answer, and no cache on this disk has a trace of it.
    Told without a library that takes seconds to load."""
    cached = Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"
    built = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    # `datasets` writes the name in a spelling of its own, and the owner as it is.
    found = cached.exists() or (kind == "datasets" and any(built.glob(f"{name.partition('/')[0]}___*")))
    return not found and not answers()
