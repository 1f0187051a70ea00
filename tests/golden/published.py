"""Have RewardBench's own functions score rewardbench.json anew, then read the diff (there should be none):

    pip download --no-deps rewardbench==0.1.4 && python tests/golden/published.py rewardbench-0.1.4-py3-none-any.whl

The scores in the file stay; what the program makes of them is written. Its functions are taken out of the wheel by
name, because the package imports much more than they need.
"""

import ast
import json
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

FILE = Path(__file__).with_name("rewardbench.json")
FUNCTIONS = ("sample_stats", "process_single_model", "reroll_and_score_dataset", "calculate_scores_per_section")
CONSTANTS = ("EXAMPLE_COUNTS", "SUBSET_MAPPING")


def program(wheel: str) -> dict:
    """The functions and constants of the wheel, by name."""
    held = {"np": np, "pd": pd, "math": math, "Dataset": Dataset}
    for file in ("constants", "utils"):
        tree = ast.parse(zipfile.ZipFile(wheel).read(f"rewardbench/{file}.py"))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS]
        constants = [node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id in CONSTANTS]
        exec(compile(ast.Module([*constants, *functions], []), file, "exec"), held)
    return held


def scored(case: dict, held: dict) -> float:
    """RewardBench 2's score of its Ties rows."""
    rows = [{"id": r["id"], "scores": r["right"] + r["wrong"], "num_correct": len(r["right"])} for r in case["rows"]]
    return float(held["process_single_model"](rows)[-1])


def best_of_four(case: dict, held: dict) -> float:
    """What one row of RewardBench 2 counts."""
    rows = Dataset.from_list([{"text": str(i), "scores": score} for i, score in enumerate(case["scores"])])
    return float(held["reroll_and_score_dataset"](rows, [len(rows)])[0]["results"]) or 0


def sections(case: dict, held: dict) -> dict[str, float]:
    """RewardBench 1's sections."""
    return held["calculate_scores_per_section"](held["EXAMPLE_COUNTS"], held["SUBSET_MAPPING"], case["accuracies"])


if __name__ == "__main__":
    held, golden = program(sys.argv[1]), json.loads(FILE.read_text())
    for case in golden["ties"]:
        case["score"] = scored(case, held)
    for case in golden["best_of_four"]:
        case["result"] = best_of_four(case, held)
    for case in golden["sections"]:
        case["sections"] = sections(case, held)
    FILE.write_text(json.dumps(golden, indent=0))
