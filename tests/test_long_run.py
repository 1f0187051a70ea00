"""The long run: its comparison of late with early steps, and (slow) all of it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "long_run.py"


def test_the_last_tenth_is_compared_with_the_second():
    tenths = runpy.run_path(str(SCRIPT))["tenths"]
    rows = [{"step": step, "resident": 9e9 if step <= 10 else 1e6 + step} for step in range(1, 101)]
    found = tenths(rows, "resident", 100)
    assert found["second tenth"] == 1e6 + 15.5
    assert found["last tenth"] == 1e6 + 95.5
    assert found["change"] == pytest.approx(80 / (1e6 + 15.5))


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_steps(tmp_path):
    out = tmp_path / "long_run.json"
    done = subprocess.run([sys.executable, SCRIPT, "--out", out])
    found = json.loads(out.read_text())
    assert found["steps"] == 2000
    assert abs(found["resident bytes"]["change"]) <= 0.02
    assert done.returncode == 0
