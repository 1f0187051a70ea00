"""Whether the hub can be reached: asked once, for libraries try again for half a minute before they say so."""

import functools
import os
import socket
from urllib.parse import urlparse

import datasets
from huggingface_hub import constants

SECONDS = 3.0
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@functools.cache
def settle() -> None:
    """Where the hub does not answer, have the libraries read their caches alone, as HF_HUB_OFFLINE=1 does.

    To be called before a hub id is read. Behind a proxy nothing is known, and nothing changed.
    """
    proxied = any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES)
    if constants.HF_HUB_OFFLINE or proxied:
        return
    where = urlparse(constants.ENDPOINT)
    try:
        port = where.port or {"http": 80}.get(where.scheme, 443)
        socket.create_connection((where.hostname or "", port), SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True
