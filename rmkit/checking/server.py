"""The doors of a running vLLM or SGLang server: messages, text and token ids."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmkit.checking.expected import DOORS
from rmkit.errors import UserError, brief

SECONDS = 60
"""How long an answer may take: the first one may compile."""

KINDS = ("vllm", "sglang")
LARGEST = 2**24
"""Bytes of an answer that are read: a few scores are a few hundred"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answered."""

    address: str
    kind: str
    """One of `KINDS`"""
    model: str
    """Its name for the model"""
    root: str | None
    """Where it says that the model lies"""

    def ask(self, door: str, given: list[Any]) -> list[list[float]]:
        """What it gives for messages, text or ids: a row of numbers for each. UserError where it refuses or says
        something else."""
        if self.kind == "sglang":
            body = {{"text": "text", "ids": "input_ids"}[door]: given}
            answer = _post(f"{self.address}/classify", body)
            return _rows(answer if isinstance(answer, list) else [answer], "embedding", len(given), self.address)
        asked = [{"messages": messages} for messages in given] if door == "messages" else [{"input": given}]
        rows = []
        for body in asked:
            answer = _post(f"{self.address}/classify", {"model": self.model, **body})
            data = answer.get("data") if isinstance(answer, dict) else None
            rows += _rows(data, "probs", 1 if door == "messages" else len(given), self.address)
        return rows

    def doors(self) -> tuple[str, ...]:
        """Those that give a raw score: SGLang has none for messages."""
        return ("text", "ids") if self.kind == "sglang" else DOORS


def reached(address: str) -> Server:
    """Ask a server who it is; UserError where none answers, or where it is neither vLLM nor SGLang."""
    address = address.rstrip("/").removesuffix("/v1")
    listed = _get(f"{address}/v1/models")
    try:
        model = listed["data"][0]
        name, owner = str(model["id"]), str(model.get("owned_by", "")).lower()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError("target", address, "its /v1/models lists no model; give a vLLM or SGLang server") from error
    kind = next((kind for kind in KINDS if kind in owner), None)
    if kind is None:
        hint = f"its model is owned by {owner or 'nobody'!a}, not by {' or '.join(KINDS)}; give one of those"
        raise UserError("target", address, hint)
    root = model.get("root")
    return Server(address=address, kind=kind, model=name, root=root if isinstance(root, str) else None)


def folder_of(server: Server) -> Path | None:
    """The folder that it serves, where it says so and it is on this machine."""
    for name in (server.root, server.model):
        if name and (Path(name) / "rmkit.json").is_file():
            return Path(name)
    return None


def _rows(data: Any, key: str, count: int, address: str) -> list[list[float]]:
    """Numbers under `key` of each of `count` answers."""
    try:
        rows = [[float(number) for number in each[key]] for each in data]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("target", address, f"/classify answers without {key!a}: {str(data)[:200]}") from error
    if len(rows) != count or not all(rows):
        raise UserError("target", address, f"/classify gave {len(rows)} answers to {count} texts")
    return rows


def _get(url: str) -> Any:
    return _answer(urllib.request.Request(url), url)


def _post(url: str, body: dict[str, Any]) -> Any:
    content = json.dumps(body).encode()
    return _answer(urllib.request.Request(url, content, {"Content-Type": "application/json"}), url)


def _answer(request: urllib.request.Request, url: str) -> Any:
    try:
        # No proxy of the environment: the server is the user's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=SECONDS) as answer:
            return json.loads(answer.read(LARGEST))
    except urllib.error.HTTPError as error:
        said = error.read(300).decode("utf-8", "replace")
        raise UserError("target", url, f"it answers {error.code} {error.reason}: {said}") from error
    except (OSError, ValueError) as error:
        raise UserError("target", url, f"no usable answer ({brief(error)}); is the server running?") from error
