"""Every flag of `python -m rmkit.runs`, in one frozen dataclass; the text under a field is its `--help`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

FLAGS = {"names": "NAME"}
"""Fields of the configuration -> the words of the command line, where they are no flag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunsConfig:
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME [NAME ...]]")] = ()
    """Runs: names in --cache-dir, or the paths of their folders. None: all are listed."""
    cache_dir: str = "runs"
    """Folder of all runs."""
    out: str | None = None
    """The page of two or more runs; by default CACHE_DIR/compare-A-B.html.
    A file that is there and is no such page is not overwritten."""
