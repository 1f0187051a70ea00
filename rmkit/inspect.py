"""Look at preference pairs before money is spent on them; with no argument, at the embedded set.

Leaves OUT/ with inspect.json and inspect.html, which opens without a network; with --model also suspects.jsonl, the
pairs whose label is least probable, and kept.jsonl, a file for --data.train. Digests stand for texts, so that millions
of pairs are read in one pass; what is measured on a sample says so. Scripts are told apart, languages are not.
"""

import sys

from rmkit import cli

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    sys.exit(cli.main(["inspect", *sys.argv[1:]]))

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from rmkit import runtime
from rmkit.config import DEMO
from rmkit.data import demo
from rmkit.data.tokenizer import load_tokenizer
from rmkit.errors import UserError, brief
from rmkit.inspection import features, shared, tokens
from rmkit.inspection.config import FLAGS, InspectConfig
from rmkit.inspection.facts import digest_of, text_of
from rmkit.inspection.reading import Read, Row, Say, again, read
from rmkit.scorer import Scorer
from rmkit.storage.atomic import written_folder
from rmkit.terminal import Terminal


def inspect(config: InspectConfig, console: Console) -> int:
    """Inspect as `config` says; the exit status. Raises ValueError with a sentence."""
    terminal, notes, began = Terminal(console, True), [], time.perf_counter()

    def note(text: str) -> None:
        notes.append(text)
        terminal.say(text)

    check_installed()
    config = config.resolved()
    config.check()
    # Before the pairs, which may take minutes: a wrong name shows at once.
    scorer = features.load(config.model, config.max_length, note, config.end_token) if config.model else None
    tokenizer, tokenizer_name, longest = tokenizer_of(config, scorer, note)
    pairs, with_test = read_all(config, terminal, note)
    found = {
        "data": list(config.data),
        "test": list(config.test),
        "model": config.model,
        **measure(pairs, config),
        "tokens": tokens.measure(
            pairs.sample, len(pairs.facts), tokenizer, tokenizer_name, longest, note, config.bad_rows
        ),
        "shared": with_test,
        "suspects": None,
        "notes": notes,
    }
    listed, kept = [], None
    if scorer is not None:
        listed, kept, found["suspects"] = suspects_of(pairs, scorer, config, note)
    found["seconds"] = time.perf_counter() - began
    found["environment"] = runtime.environment(torch.device("cpu") if scorer is None else scorer.model.device, 1)
    show(found, listed, terminal)
    write(Path(config.out), found, listed, kept)
    terminal.say(f"written to {config.out}: {', '.join(sorted(path.name for path in Path(config.out).iterdir()))}")
    return 0


def check_installed() -> None:
    """ValueError where a package is missing that cannot be done without."""
    try:
        import scipy  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError("scipy is not installed; inspection needs: pip install 'rmkit[inspect]'") from error


def tokenizer_of(config: InspectConfig, scorer: Scorer | None, say: Say) -> tuple[Any, str, int]:
    """The tokenizer that tokens are counted with, its name, and the longest conversation."""
    longest = config.max_length or features.LONGEST
    if config.tokenizer is not None:
        try:
            return load_tokenizer(config.tokenizer, say), config.tokenizer, longest
        except UserError as error:
            raise UserError("tokenizer", error.value, error.hint) from None
    if scorer is not None:
        return scorer.tokenizer, config.model, min(longest, scorer.max_length)
    return demo.tokenizer(), f"{DEMO}, a token a character", longest


def read_all(config: InspectConfig, terminal: Terminal, note: Say) -> tuple[Read, dict[str, Any] | None]:
    """Read DATA, and before it the held-out pairs, of which it is told what they share with DATA."""
    options = {"columns": config.columns, "bad_rows": config.bad_rows}
    if not config.test:
        pairs = read(config.data, "train", terminal, most=config.pairs, **options)
        return pairs, None
    prompts: dict[int, tuple[str, list[Row]]] = {}
    answers: dict[int, tuple[str, list[Row]]] = {}

    def keep(pair: Row, digest: int) -> None:
        prompts.setdefault(digest, (pair["source"], pair["prompt"]))
        for side in (pair["chosen"], pair["rejected"]):
            answers.setdefault(digest_of(side), (pair["source"], side))

    held_out, near = read(config.test, "test", terminal, most=1, look=keep, **options), None
    try:
        near = shared.NearPairs(prompts, answers)
    except ModuleNotFoundError:
        note(shared.INSTALL)
    pairs = read(config.data, "train", terminal, most=config.pairs, look=near and near.look, **options)
    common = shared.exact(pairs.facts, held_out.facts)
    shared.refuse_the_same(common, pairs.facts, held_out.facts)
    return pairs, {**common, "near": near and near.measure()}


def measure(pairs: Read, config: InspectConfig) -> dict[str, Any]:
    """What needs no model and no tokenizer."""
    from rmkit.inspection import duplicates, floors, summary  # scipy

    facts = pairs.facts
    return {
        "counts": pairs.counts.as_dict(),
        "pairs": len(facts),
        "rated_responses": facts.rated,
        "sampled_pairs": len(pairs.sample.pairs),
        "duplicates": duplicates.measure(facts),
        **summary.measure(facts),
        "floors": floors.measure(facts, pairs.sample, config.seed),
    }


def suspects_of(
    pairs: Read, scorer: Scorer, config: InspectConfig, note: Say
) -> tuple[list[Row], Iterable[Row] | None, dict[str, Any] | None]:
    """Rows of suspects.jsonl, rows of kept.jsonl, and what inspect.json tells of them; nothing, and a note, where there
    are too few pairs for a model to judge."""
    from rmkit.inspection import suspects

    sample, facts = pairs.sample, pairs.facts
    longest = min(config.max_length or features.LONGEST, scorer.max_length)
    try:
        rows = np.array(sample.rows, np.int64)
        suspects.enough(facts["prompt"][rows[facts["preferred"][rows] != 0]])  # before the model reads them
        at, x = features.of_pairs(sample, scorer, longest, note, config.bad_rows)
        judged = suspects.judge(sample, facts, at, x, config.seed, config.suspects)
    except suspects.TooFew as error:
        note(f"{error}; suspects.jsonl and kept.jsonl are left out")
        return [], None, None
    whole: Iterable[Row] = sample.pairs
    if len(sample.pairs) < len(facts):
        note(f"{len(sample.pairs):,} of {len(facts):,} pairs were judged; kept.jsonl has the others as they are")
        whole = again(config.data, "train", config.columns, config.bad_rows)
    if facts.rated:
        note(f"{facts.rated:,} rated responses are not in kept.jsonl: they are compared with nothing")
    return suspects.rows_of(judged, sample), suspects.kept_rows(judged, sample, whole, config.write), judged.found


SHOWN = 3
"""Suspects that the terminal shows; the page and the file have more"""


def show(found: dict[str, Any], listed: list[Row], terminal: Terminal) -> None:
    """The tables, what stands out, the worst suspects, and the key figures last."""
    from rmkit.inspection import report

    for name, rows in report.tables(found).items():
        if name != "lengths" and len(rows) > 1:
            terminal.grid(report.TABLES[name], rows[:12])
    for sentence in report.stands_out(found):
        terminal.say(f"- {sentence}")
    for row in listed[:SHOWN]:
        terminal.say(f"suspect {row['source']}: P(chosen wins) {row['probability']:.3f}")
        for side in ("prompt", "chosen", "rejected"):
            terminal.say(f"  {side:<9}{_short(text_of(row[side][-1:]))}")
    terminal.table(report.key_figures(found))


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= 160 else one_line[:157] + "..."


def write(folder: Path, found: dict[str, Any], listed: list[Row], kept: Iterable[Row] | None) -> None:
    """Write all results or none."""
    from rmkit.inspection.page import page

    try:
        with written_folder(folder) as partial:
            (partial / "inspect.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
            html = page(found, listed)
            (partial / "inspect.html").write_text(html, encoding="utf-8", errors="backslashreplace")
            if kept is not None:
                write_rows(partial / "suspects.jsonl", listed)
                if not write_rows(partial / "kept.jsonl", kept):
                    raise UserError("suspects", None, "every pair is a suspect, so that none would be kept; set fewer")
    except OSError as error:
        raise UserError("out", folder, f"the results could not be written ({brief(error)})") from error


def write_rows(file: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines; how many."""
    count = 0
    with file.open("w", encoding="utf-8") as opened:
        for row in rows:
            opened.write(json.dumps(row, allow_nan=False, default=str) + "\n")
            count += 1
    return count


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags and inspect; 2 with a boxed sentence on a user's error, 130 on Ctrl-C."""
    return run_program(cli.parsed("inspect", arguments))


def run_program(flags: InspectConfig) -> int:
    """Inspect as the parsed flags say; the exit status of `main`."""
    return cli.run(lambda console: inspect(flags, console), "stopped: nothing was written", flags=FLAGS)
