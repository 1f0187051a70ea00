"""The campaign of tests/faults.py: its judge, one kill of a real process, and (slow) all of it."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from campaigns.faults import FAULTS
from campaigns.kills import kill
from campaigns.obstacles import cut_off, flip_a_bit
from campaigns.place import Place, disturb_nothing
from support.victim import STEPS, differences, lines, make_world


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """A world and the undisturbed run of one process."""
    place = Place(tmp_path_factory.mktemp("faults"), random.Random(0))
    make_world(place.world)
    disturb_nothing(place, "one-process")
    return place


def append(file: Path) -> None:
    file.write_text(file.read_text() + file.read_text().splitlines()[-1] + "\n")


DAMAGE = {
    "FINAL/model.safetensors differs": lambda run: flip_a_bit(run / "FINAL" / "model.safetensors", random.Random(0)),
    "FINAL/rmkit.json differs": lambda run: (run / "FINAL" / "rmkit.json").unlink(),
    "metrics.jsonl differs": lambda run: append(run / "metrics.jsonl"),
    "heldout.jsonl differs": lambda run: append(run / "heldout.jsonl"),
    "FINAL is missing": lambda run: shutil.rmtree(run / "FINAL"),
    "the run folder holds ['.FINAL.partial'": lambda run: (run / ".FINAL.partial").mkdir(),
    "checkpoints holds ['.step-2.partial'": lambda run: (run / "checkpoints" / ".step-2.partial").mkdir(),
}


@pytest.mark.parametrize("told", DAMAGE)
def test_every_difference_from_the_undisturbed_run_is_found(place, tmp_path, told):
    undisturbed = place.undisturbed("one-process")
    assert sum("loss/train" in row for row in lines(undisturbed)) == STEPS
    run = shutil.copytree(undisturbed, tmp_path / "run")
    assert differences(run, undisturbed) == []
    DAMAGE[told](run)
    found = differences(run, undisturbed)
    assert len(found) == 1
    assert found[0].startswith(told)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off])
def test_damage_always_damages(tmp_path, damage):
    rng, file = random.Random(0), tmp_path / "file"
    for content in (b"\0", b"some bytes"):
        for _ in range(20):
            file.write_bytes(content)
            damage(file, rng)
            assert file.read_bytes() != content


def test_a_killed_process_is_survived(place):
    """One kill; with this seed while a checkpoint is written, give or take what the machine does meanwhile."""
    (outcome,) = kill(place, "one-process", 1)
    assert outcome.wrong == []


@pytest.mark.slow
def test_all_faults_are_survived(tmp_path):
    """Those that the machine can do; the others are said."""
    out = tmp_path / "faults.json"
    done = subprocess.run([sys.executable, Path(__file__).parent / "campaigns" / "faults.py", "--out", out])
    counts = json.loads(out.read_text())
    assert done.returncode == 0
    assert counts["survived"] == counts["tried"]
    assert set(FAULTS) - set(counts["left out"])
    assert sum(row["tried"] for fault, row in counts["faults"].items() if fault.startswith("kill")) == 140
