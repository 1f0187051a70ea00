"""What test pairs have in common with training pairs: exactly by digests; prompts and answers also nearly by MinHash.

Near: the sets of three-word runs of two prompts, or of two answers, overlap by `NEAR` or more (Jaccard). MinHash
(Broder, 1997) with locality sensitive hashing, from `datasketch`, finds candidates among all training texts in one
pass; each is then compared exactly, so that what is reported is near for certain, and what is missed is at most a few
per cent. A prompt that is equal is counted exactly, and not as near; an answer that is equal is near, for it may stand
under a prompt that was only reworded.
"""

import re
import zlib
from typing import Any

import numpy as np

from rmkit.errors import UserError
from rmkit.inspection.facts import EXAMPLES, Facts, Row, digest_of, mixed

NEAR = 0.8
PERMUTATIONS = 64
MOST_WORDS = 400
"""Words of a text that are compared: its last ones, where a long dialogue has what is new"""
FEWEST_WORDS = 8
"""Shorter texts have too few runs of words to be near: one other word is another text"""
_WORD = re.compile(r"\w+")

INSTALL = "near duplicates were not looked for: datasketch is not installed; pip install 'rmkit[inspect]'"


def shingles(messages: list[Row]) -> set[bytes]:
    """The three-word runs of a text; empty where it is too short to be near another."""
    text = "\n".join(message["content"] or "" for message in messages).lower()
    words = _WORD.findall(text[-MOST_WORDS * 12 :])[-MOST_WORDS:]
    if len(words) < FEWEST_WORDS:
        return set()
    return {" ".join(words[i : i + 3]).encode("utf-8", "surrogatepass") for i in range(len(words) - 2)}


class Near:
    """The prompts, or the answers, of the test pairs, against which those of training are held one by one."""

    def __init__(self, texts: dict[int, tuple[str, list[Row]]], *, equal: bool) -> None:
        """`texts`: digest -> place and messages; `equal`: what is equal is near too. Raises ModuleNotFoundError where
        datasketch is absent."""
        from datasketch import MinHash, MinHashLSH

        self._new = lambda: MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)
        self._lsh = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS)
        self._texts, self._equal = texts, equal
        self._shingles = {digest: found for digest, (_, text) in texts.items() if (found := shingles(text))}
        self._seen: set[int] = set()
        self.found: dict[int, tuple[float, str]] = {}
        """Digest of a test text -> the highest overlap, and the place of that training pair"""
        for digest, of in self._shingles.items():
            self._lsh.insert(digest, self._hashed(of))

    def _hashed(self, of: set[bytes]) -> Any:
        minhash = self._new()
        minhash.update_batch(list(of))
        return minhash

    def look(self, messages: list[Row], digest: int, place: str) -> None:
        """Hold a training text, with its digest and place, against the test texts; each text once."""
        if digest in self._seen or (digest in self._texts and not self._equal):
            return
        self._seen.add(digest)
        if not (of := shingles(messages)):
            return
        for other in self._lsh.query(self._hashed(of)):
            theirs = self._shingles[other]
            overlap = len(of & theirs) / len(of | theirs)
            if overlap >= max(NEAR, self.found.get(other, (0.0, ""))[0] + 1e-9):
                self.found[other] = overlap, place

    def examples(self) -> list[str]:
        worst = sorted(self.found.items(), key=lambda item: -item[1][0])
        return [f"{self._texts[digest][0]} is {o:.0%} {place}" for digest, (o, place) in worst[:EXAMPLES]]


class NearPairs:
    """The test pairs' prompts and answers, to hold training pairs against."""

    def __init__(self, prompts: dict[int, tuple[str, list[Row]]], answers: dict[int, tuple[str, list[Row]]]) -> None:
        self.prompts, self.answers = Near(prompts, equal=False), Near(answers, equal=True)

    def look(self, pair: Row, digest: int) -> None:
        """Hold a training pair, with the digest of its prompt, against them."""
        self.prompts.look(pair["prompt"], digest, pair["source"])
        for side in (pair["chosen"], pair["rejected"]):
            self.answers.look(side, digest_of(side), pair["source"])

    def measure(self) -> dict[str, Any]:
        found = {"prompts": len(self.prompts.found), "examples": self.prompts.examples()}
        found |= {"answers": len(self.answers.found), "answer_examples": self.answers.examples()}
        return {"threshold": NEAR, **found}


def exact(train: Facts, test: Facts) -> dict[str, Any]:
    """Counts of test pairs whose prompt, answer with its prompt, or whole pair stands in the training pairs too."""

    def sides(of: Facts) -> tuple[np.ndarray, np.ndarray]:
        return mixed(of["prompt"], of["chosen"]), mixed(of["prompt"], of["rejected"])

    def whole(of: Facts) -> np.ndarray:
        return mixed(of["prompt"], *(edge(of["chosen"], of["rejected"]) for edge in (np.minimum, np.maximum)))

    answers = np.concatenate(sides(train))
    pairs = np.isin(whole(test), whole(train))
    prompts = np.isin(test["prompt"], train["prompt"])
    return {
        "test_pairs": len(test),
        "test_prompts": len(np.unique(test["prompt"])),
        "pairs": int(pairs.sum()),
        "answers": int(np.logical_or(*(np.isin(side, answers) for side in sides(test))).sum()),
        "prompts": len(np.unique(test["prompt"][prompts])),
        "examples": test.places(np.flatnonzero(pairs)[:EXAMPLES]) or test.places(np.flatnonzero(prompts)[:EXAMPLES]),
    }


def refuse_the_same(shared: dict[str, Any], train: Facts, test: Facts) -> None:
    """UserError where the test pairs are the training pairs: nothing would be held out."""
    if shared["pairs"] == len(test) and len(train) == len(test):
        hint = "all of its pairs are those of DATA: nothing is held out; give other pairs, or leave it out"
        raise UserError("data.test", None, hint)
