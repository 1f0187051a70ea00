"""bench/quality_bench.py: the command in its result file is the one that was run."""

import json
import shlex
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

import quality_bench  # noqa: E402


def test_the_command_asks_for_the_same_again():
    given = "--model /far/a_model --data /far/data --steps 7 --pairs 4 --test-pairs 9 --max-length 64 --max-tokens 512"
    asked = quality_bench.parsed(given.split())
    program, file, *words = shlex.split(quality_bench.command(asked))
    again = quality_bench.parsed(words)
    assert (program, file) == ("python", "bench/quality_bench.py")
    assert quality_bench.sizes(again) == quality_bench.sizes(asked)
    assert (again.model, str(again.data)) == ("a_model", "data")


def test_the_command_of_the_result_file_is_what_was_asked():
    result = json.loads((BENCH / "results" / "quality_bench.json").read_text())
    asked = quality_bench.parsed(shlex.split(result["command"])[2:])
    assert quality_bench.sizes(asked) == result["asked"]
    assert asked.data.name == result["data"]
