"""The recipes runs/*.sh: every command line of rmkit in them is one that its program takes; each says its figure."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from rmkit import cli

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "runs").glob("*.sh"))
NAMED = re.compile(r"-m rmkit\.(\w+)(.*)")


def commands(text):
    """Program and arguments of each command line of rmkit, with 1 in the place of whatever a variable holds."""
    for line in text.replace("\\\n", " ").splitlines():
        if (found := NAMED.search(line)) and not line.lstrip().startswith("#"):
            given = re.sub(r"\$\{[^}]*\}|\$\w+", "1", found[2])
            yield found[1], shlex.split(given, comments=True)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_its_flags_exist(recipe):
    found = list(commands(recipe.read_text()))
    assert found
    for program, arguments in found:
        cli.parsed(program, arguments)  # a flag that is not there, or a value that is refused, exits
    assert subprocess.run(["bash", "-n", recipe], check=False).returncode == 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_it_says_at_its_top_what_was_measured(recipe):
    top = recipe.read_text().split("set -euo")[0]
    files = re.findall(r"bench/results/\w+\.json", top.replace("\n# ", ""))
    assert files or "Not yet run" in top
    assert all((ROOT / file).is_file() for file in files)


def test_a_flag_that_was_renamed_would_be_seen(capsys):
    text = "torchrun --nproc-per-node 4 -m rmkit.train --exp-name x \\\n    --batch.no-such $1\n"
    (program, arguments), *_ = commands(text)
    assert (program, arguments) == ("train", ["--exp-name", "x", "--batch.no-such", "1"])
    with pytest.raises(SystemExit):
        cli.parsed(program, arguments)
