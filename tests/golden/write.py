"""Write the golden texts of `--help` anew: python tests/golden/write.py, then read the diff."""

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = ("train", "label", "evaluate", "inspect", "check", "convert", "runs")
FILE = Path(__file__).parent / "train_help.txt"


def file_of(command: str) -> Path:
    return Path(__file__).parent / f"{command}_help.txt"


def help_text(command: str = "train") -> str:
    """What `python -m rmkit.COMMAND --help` prints at a width of 100 columns, without colours."""
    settings = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", f"rmkit.{command}", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **settings}).stdout


if __name__ == "__main__":
    for command in COMMANDS:
        file_of(command).write_text(help_text(command))
