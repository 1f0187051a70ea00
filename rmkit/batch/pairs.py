"""Preferences as token sequences, tokenised once and cached."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from datasets import Dataset, Features, Sequence, Value
from transformers import PreTrainedTokenizerBase

from rmkit.batch.labels import PairLabels
from rmkit.batch.lengths import Lengths, measure
from rmkit.batch.trie import common_prefix
from rmkit.config import DataConfig
from rmkit.data import conversation, left_out
from rmkit.data import tokenizer as contract
from rmkit.data.forms import LABELS
from rmkit.data.ratings import table as rating_table
from rmkit.data.reading import LISTED
from rmkit.data.tokenizer import encode, refusal, render
from rmkit.errors import UserError, flag

KEPT, STOP, OVERLONG, SAME, NO_TOKEN, ENDS_IN_PAD, REFUSED = range(7)

REASONS = {
    OVERLONG: "over-long (more than {max_length} tokens)",
    SAME: "chosen and rejected are the same tokens",
    NO_TOKEN: "no token is left of a side",
    ENDS_IN_PAD: "ends in the pad token, which other readers would not score",
    REFUSED: "refused by the chat template",
}
"""Why a pair is dropped, by its code in the table: ten million codes are ten megabytes, texts would be gigabytes."""

TEXTS = ("prompt", "chosen", "rejected", "more")
"""Columns of the preferences that become tokens."""

WORKERS_A_CORE = 4
"""Most processes that tokenise per core: more gain nothing, and each takes hundreds of megabytes."""


class TokenColumn:
    """A column of token sequences, read from the memory-mapped table without a copy: column[i] is int32 [length].

    `rows` int64 [N]: row of the table that holds each sequence (dropped pairs have rows too).
    """

    def __init__(self, dataset: Dataset, name: str, rows: np.ndarray) -> None:
        chunks = dataset.data.column(name).chunks
        self._parts = [(c.offsets.to_numpy(), c.values.to_numpy()) for c in chunks]
        self._starts = np.cumsum([0] + [len(offsets) - 1 for offsets, _ in self._parts])
        self.rows = rows
        self.lengths = np.concatenate([np.diff(offsets) for offsets, _ in self._parts])[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        row = self.rows[index]
        part = int(np.searchsorted(self._starts, row, "right")) - 1
        offsets, values = self._parts[part]
        row -= self._starts[part]
        return values[offsets[row] : offsets[row + 1]]


@dataclass(frozen=True, kw_only=True)
class TokenisedPairs:
    """N tokenised preferences; everything but the tokens is held in numpy arrays of length N."""

    chosen: TokenColumn
    rejected: TokenColumn
    group: np.ndarray
    """int64: equal where the prompt is equal"""
    labels: PairLabels
    """float64, on the CPU"""
    lengths: Lengths
    """Lengths and shared prefixes of both sides of each pair, for the planner"""
    source: SequenceOf[str]
    """Where each preference comes from: "file:line" or "set:row" """
    dropped: dict[str, int] = field(default_factory=dict)
    """Pairs that were left out, by reason"""

    @property
    def columns(self) -> tuple[SequenceOf[np.ndarray], SequenceOf[np.ndarray]]:
        return self.chosen, self.rejected

    def __len__(self) -> int:
        return len(self.group)


def tokenise(
    preferences: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    max_length: int,
    say: Callable[[str], None],
    objectives: SequenceOf[str] = (),
    judged: bool = False,
) -> TokenisedPairs:
    """Tokenise both sides of every preference once, through `datasets` map with its cache and worker processes.

    Pairs over `max_length` are handled as --data.overlong says, those that the chat template refuses as
    --data.bad-rows; `say` tells how many are dropped, by reason, and names the first that are refused.
    `objectives` are those whose ratings are read; without any, a rated response without a pair is refused. Pairs that
    are `judged`, not learned from, stay where both sides are the same: a tie.
    Raises ValueError on the first over-long pair (--data.overlong error), on one that the chat template refuses
    (--data.bad-rows stop), and where no pair is left.
    """
    if len(preferences) == 0:
        raise ValueError("no pair is left of 0: the data holds none")
    workers = _workers(len(preferences), data.workers, say)
    table = _table(preferences, tokenizer, data, max_length, workers, judged)
    reason = table.data.column("reason").to_numpy()
    if (stop := np.flatnonzero(reason == STOP)).size:
        row = table[int(stop[0])]
        longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        ways = f"raise {flag('data.max_length')}, or let {flag('data.overlong')} drop or cut it"
        raise UserError("", row["source"], f"{longest} tokens, more than the limit of {max_length}; {ways}")
    for i in np.flatnonzero(reason == REFUSED)[:LISTED].tolist():
        say(f"dropped {table[i]['source']}: {table[i]['refused']}")
    dropped = {}
    for code, count in zip(*np.unique(reason, return_counts=True), strict=True):
        if code != KEPT:
            why = REASONS[code].format(max_length=max_length)
            dropped[why] = int(count)
            say(f"dropped {count} of {len(reason)} pairs: {why}")
    _say_left_out(table, say)
    rows = np.flatnonzero(reason == KEPT)
    if len(rows) == 0:
        ways = f"raise {flag('data.max_length')}", f"set {flag('data.overlong')} keep-end"
        whys = "; ".join(f"{count} {why}" for why, count in dropped.items())
        raise UserError("", None, f"no pair is left of {len(reason)} ({whys})", *(ways if OVERLONG in reason else ()))
    return _kept(table, rows, dropped, objectives, say)


def _say_left_out(table: Dataset, say: Callable[[str], None]) -> None:
    """Say what the chat template leaves out of conversations: the scores are those of the rest."""
    counts: Counter[str] = Counter()
    for found in table.data.column("left_out").value_counts().to_pylist():
        for name in json.loads(found["values"] or "[]"):
            counts[name] += found["counts"]
    for name, count in sorted(counts.items()):
        if left_out.matters(name):
            say(f"warning: the chat template leaves out {name} (in {count} of {len(table)} pairs): it is not scored")
    if others := sorted(name for name in counts if not left_out.matters(name)):
        say(f"not used by the chat template: {', '.join(others)}")


def _workers(pairs: int, asked: int, say: Callable[[str], None]) -> int:
    """How many processes tokenise; one is worth its start from some thousand rows on."""
    cores = os.cpu_count() or 1
    most = WORKERS_A_CORE * cores
    if asked > most:
        say(f"--data.workers {asked}: {most} start, {WORKERS_A_CORE} for each core of this machine")
    return min(asked, most) or min(pairs // 4000, cores)


def _table(
    preferences: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    max_length: int,
    workers: int,
    judged: bool,
) -> Dataset:
    """The tokens of both sides and a reason for each preference, from the cache where this has been done before."""
    settings = [
        # Code of the rendering and of the tokenising: a change of either must not be served tokens of the other's past.
        *(Path(file).read_text() for file in (__file__, *(m.__file__ for m in (contract, conversation, left_out)))),
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        max_length,
        data.overlong,
        data.bad_rows,
        judged,
        preferences._fingerprint,
    ]
    return preferences.map(
        _tokenise_rows,
        batched=True,
        batch_size=200,
        remove_columns=list(TEXTS),
        features=_features(preferences),
        fn_kwargs={"tokenizer": tokenizer, "data": data, "max_length": max_length, "judged": judged},
        num_proc=workers if workers > 1 else None,
        new_fingerprint=hashlib.blake2b(json.dumps(settings, default=str).encode(), digest_size=16).hexdigest(),
        desc="tokenising",
    )


def _kept(
    table: Dataset,
    rows: np.ndarray,
    dropped: dict[str, int],
    objectives: SequenceOf[str],
    say: Callable[[str], None],
) -> TokenisedPairs:
    """The preferences in `rows` of the table."""
    columns = table.data
    sides = [TokenColumn(table, name, rows) for name in ("chosen_ids", "rejected_ids")]
    group = np.unique(columns.column("group").to_numpy()[rows], return_inverse=True)[1]
    length = np.stack([side.lengths for side in sides], 1)
    return TokenisedPairs(
        chosen=sides[0],
        rejected=sides[1],
        group=group,
        lengths=measure(sides, length, group, columns.column("shared").to_numpy()[rows]),
        labels=_labels(table, rows, objectives, say),
        source=table.select(rows)["source"],
        dropped=dropped,
    )


def _labels(table: Dataset, rows: np.ndarray, objectives: SequenceOf[str], say: Callable[[str], None]) -> PairLabels:
    """The labels of the pairs that were kept, float64, NaN where a row gives none."""
    columns = {name: table.data.column(name).to_numpy()[rows].astype(np.float64) for name in (*LABELS, "compared")}
    if not objectives and (alone := np.flatnonzero(columns["compared"] == 0)).size:
        where = table[int(rows[alone[0]])]["source"]
        raise UserError(
            "",
            where,
            "it is a rated response, compared with nothing",
            f"set {flag('model.head')} multi and name its {flag('model.objectives')}",
            "leave such rows out",
        )
    if objectives:
        held = table.select_columns(["ratings"]).select(rows)["ratings"]
        columns["ratings"], others = rating_table(held, objectives)
        if others:
            say(f"ratings that no objective names are not used: {', '.join(sorted(others))}")
    return PairLabels(columns)


def _features(preferences: Dataset) -> Features:
    kept = {name: kind for name, kind in preferences.features.items() if name not in TEXTS}
    ids = Sequence(Value("int32"))
    numbers = {"shared": Value("int32"), "group": Value("int64"), "reason": Value("int8")}
    words = {"left_out": Value("string"), "refused": Value("string")}
    return Features({**kept, "chosen_ids": ids, "rejected_ids": ids, **numbers, **words})


def _tokenise_rows(
    rows: dict, tokenizer: PreTrainedTokenizerBase, data: DataConfig, max_length: int, judged: bool
) -> dict:
    out: dict[str, list] = {"chosen_ids": [], "rejected_ids": [], "shared": [], "group": [], "reason": []}
    out |= {"left_out": [], "refused": []}
    texts, template = [], left_out.LeftOut(tokenizer)
    for values in zip(*(rows[name] for name in (*TEXTS, "source")), strict=True):
        row = dict(zip((*TEXTS, "source"), values, strict=True))
        prompt, chosen, rejected, options = conversation.whole(row)
        # A rated response alone has no other side; it stands in for it, and takes no second place in a trie.
        sides = [*prompt, *chosen], [*prompt, *(rejected or chosen)]
        try:
            rendered, refused = [render(tokenizer, side, options) for side in sides], None
            missed = dict.fromkeys(name for side in sides for name in template.of(side, options))
        except jinja2.TemplateError as error:
            if data.bad_rows == "stop":
                way = f"{flag('data.bad_rows')} drop leaves such pairs out, counted and listed"
                raise UserError("", row["source"], refusal(error), way) from error
            rendered, refused, missed = ["", ""], refusal(error), {}
        texts += rendered
        out["refused"].append(refused)
        out["left_out"].append(json.dumps(list(missed)) if missed else None)
        digest = hashlib.blake2b(json.dumps(conversation.key(prompt, options)).encode(), digest_size=8).digest()
        out["group"].append(int.from_bytes(digest, "big", signed=True))
    ids = encode(tokenizer, texts)
    for chosen, rejected, compared, refused in zip(ids[::2], ids[1::2], rows["compared"], out["refused"], strict=True):
        learned = compared > 0 and not judged
        reason, chosen, rejected = (
            _fit(chosen, rejected, tokenizer.pad_token_id, max_length, data.overlong, learned)
            if refused is None
            else (REFUSED, [], [])
        )
        sides = np.array(chosen, np.int32), np.array(rejected, np.int32)
        out["reason"].append(reason)
        out["chosen_ids"].append(sides[0])
        out["rejected_ids"].append(sides[1])
        out["shared"].append(common_prefix(*sides))
    return out


def _fit(
    chosen: list[int], rejected: list[int], pad: int, max_length: int, overlong: str, compared: bool
) -> tuple[int, list[int], list[int]]:
    """KEPT, STOP or the reason why a pair is dropped; and its two sides, cut where --data.overlong says so."""
    if max(len(chosen), len(rejected)) > max_length:
        if overlong == "drop":
            return OVERLONG, [], []
        if overlong == "error":
            return STOP, chosen, rejected
        kept = slice(max_length) if overlong == "keep-start" else slice(-max_length, None)
        chosen, rejected = chosen[kept], rejected[kept]
    if compared and chosen == rejected:
        return SAME, [], []
    if not chosen or not rejected:
        return NO_TOKEN, [], []
    if pad in (chosen[-1], rejected[-1]):
        return ENDS_IN_PAD, [], []
    return KEPT, chosen, rejected
