"""Check that a reader of a saved model gives the scores that rmkit gave: a folder, or a running vLLM or SGLang server.

Sends the self-check of rmkit.json by every door (messages, text, token ids) and names what comes back: the same scores,
or sigmoid, softmax, a doubled BOS, another template, a constant offset, 16 bits, the wrong row of a binary head, each
with the flag that mends it. The exit status is 0 where every door gives the same, else 1.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from rmkit import cli
from rmkit.checking import server as servers
from rmkit.checking.diagnosis import Finding, diagnose, of_messages
from rmkit.checking.expected import DOORS, Expected, expected_of
from rmkit.config import DEMO_MODEL
from rmkit.errors import UserError
from rmkit.terminal import Terminal

FLAGS = {"target": "TARGET", "model.name": "--model", "batch.max_tokens": None, "data.max_length": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckConfig:
    target: Annotated[Positional[str], arg(metavar="TARGET")] = str(DEMO_MODEL)
    """A folder that rmkit wrote, or the address of a server, such as http://localhost:8000."""
    model: Annotated[str | None, arg(metavar="PATH")] = None
    """The folder that the server serves; by default the one that it names, if it is on this machine."""

    def __post_init__(self) -> None:
        # os.path: a name that is too long is no folder, where pathlib raises.
        if not (self.is_server or self.target == str(DEMO_MODEL) or os.path.isdir(self.target)):
            raise ValueError(f"TARGET {self.target}: there is no such folder; give one, or http://HOST:PORT")
        if not self.is_server and self.model is not None:
            raise ValueError(f"--model {self.model}: it belongs to the address of a server; TARGET is a folder")

    @property
    def is_server(self) -> bool:
        return self.target.startswith(("http://", "https://"))


def check(config: CheckConfig, console: Console) -> int:
    """Check as `config` says; the exit status. Raises UserError with a sentence."""
    terminal = Terminal(console, True)
    if config.is_server:
        server = servers.reached(config.target)
        folder = Path(config.model) if config.model else servers.folder_of(server)
        if folder is None:
            hint = f"the server calls its model {server.model}, which is no folder of rmkit's here; name the folder"
            raise UserError("model.name", config.model, hint)
        expected = expected_of(folder)
        terminal.say(f"{server.kind} at {server.address} serves {server.model}; expected scores of {folder}")
        rows = {door: server.ask(door, expected.of(door)) for door in server.doors() if expected.of(door)}
    else:
        from rmkit import demo_model
        from rmkit.checking.folder import rows_of

        if config.target == str(DEMO_MODEL):
            demo_model.prepare(terminal.say)
        expected = expected_of(Path(config.target))
        given = {door: expected.of(door) for door in DOORS if expected.of(door)}
        rows = rows_of(Path(config.target), given, terminal.say)
    return told(expected, rows, terminal)


def told(expected: Expected, rows: dict[str, list[list[float]]], terminal: Terminal) -> int:
    """Say what each door gives, and how to mend it; 0 where all is the same, else 1."""
    found: dict[str, Finding] = {door: diagnose(expected, of_door) for door, of_door in rows.items()}
    if "messages" in found:
        found["messages"] = of_messages(found["messages"], found.get("ids"))
    for door, finding in found.items():
        names = " and ".join(finding.names)
        terminal.say(f"{door:<9} {names} ({finding.gap:.1e})" if finding.gap < 1e9 else f"{door:<9} {names}")
    for way in dict.fromkeys(way for finding in found.values() for way in finding.ways):
        terminal.say(f"\n{way}")
    if not all(finding.good for finding in found.values()):
        shown = [", ".join(f"{score:.5g}" for score in scores) for scores in (expected.scores, *_flat(rows))]
        terminal.say("\nexpected  " + shown[0])
        for door, scores in zip(rows, shown[1:], strict=True):
            terminal.say(f"{door:<9} {scores}")
    return 0 if all(finding.good for finding in found.values()) else 1


def _flat(rows: dict[str, list[list[float]]]) -> list[list[float]]:
    return [[number for row in of_door for number in row] for of_door in rows.values()]


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags and check; 1 where a score differs, 2 with a boxed sentence on a user's error, 130 on Ctrl-C."""
    return run_program(cli.parsed("check", arguments))


def run_program(flags: CheckConfig) -> int:
    """Check as the parsed flags say; the exit status of `main`."""
    return cli.run(lambda console: check(flags, console), "stopped", flags=FLAGS)


if __name__ == "__main__":
    sys.exit(cli.main(["check", *sys.argv[1:]]))
