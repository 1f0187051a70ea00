"""Judge a reward model on held-out preference pairs; with no flag, the demo model on the embedded set.

Leaves OUT/ with metrics.json, scores.jsonl (a line per pair) and report.html, one file that opens without a network.
"""

import sys

from rmkit import cli

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    sys.exit(cli.main(["evaluate", *sys.argv[1:]]))

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console

from rmkit import demo_model, runtime
from rmkit.config import DEMO_MODEL
from rmkit.data import source
from rmkit.data.counts import Counts
from rmkit.distributed import launch
from rmkit.distributed.collectives import PATIENCE, agreed, first_then_others, on_first_rank, rank, ranks
from rmkit.errors import AgreedError, UserError
from rmkit.evaluation.config import FLAGS, EvaluateConfig
from rmkit.evaluation.rewardbench import write_rewardbench
from rmkit.evaluation.scores import Scored, score_pairs, with_a_preferred_side
from rmkit.scorer import Scorer, load_scorer
from rmkit.storage.atomic import written_folder
from rmkit.storage.trust import missing
from rmkit.terminal import Terminal


def score(
    field: str,
    name: str,
    preferences: Dataset,
    config: EvaluateConfig,
    device: torch.device,
    terminal: Terminal,
    note: Callable[[str], None],
) -> Scored:
    """Load the model that `field` ("model.name", or "against") names, score, and let go of it."""

    def load() -> Scorer:
        try:
            return load_scorer(
                name,
                device=device,
                layout=config.layout,
                precision=config.precision,
                max_tokens=config.max_tokens,
                max_length=config.max_length,
                end_token=config.end_token,
                say=note,
            )
        except UserError as error:
            raise error.about(field) if error.field == "model.name" else error from None

    scorer = agreed(load)
    if gone := missing(scorer.trust, name):
        note(gone)
    return score_pairs(preferences, scorer, f"{FLAGS[field]} {name}", device, terminal, note, config.bad_rows)


def evaluate(config: EvaluateConfig, console: Console) -> int:
    """Evaluate as `config` says; the exit status. Raises ValueError, on all ranks alike, with a sentence."""
    accelerator = launch.start(PATIENCE)
    device, terminal = accelerator.device, Terminal(console, rank() == 0)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        terminal.say(text)

    agreed(check_installed)
    config = agreed(config.resolved)
    on_first_rank(config.check)
    if config.model == str(DEMO_MODEL):
        agreed(lambda: demo_model.prepare(terminal.say))
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # as training does: too small to gain from a second core
    began = time.perf_counter()

    def load() -> tuple[Dataset, dict[str, int], Counts]:
        counts = Counts()
        kept = {"columns": config.columns, "bad_rows": config.bad_rows, "judged": True, "counts": counts}
        return *with_a_preferred_side(source.load(config.data, "test", note, **kept), note), counts

    preferences, undecided, counts = first_then_others(load)
    scored, other = score("model.name", config.model, preferences, config, device, terminal, note), None
    if config.against is not None:
        other = score("against", config.against, preferences, config, device, terminal, note)
        both = np.intersect1d(scored.rows, other.rows)
        if len(both) == 0:
            nothing = "the two models have no pair in common that fits both"
            raise AgreedError(UserError("against", config.against, nothing))  # every rank comes here
        if len(both) < max(len(scored.rows), len(other.rows)):
            note(f"{len(both)} pairs fit both models; the numbers are of these")
        scored = scored.only(both, f"does not fit --against {config.against}")
        other = other.only(both, f"does not fit --model {config.model}")
    counts.pairs_dropped.update({**undecided, **scored.dropped})

    def report() -> None:
        described = {
            "counts": counts.as_dict(),
            "notes": notes,
            "seconds": time.perf_counter() - began,
            "environment": runtime.environment(device, ranks()),
        }
        write_results(config, preferences, scored, other, counts, described, terminal)

    on_first_rank(report)
    launch.end(accelerator)
    return 0


def check_installed() -> None:
    """ValueError where a package of the report is missing."""
    try:
        from rmkit.evaluation import metrics, report  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; evaluation needs: pip install 'rmkit[report]'") from error


def write_results(
    config: EvaluateConfig,
    preferences: Dataset,
    scored: Scored,
    other: Scored | None,
    counts: Counts,
    run: dict,
    terminal: Terminal,
) -> None:
    """Measure, write OUT/ and the file for RewardBench, and show the closing table."""
    from rmkit.evaluation import figures, metrics, report

    columns = metrics.columns(preferences, scored, other)
    measured = metrics.measure(preferences, scored, other, columns, counts.bad_rows)
    measured["dropped"] = run["counts"]["pairs_dropped"]
    described = {
        "model": config.model,
        "data": list(config.data),
        "against_model": config.against,
        **measured,
        **run,
    }
    page = report.page(described, columns, metrics.quoted(preferences, scored, columns))
    write(config, described, columns, page)
    if config.export:
        write_rewardbench(Path(config.export[1]), preferences.select(scored.rows), terminal.say)
    terminal.table([*figures.key_figures(described), ("report", f"{config.out}/report.html")])


def write(config: EvaluateConfig, described: dict, columns: dict[str, np.ndarray], page: str) -> None:
    """Write all three results or none."""
    folder = Path(config.out)
    try:
        with written_folder(folder) as partial:
            (partial / "metrics.json").write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")
            with (partial / "scores.jsonl").open("w", encoding="utf-8") as opened:
                for values in zip(*(column.tolist() for column in columns.values()), strict=True):
                    opened.write(json.dumps(dict(zip(columns, values, strict=True)), allow_nan=False) + "\n")
            (partial / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError("out", folder, f"the results could not be written ({error.strerror})") from error


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags and evaluate; 2 with a boxed sentence on a user's error, 130 on Ctrl-C."""
    return run_program(cli.parsed("evaluate", arguments))


def run_program(flags: EvaluateConfig) -> int:
    """Evaluate as the parsed flags say; the exit status of `main`."""
    return cli.run(lambda console: evaluate(flags, console), "stopped: nothing was written", flags=FLAGS)
