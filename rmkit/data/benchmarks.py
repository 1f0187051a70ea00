"""The benchmarks that --data knows by name: where their rows are, and what each row compares.

`--data NAME` reads from the hub, `--data NAME=PATH` from a clone of the benchmark's repository or one of its files.
How each is scored is in `rmkit.evaluation.benchmarks`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmkit.data.fields import names, show

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    hub: tuple[tuple[str, str], ...] = ()
    """Sets on the hub and the split of each; none where the benchmark is only a repository"""
    files: tuple[str, ...]
    """Where a clone holds the rows: the first of these patterns that matches files"""
    pairs: Callable[[Row, str], Iterator[Row | str]]
    """(row, place it comes from) -> rows that `rmkit.data.forms` knows, or why one is left out"""

    def found(self, path: Path) -> list[Path]:
        """The files of a clone; the path itself where it is a file."""
        if path.is_file():
            return [path]
        return next((some for pattern in self.files if (some := sorted(path.glob(pattern)))), [])


FIELDS = ("prompt", "chosen", "rejected", "subset", "id")


def _as_it_is(row: Row, place: str) -> Iterator[Row]:
    yield {field: row[field] for field in FIELDS}


def _domain(row: Row, place: str) -> Iterator[Row]:
    """RM-Bench's files name their domain in each row; where one does not, the file does (chat_filtered.json). Each of
    its rows has three styles of either side."""
    for side in ("chosen", "rejected"):
        if not isinstance(row[side], list) or len(row[side]) != 3:
            raise ValueError(f"field '{side}': found {show(row[side])}, need a list of three responses")
    domain = row.get("domain") or Path(place).name.partition("_")[0]
    yield {
        "prompt": row["prompt"],
        "chosen": row["chosen"],
        "rejected": row["rejected"],
        "subset": domain,
        "id": row["id"],
    }


JUDGEBENCH = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
"""What JudgeBench's program reports one by one: the sources that start so."""


def _judgebench(row: Row, place: str) -> Iterator[Row]:
    if row["label"] not in ("A>B", "B>A"):
        raise ValueError(f"field 'label': found {show(row['label'])}, need A>B or B>A")
    sides = [row["response_A"], row["response_B"]]
    chosen, rejected = sides if row["label"] == "A>B" else reversed(sides)
    subset = next((name for name in JUDGEBENCH if row["source"].startswith(name)), row["source"])
    yield {"prompt": row["question"], "chosen": chosen, "rejected": rejected, "subset": subset, "id": row["pair_id"]}


def _preference(row: Row, place: str) -> Iterator[Row | str]:
    """Human preferences of PPE; ties have no right side, and its accuracy leaves them out."""
    winners = {"model_a": (1, 2), "model_b": (2, 1)}
    if row["winner"] not in winners:
        yield "tie"
        return
    chosen, rejected = (row[f"response_{i}"] for i in winners[row["winner"]])
    yield {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "id": row.get("question_id")}


def _correctness(row: Row, place: str) -> Iterator[Row]:
    """The sampled pairs of a right and a wrong answer among a question's 32."""
    named = re.search(r"PPE-([\w-]+?)-Best-of-K", place)
    subset = named[1] if named else Path(place).name
    for i, j in row["sampled_conflict_pairs"]:
        if row["scores"][i] == row["scores"][j]:
            continue
        better, worse = (i, j) if row["scores"][i] > row["scores"][j] else (j, i)
        sides = {"chosen": row[f"response_{better + 1}"], "rejected": row[f"response_{worse + 1}"]}
        yield {"prompt": row["prompt"], **sides, "subset": subset, "id": row.get("question_id")}


def _rmb(row: Row, place: str) -> Iterator[Row]:
    """A pair, or the best of several responses and the others."""
    prompt = [{"role": turn["role"], "content": turn["content"]} for turn in row["conversation_input"]]
    subset = row["category_path"].partition("/")[2]
    if "bon_best" in row:
        rejected = [other["answer"] for other in row["loser_list"]]
        sides = {"chosen": [row["bon_best"]["answer"]], "rejected": rejected, "id": row["bon_uid"]}
    else:
        sides = {"chosen": row["chosen"]["answer"], "rejected": row["reject"]["answer"], "id": row["pair_uid"]}
    yield {"prompt": prompt, **sides, "subset": subset}


_PPE = ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")

BENCHMARKS: dict[str, Benchmark] = {
    "rewardbench": Benchmark(
        hub=(("allenai/reward-bench", "filtered"),), files=("**/filtered*.parquet", "*.jsonl"), pairs=_as_it_is
    ),
    "rewardbench2": Benchmark(
        hub=(("allenai/reward-bench-2", "test"),), files=("**/test*.parquet", "*.jsonl"), pairs=_as_it_is
    ),
    "rm-bench": Benchmark(
        hub=(("THU-KEG/RM-Bench", "train"),),
        files=("data/total_dataset.json", "total_dataset.json", "data/*_filtered.json", "*_filtered.json"),
        pairs=_domain,
    ),
    "judgebench": Benchmark(
        hub=(("ScalerLab/JudgeBench", "gpt"), ("ScalerLab/JudgeBench", "claude")),
        files=("data/dataset=judgebench,*.jsonl", "*judgebench*.jsonl"),
        pairs=_judgebench,
    ),
    "ppe-preference": Benchmark(
        hub=(("lmarena-ai/PPE-Human-Preference-V1", "test"),), files=("**/test*.parquet",), pairs=_preference
    ),
    "ppe-correctness": Benchmark(
        hub=tuple((f"lmarena-ai/PPE-{name}-Best-of-K", "train") for name in _PPE),
        files=("PPE-*-Best-of-K/**/*.parquet",),
        pairs=_correctness,
    ),
    "rmb": Benchmark(files=("RMB_dataset/**/*.json", "*_set/**/*.json"), pairs=_rmb),
}


def compared(name: str, row: Any, place: str) -> list[Row | str]:
    """What a row of the benchmark `name` compares, as rows that `rmkit.data.forms` knows, or why one is left out.

    Raises ValueError where the row is not of the benchmark's schema.
    """
    if not isinstance(row, dict):
        raise ValueError(f"found {show(row)}, need an object with fields")
    try:
        return list(BENCHMARKS[name].pairs(row, place))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error} among the fields {names(row)}: no row of {name}") from None
