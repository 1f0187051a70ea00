"""RUN/report.html while training goes on: a page of the run that is written anew at every evaluation."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rmkit.errors import brief
from rmkit.pages import folder, heldout, run_page
from rmkit.pages.curves import Curves
from rmkit.training.run import Run


class Page:
    """The page of a run: of the first rank alone, written by a thread of its own, never a reason for the run to fail.

    heldout.jsonl, which the page is made of, is written at once: a checkpoint that follows must find it there. What
    goes wrong is said once, and tried again at the next evaluation.
    """

    def __init__(self, path: Path | None, run: Run, say: Callable[[str], None]) -> None:
        """`path`: the run's folder; None (all ranks but the first) writes nothing. metrics.jsonl has been opened."""
        self._path, self._run, self._say = path, run, say
        self._curves = None if path is None else Curves(path / "metrics.jsonl")
        self._known: heldout.Known | None = None
        self._held: heldout.HeldOut | None = None
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None
        self._told = False

    def evaluated(self, step: int, rewards: np.ndarray) -> None:
        """Take in the rewards of an evaluation, float32 [N, 2], and write the page, unless the last one is still being
        written: the next shows all."""
        if self._path is None:
            return
        self._tried(lambda: self._keep(step, rewards))
        if self._thread is None or not self._thread.is_alive():
            # A daemon: a disk that hangs does not keep the process from ending.
            self._thread = threading.Thread(target=self._tried, args=(lambda: self._write("running"),), daemon=True)
            self._thread.start()
        self._tell()

    def close(self) -> None:
        """Write the page a last time, with all that is in the folder by now; may be called twice."""
        if self._path is None:
            return
        if self._thread is not None:
            self._thread.join()
        self._tried(lambda: self._write(None))
        self._tell()
        self._path = None

    def _keep(self, step: int, rewards: np.ndarray) -> None:
        if self._known is None:
            self._known = heldout.Known.of(self._run.held_out, self._run.test.items)
        self._held = self._known.judged(step, rewards)
        heldout.write(self._path, self._held)

    def _write(self, state: folder.State | None) -> None:
        run_page.write(folder.gathered(self._path, self._curves.read(), state, self._held))

    def _tried(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, the training is worth more than its page
            self._problem = error

    def _tell(self) -> None:
        if self._problem is not None and not self._told:
            self._told = True
            self._say(f"report.html could not be written, training goes on without it: {brief(self._problem)}")
