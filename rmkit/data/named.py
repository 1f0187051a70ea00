"""The named sets of HALOs: where each is on the hub, and how its rows become preferences.

The rules are those of HALOs (`get_<name>` in its data module), except where these change text or lose pairs: white
space stays as it is, a prompt that is in two sets keeps all its pairs, and every OASST turn keeps its own role.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from rmkit.data.fields import name, names
from rmkit.data.forms import hh_turns, preferences

Row = dict[str, Any]
Outcome = tuple[int, Row | str]  # index of the row; its preference, or the reason why the set's rule drops it

SHP_MAX_PAIRS = 5
SHP_MIN_RATIO = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedSet:
    hub: str
    """Id on the hub."""
    function: Callable[[Sequence[Row], str], Iterator[Outcome]]
    """(rows, split on the hub) -> for each row, its index and its preference, or why it was dropped. May read the rows
    twice."""
    similar: str
    """The kind of local file that can replace it."""
    data_dir: str | None = None
    """Folder inside the hub's repository; None for all of it."""
    splits: dict[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    """Names of the training and the test split on the hub."""


def _each(pair: Callable[[Row], Row]) -> Callable[[Sequence[Row], str], Iterator[Outcome]]:
    """The function of a set whose rows are independent; `pair` turns one into a row of the form "explicit prompt"."""

    def function(rows: Sequence[Row], split: str) -> Iterator[Outcome]:
        for i, row in enumerate(rows):
            yield i, _preference(i, row, pair)

    return function


def _preference(i: int, row: Row, pair: Callable[[Row], Row]) -> Row:
    try:
        return preferences(pair(row), "explicit prompt")[0]
    except (KeyError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"row {i}: {type(error).__name__} {error} among the fields {names(row)}; the set's schema has changed"
        ) from None
    except ValueError as error:
        raise ValueError(f"row {i}: {error}") from None


def _hh(row: Row) -> Row:
    """The prompt comes from `chosen`; of `rejected` only the last assistant turn is used, "" where there is none."""
    prompt, chosen = hh_turns(row["chosen"])
    rejected = hh_turns(row["rejected"])[1]
    return {"prompt": prompt, "chosen": chosen or "", "rejected": rejected or ""}


def _ultrabin(row: Row) -> Row:
    sides = {side: row[side][-1]["content"] for side in ("chosen", "rejected")}
    return {"prompt": row["prompt"], **sides, "id": row["prompt_id"]}


def _armorm(row: Row) -> Row:
    sides = {side: row[side][1:] for side in ("chosen", "rejected")}
    return {"prompt": row["prompt"], **sides, "id": name(row.get("prompt_id"), "prompt_id")}


def _safe_rlhf(row: Row) -> Row:
    better = row["better_response_id"]
    chosen, rejected = row[f"response_{better}"], row[f"response_{1 - better}"]
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def _shp_pair(row: Row) -> Row:
    a, b = row["human_ref_A"], row["human_ref_B"]
    chosen, rejected = (a, b) if row["labels"] == 1 else (b, a)
    row_id = f"{row['post_id']}/{row['c_root_id_A']}-{row['c_root_id_B']}"
    return {"prompt": row["history"], "chosen": chosen, "rejected": rejected, "subset": row["domain"], "id": row_id}


def _shp(rows: Sequence[Row], split: str) -> Iterator[Outcome]:
    """In the training split, keep pairs with a score ratio of at least 2, and at most 5 random ones per prompt.

    Pairs are drawn as HALOs draws them (a new generator with seed 0 for each prompt), so they are the same. The first
    pass keeps a hash of 16 bytes per prompt and one number per pair, no text.
    """
    if split != "train":
        yield from _each(_shp_pair)(rows, split)
        return
    of_prompt: dict[bytes, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if _score_ratio(row) >= SHP_MIN_RATIO:
            of_prompt[blake2b(row["history"].encode(), digest_size=16).digest()].append(i)
    kept, drawn = set(), set()
    for pairs in of_prompt.values():
        kept.update(pairs)
        drawn.update(random.Random(0).sample(pairs, min(SHP_MAX_PAIRS, len(pairs))))
    for i, row in enumerate(rows):
        if i in drawn:
            yield i, _preference(i, row, _shp_pair)
        else:
            yield i, "beyond 5 pairs of its prompt" if i in kept else "score ratio below 2"


def _score_ratio(row: Row) -> float:
    low, high = sorted((row["score_A"], row["score_B"]))
    return high / low if low > 0 else float("inf")


def _oasst(rows: Sequence[Row], split: str) -> Iterator[Outcome]:
    """Pairs of English siblings of adjacent ranks (r-1 is preferred to r); the prompt is the path from the root.

    Rows are messages, not pairs: one of rank 0 or without a rank makes no pair of its own, and is counted as that.
    """
    by_id: dict[str, Row] = {}
    by_rank: dict[tuple[str | None, int], str] = {}
    order: list[tuple[int, str]] = []
    for i, row in enumerate(rows):
        if row["lang"] != "en":
            yield i, "not English"
            continue
        message = row["message_id"]
        by_id[message] = {part: row[part] for part in ("message_id", "parent_id", "text", "role", "rank")}
        order.append((i, message))
        if row["rank"] is not None:
            by_rank.setdefault((row["parent_id"], int(row["rank"])), message)
    for i, message in order:
        row = by_id[message]
        if not row["rank"]:
            yield i, "without a pair of its own (the best sibling, or no rank)"
            continue
        better = by_rank.get((row["parent_id"], int(row["rank"]) - 1))
        path = _path(by_id, row["parent_id"])
        if better is None or path is None:
            yield i, "no sibling one rank above" if better is None else "no English path from the root"
        else:
            sides = {"chosen": [_turn(by_id[better])], "rejected": [_turn(row)]}
            yield i, _preference(i, {"prompt": path, **sides, "id": f"{better}>{message}"}, dict)


def _path(by_id: dict[str, Row], message: str | None) -> list[Row] | None:
    """The turns from the root to a message; None where one of them was left out (not English)."""
    path = []
    while message is not None:
        if message not in by_id:
            return None
        path.append(_turn(by_id[message]))
        message = by_id[message]["parent_id"]
    return path[::-1]


def _turn(row: Row) -> Row:
    return {"role": "user" if row["role"] == "prompter" else "assistant", "content": row["text"]}


def _texts(*fields: str) -> str:
    return f"a JSONL file with the fields {', '.join(fields)}"


_PAIRS = _texts("prompt", "chosen", "rejected")
_HH = 'its own train.jsonl.gz, or any JSONL file with chosen and rejected as "\\n\\nHuman: ..." text'
_ARMORM = "princeton-nlp/{}-ultrafeedback-armorm"

NAMED: dict[str, NamedSet] = {
    "shp": NamedSet(hub="stanfordnlp/SHP", function=_shp, similar=_PAIRS),
    "hh": NamedSet(hub="Anthropic/hh-rlhf", function=_each(_hh), similar=_HH),
    "hh_helpful": NamedSet(hub="Anthropic/hh-rlhf", function=_each(_hh), similar=_HH, data_dir="helpful-base"),
    "hh_harmless": NamedSet(hub="Anthropic/hh-rlhf", function=_each(_hh), similar=_HH, data_dir="harmless-base"),
    "oasst": NamedSet(
        hub="OpenAssistant/oasst1",
        function=_oasst,
        similar=_texts("prompt", "responses", "ranks"),
        splits={"train": "train", "test": "validation"},
    ),
    "ultrabin": NamedSet(
        hub="HuggingFaceH4/ultrafeedback_binarized",
        function=_each(_ultrabin),
        similar="its own Parquet files, or " + _PAIRS,
        splits={"train": "train_prefs", "test": "test_prefs"},
    ),
    "ultrafeedback_armorm": NamedSet(hub=_ARMORM.format("llama3"), function=_each(_armorm), similar=_PAIRS),
    "ultrafeedback_armorm_gemma": NamedSet(hub=_ARMORM.format("gemma2"), function=_each(_armorm), similar=_PAIRS),
    "safe_rlhf": NamedSet(
        hub="PKU-Alignment/PKU-SafeRLHF-single-dimension", function=_each(_safe_rlhf), similar=_PAIRS
    ),
}
