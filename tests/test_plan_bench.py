"""The planning benchmark runs, and its figures are those of a plan that was checked."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench" / "plan_bench.py"


def test_a_quick_look(tmp_path):
    out = tmp_path / "out.json"
    sizes = ["--pairs", "4000", "--ranks", "1", "4", "--batch", "128", "--steps", "3", "--full", "4x128"]
    done = subprocess.run([sys.executable, BENCH, *sizes, "--out", out], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    alone, shared = json.loads(out.read_text())["rows"]
    assert alone["balance"]["mean"] == 1.0
    assert 0.8 < shared["balance"]["worst"] <= shared["balance"]["mean"] <= 1.0
    assert 0.5 < shared["gain"]["mean"] <= shared["limit"]["mean"] <= 1.0
    assert (alone["steps_planned"], shared["steps_planned"]) == (3, shared["steps_of_epoch"])
    assert shared["megabytes_of_data"] <= shared["megabytes_at_peak"] < 1000
