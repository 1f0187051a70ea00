"""The tests that are marked gpu, a process a file: an illegal access to memory ends every test after it."""

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARKED = re.compile(r"mark\.gpu\b|\bDEVICES\b")
LINE = re.compile(r"^(tests/\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
DONE, ABSENT = 0, 5
"""pytest's exit statuses: everything passed; nothing was selected"""


def files() -> list[Path]:
    """Test files that mark a test gpu, or use the kernels' parameter that does."""
    found = sorted((ROOT / "tests").glob("test_*.py"))
    return [file for file in found if MARKED.search(file.read_text(encoding="utf-8"))]


def outcomes(words: str) -> dict[str, str]:
    """Outcome of each test in what `pytest -v` printed, as far as it came; a later one (of the teardown) counts."""
    return {name: outcome.lower() for name, outcome in LINE.findall(words)}


def test_file(file: Path, seconds: float) -> dict:
    """Counts of one file, the names of what failed, and the end of the output."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", "--color=no", "--tb=short"]
    began = time.monotonic()
    try:
        done = subprocess.run(
            [*command, str(file.relative_to(ROOT))], cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 1)
        )
        words, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        words, status = (error.stdout or b"").decode(errors="replace"), None
    found = outcomes(words)
    bad = [name for name, outcome in found.items() if outcome in ("failed", "error")]
    row = {"file": file.name, "counts": dict(Counter(found.values())), "failed": bad, "exit_status": status}
    row["seconds"] = round(time.monotonic() - began, 1)
    if status not in (DONE, ABSENT):
        row["output"] = words[-6000:]
    return row


def failures_of(row: dict) -> list[str]:
    """A sentence for each test of a file that failed, or for the file that did not come to its end."""
    if row["exit_status"] is None:
        return [f"{row['file']} was not done after {row['seconds']:.0f} s, {sum(row['counts'].values())} tests were"]
    if row["exit_status"] not in (DONE, ABSENT) and not row["failed"]:
        return [f"{row['file']} ended with status {row['exit_status']}: see its output"]
    return [f"{name} failed" for name in row["failed"]]


def run(tiny: bool, seconds: float, leave: Callable[[dict], None]) -> dict:
    end, rows = time.monotonic() + seconds, []
    marked = files()
    for file in marked[:1] if tiny else marked:
        rows.append(test_file(file, end - time.monotonic()))
        leave(summed(rows, tiny))
    return summed(rows, tiny)


def summed(rows: list[dict], tiny: bool) -> dict:
    counts = sum((Counter(row["counts"]) for row in rows), Counter())
    failures = [sentence for row in rows for sentence in failures_of(row)]
    if not tiny and not counts["passed"]:
        failures.append("no test has passed on the card")
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "nothing ran"
    said = f"{said} in {len(rows)} files" + (" (no card: the first file alone, skipped)" if tiny else "")
    return {"counts": dict(counts), "failures": failures, "rows": rows, "said": [said]}
