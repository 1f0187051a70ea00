"""RUN/report.html while training goes on: a page of the run that is written anew at every evaluation."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from rmkit.batch.pairs import TokenisedPairs
from rmkit.data.source import digests
from rmkit.errors import brief
from rmkit.pages import folder, heldout, run_page
from rmkit.pages.curves import Curves
from rmkit.training.run import Run

SHOWN = 12
"""Pairs whose texts are kept."""

QUOTE = 900
"""Characters of a text that are kept: the end of a prompt, the start of a response."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What does not change from one evaluation to the next: texts, digests and lengths of the held-out pairs."""

    preferences: Dataset
    pairs: TokenisedPairs
    digest: list[str]

    @classmethod
    def of(cls, preferences: Dataset, pairs: TokenisedPairs) -> "Known":
        of_all = digests(preferences)
        return cls(preferences=preferences, pairs=pairs, digest=[of_all[row] for row in pairs.chosen.rows])

    def judged(self, step: int, rewards: np.ndarray) -> heldout.HeldOut:
        """The pairs with their scores, float32 [N, 2]; rated responses, which are compared with nothing, left out."""
        compared = np.flatnonzero((self.pairs.labels["compared"] > 0) & np.isfinite(rewards).all(1))
        # The shortest decimals that give the float32 back, so that the file says what was computed and no more.
        scores = np.array([[float(str(score)) for score in pair] for pair in rewards[compared]]).reshape(-1, 2)
        margin, target = scores[:, 0] - scores[:, 1], self.pairs.labels["target"][compared]
        wrong = (margin < 0) & ~(target <= 0.5)  # with 0.5 or less the label prefers no side, or the other
        order = np.argsort(margin, kind="stable")
        worst = order[wrong[order]][:SHOWN]
        lengths = self.pairs.lengths.length[self.pairs.lengths.place[compared]]
        return heldout.HeldOut(
            step=step,
            pair=[self.digest[i] for i in compared],
            source=[self.pairs.source[int(i)] for i in compared],
            scores=scores,
            tokens=lengths.astype(np.int64),
            texts={int(i): self._texts(int(compared[i])) for i in worst},
        )

    def _texts(self, i: int) -> dict[str, str]:
        row = self.preferences[int(self.pairs.chosen.rows[i])]
        prompt = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in row["prompt"])
        texts = {"prompt": prompt if len(prompt) <= QUOTE else "[...] " + prompt[-QUOTE:]}
        for side in ("chosen", "rejected"):
            text = "\n\n".join(turn["content"] for turn in row[side])
            texts[side] = text if len(text) <= QUOTE else text[:QUOTE] + " [...]"
        return texts


class Page:
    """The page of a run: of the first rank alone, written by a thread of its own, never a reason for the run to fail.

    heldout.jsonl, which the page is made of, is written at once: a checkpoint that follows must find it there. What
    goes wrong is said once, and tried again at the next evaluation.
    """

    def __init__(self, path: Path | None, run: Run, say: Callable[[str], None]) -> None:
        """`path`: the run's folder; None (all ranks but the first) writes nothing. metrics.jsonl has been opened."""
        self._path, self._run, self._say = path, run, say
        self._curves = None if path is None else Curves(path / "metrics.jsonl")
        self._known: Known | None = None
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
            self._known = Known.of(self._run.held_out, self._run.test.items)
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
