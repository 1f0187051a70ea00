"""A small part of the hostile-input campaign, and the whole of it where slow tests are asked for."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from campaigns import hostile_shapes
from campaigns.mutations import HOSTILE, NEIGHBOURS, PAIRS, SAMPLES, SHAPES, WHOLE, rows_of, spoiled_bytes, spoiled_json
from rmkit.data import forms
from rmkit.data.benchmarks import BENCHMARKS, compared
from rmkit.labelling.samples import samples
from support.true_rows import benchmark_rows

HERE = Path(__file__).parent


def campaign(*flags: str) -> str:
    """What `python tests/campaigns/hostile.py` prints; it must end without a fault."""
    command = [sys.executable, str(HERE / "campaigns" / "hostile.py"), *flags]
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("0 faults\n")
    return done.stdout


def test_a_part_of_the_campaign():
    said = campaign("--count", "24", "--seed", "1")
    for kind in ("files", "shapes", "commands", "folders"):
        assert f'{kind} {{"cases": 24' in said
    assert "accepted" in said
    assert "refused" in said


@pytest.mark.slow
def test_the_whole_campaign():
    campaign("--seed", "2", "--dry")


def test_the_campaign_sees_a_fault(tmp_path):
    """A reader that fails otherwise, hangs or dies is counted, and the cases behind it still run."""
    (tmp_path / "campaigns").mkdir()
    (tmp_path / "campaigns" / "hostile_files.py").write_text(FAULTY)
    (tmp_path / "campaigns" / "fence.py").write_text("class Fault(Exception): pass")
    code = "import sys\nfrom campaigns import hostile\nhostile.SECONDS, hostile.PATIENCE = 0.5, 12\n"
    code += "sys.argv = ['x', '--kinds', 'files', '--count', '8']\n"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(HERE)])}
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(hostile.main())"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith("4 faults\n")
    for words in ("KeyError: 'x'", "still at work after 6 s: killed", "the process died with 9", "1.0 s, 0 MiB more"):
        assert words in done.stdout
    assert '"outcomes": {"accepted": 4, "fault": 4}' in done.stdout


FAULTY = """
import os, time

def prepare(scratch):
    def run(rng, n):
        seen = time.process_time()
        if n == 1:
            raise KeyError("x")
        if n == 2:
            time.sleep(60)
        if n == 3:
            os._exit(9)
        while n == 4 and time.process_time() < 1 + seen:
            pass
        return "accepted"
    return run
"""


def test_every_form_and_every_benchmark_is_spoiled():
    rows = [row for form in PAIRS + hostile_shapes.CASES if form not in BENCHMARKS for row in rows_of(form)]
    assert {forms.detect(row) for row in rows} == set(forms.SHAPES)
    assert set(hostile_shapes.CASES) >= set(BENCHMARKS)
    assert 2_000 // len(hostile_shapes.CASES) >= 30, "cases of each"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_unspoiled_rows_of_a_benchmark_are_compared(name):
    for place, row in benchmark_rows()[name].items():
        made = compared(name, row, place)
        assert made
        assert all(forms.preferences(each, forms.detect(each)) for each in made)


def test_fields_are_put_around_and_inside_the_rows_of_a_shape():
    row = rows_of("TRL tools")[0]
    spoiled = [hostile_shapes.extended(random.Random(n), row) for n in range(400)]
    assert row == rows_of("TRL tools")[0], "it is a copy that is spoiled"
    assert {field for one in spoiled for field in one} >= set(hostile_shapes.AROUND)
    inside = {field for one in spoiled for turn in hostile_shapes.turns(one) for field in turn}
    assert inside >= set(hostile_shapes.INSIDE)


@pytest.mark.parametrize("form", PAIRS + SHAPES + NEIGHBOURS + SAMPLES)
def test_the_unspoiled_rows_are_accepted(form):
    for row in rows_of(form):
        if form in PAIRS + SHAPES + NEIGHBOURS and form not in WHOLE:
            assert forms.preferences(row, forms.detect(row))
        assert form == "oasst" or samples(row)  # a message of a tree is no sample


def test_the_same_seed_spoils_alike():
    raw = b'{"prompt": "a", "output": "b"}\n'
    assert spoiled_bytes(random.Random("1"), raw) == spoiled_bytes(random.Random("1"), raw)
    assert len({spoiled_bytes(random.Random(n), raw) for n in range(200)}) > 150
    row = rows_of("halos")[0]
    assert repr(spoiled_json(random.Random("1"), row)) == repr(spoiled_json(random.Random("1"), row))
    assert row == rows_of("halos")[0], "it is a copy that is spoiled"
    assert len({repr(spoiled_json(random.Random(n), row)) for n in range(200)}) > 150
    assert len(HOSTILE) >= 60
