"""Label completions with a trained reward model, as scalar, binary or pairwise feedback.

SAMPLES are scored whole, as they are saved, and FEEDBACK is written when all of them are: it appears whole or not at
all. Until then the scores lie beside it in .FEEDBACK.partial/, from which --resume goes on after a kill. Runs on
several processes under accelerate launch or torchrun. With no argument, embedded samples and the demo model.
"""

import sys

from rmkit import cli

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    sys.exit(cli.main(["label", *sys.argv[1:]]))

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from rmkit import demo_model
from rmkit.batch.pairs import REASONS, REFUSED
from rmkit.config import DEMO_MODEL
from rmkit.data.cache import empty_report
from rmkit.data.reading import LISTED
from rmkit.distributed import launch
from rmkit.distributed.collectives import PATIENCE, agreed, on_first_rank, rank, ranks
from rmkit.errors import make_folder, told
from rmkit.labelling import feedback as fb
from rmkit.labelling.chunks import Chunk, Refused, chunk_bounds, scored, tokenised
from rmkit.labelling.config import FLAGS, STDIN, LabelConfig
from rmkit.labelling.errors import Errors
from rmkit.labelling.index import SampleFile, build_index, by_prompt, tell
from rmkit.labelling.input import is_text, plain_file, shown
from rmkit.labelling.partial import PartialScores
from rmkit.labelling.records import records, write
from rmkit.runtime import stop_asked
from rmkit.scorer import Scorer, load_scorer
from rmkit.storage.trust import missing
from rmkit.terminal import Terminal


@contextlib.contextmanager
def kept(partial: PartialScores) -> Iterator[None]:
    """Add to an error within the block that the scores are kept and --resume goes on from them, where it would."""
    advice = f"what was scored is kept in {partial.folder}: go on with --resume"
    try:
        yield
    except Refused:
        raise
    except OSError as error:
        raise ValueError(f"{error.filename or partial.folder}: {error.strerror or error}; {advice}") from error
    except ValueError as error:
        raise ValueError(f"{told(error, FLAGS)}. {advice[0].upper() + advice[1:]}") from error


def score_all(
    file: SampleFile, scorer: Scorer, partial: PartialScores, bad_rows: str, terminal: Terminal
) -> tuple[int, float]:
    """Score this rank's chunks into `partial`; the signal that stopped it, or 0, and the completions/s of all ranks.

    No rank waits for another here, so none can hang, however many chunks each has.
    """
    order, starts = by_prompt(file.index["group"])
    bounds = chunk_bounds(starts)
    done = partial.done()
    mine = [c for c in range(rank(), len(bounds) - 1, ranks()) if c not in done]
    sizes = np.diff(bounds)
    before, share = int(sizes[list(done)].sum()), max(1, int(sizes[mine].sum()))
    progress = terminal.progress("scored", len(file), before, "completions")

    def prepare(c: int) -> Chunk:
        return tokenised(file, c, order[bounds[c] : bounds[c + 1]], scorer, bad_rows)

    ready = 0
    with (
        stop_asked() as stop,
        contextlib.closing(progress),
        partial.writer(rank()) as write,
        ThreadPoolExecutor(1) as ahead,
    ):
        coming = ahead.submit(prepare, mine[0]) if mine else None
        for following in [*mine[1:], None]:
            if coming is None or stop.received or partial.given_up():
                break
            chunk = coming.result()
            coming = None if following is None else ahead.submit(prepare, following)
            write(scored(chunk, scorer, file))
            ready += len(chunk.positions)
            progress.show(before + round(ready / share * (len(file) - before)))  # the others are about as far
        finished = coming is None
    return (int(stop.received or 0) if not finished else 0), progress.rate


def label(config: LabelConfig, console: Console) -> int:
    """Label as `config` says; the exit status. Raises ValueError, on all ranks alike, with a sentence."""
    accelerator = launch.start(PATIENCE)
    terminal = Terminal(console, rank() == 0)
    demo, config = config.demo, agreed(config.resolved)
    if config.model == str(DEMO_MODEL):
        agreed(lambda: demo_model.prepare(terminal.say))
    if demo:
        on_first_rank(lambda: make_folder(config.output.parent))
    agreed(config.check_output)  # all have looked at the folder before one changes it
    partial = PartialScores(config.output)
    if config.resume and on_first_rank(lambda: config.output.exists() and not partial.folder.exists()):
        terminal.say(f"{config.output} is there, whole: nothing to resume (give --overwrite to label anew)")
        status = 0
    else:
        status = label_into(partial, config, accelerator.device, terminal)
    if status == 0:
        if (demo, config.feedback, config.format) == (True, "scalar", "halos"):
            on_first_rank(lambda: show_demo(config.output, terminal.say))
        launch.end(accelerator)
    return status


def label_into(partial: PartialScores, config: LabelConfig, device: torch.device, terminal: Terminal) -> int:
    """Read the model and the samples, score them into `partial`, and write FEEDBACK from it. The exit status."""
    say = terminal.say
    on_first_rank(lambda: partial.open(config.contract(), resume=config.resume, overwrite=config.overwrite, say=say))
    with contextlib.ExitStack() as stack:
        agreed(lambda: stack.enter_context(partial.locked(rank())))
        with partial.removed_if_unused(terminal.main):
            scorer = agreed(
                lambda: load_scorer(
                    config.model,
                    device=device,
                    layout=config.layout,
                    precision=config.precision,
                    max_tokens=config.max_tokens,
                    max_length=config.max_length,
                    end_token=config.end_token,
                    say=say,
                )
            )
            agreed(lambda: check_posterior(config, scorer))
            if gone := missing(scorer.trust, config.model):
                say(gone)
            on_first_rank(lambda: index(config, partial, say))
        return score_and_write(config, scorer, partial, terminal)


def score_and_write(config: LabelConfig, scorer: Scorer, partial: PartialScores, terminal: Terminal) -> int:
    """Score what is not scored yet, on all ranks; then the first one writes FEEDBACK. The exit status.

    A rank that a signal stops does not wait for the others: they may have been ended too.
    """
    began, failed = time.perf_counter(), None
    stopped, rate = 0, 0.0
    try:
        with kept(partial):
            copy = partial.folder / "input"
            file = SampleFile(copy if copy.exists() else Path(config.samples), shown(config.samples), partial.folder)
            stopped, rate = score_all(file, scorer, partial, config.bad_rows, terminal)
    except ValueError as error:
        failed = error
        partial.give_up()
    if stopped:
        terminal.say(f"stopped by signal {stopped}: go on with --resume")
        return 128 + stopped

    def end() -> None:
        if failed is not None:
            raise failed

    def finish() -> None:
        with kept(partial):
            order, starts = by_prompt(file.index["group"])
            scores, skipped = partial.scores(order, chunk_bounds(starts))
            for refused in (partial.refused() if REASONS[REFUSED] in skipped else [])[:LISTED]:
                terminal.say(f"dropped {refused}")
            bad = json.loads((partial.folder / "index.json").read_text())["bad"]
            counts: Counter[str] = Counter({"bad rows: left out": bad} if bad else {})
            errors, trust = None, scorer.trust if tells_probabilities(scorer) else None
            if trust is not None and trust.posterior is not None:
                errors = Errors(partial, order, chunk_bounds(starts))
            written = write(records(config, file, scores, counts, errors, trust), config.output, partial.folder)
            partial.remove()
        report(config, terminal, scores, {**skipped, **counts}, written, rate, time.perf_counter() - began)

    agreed(end)
    on_first_rank(finish)
    return 0


def tells_probabilities(scorer: Scorer) -> bool:
    """Whether the model's folder says what a margin is worth: by a posterior, by a temperature, or by both."""
    trust = scorer.trust
    return trust is not None and (trust.posterior is not None or trust.temperature is not None)


def check_posterior(config: LabelConfig, scorer: Scorer) -> None:
    """ValueError where --min-confidence asks a model that cannot tell how sure it is."""
    if config.min_confidence is not None and not tells_probabilities(scorer):
        try:
            scorer.posterior()
        except ValueError as error:
            raise ValueError(f"--min-confidence {config.min_confidence}: {error}; leave it out") from error


def index(config: LabelConfig, partial: PartialScores, say: Callable[[str], None]) -> None:
    """Check and index every sample of the input, before anything is scored."""
    file = partial.folder / "index.json"
    if not file.is_file():
        copy = partial.folder / "input"
        try:
            plain, how, report = copy, (config.columns, config.bad_rows), empty_report()
            if not (config.samples == STDIN and copy.exists()):  # all but standard input can be read again
                plain = plain_file(config.samples, partial.folder, say, *how, report)
            how = how if is_text(config.samples) else ((), config.bad_rows)  # others are renamed as they are copied
            build_index(plain, shown(config.samples), partial.folder, *how, report)
        except OSError as error:
            raise ValueError(f"{error.filename or partial.folder}: {error.strerror or error}") from error
    tell(json.loads(file.read_text()), shown(config.samples), say, config.keeps_fields)


def report(
    config: LabelConfig,
    terminal: Terminal,
    scores: np.ndarray,
    missed: dict[str, int],
    written: int,
    rate: float,
    seconds: float,
) -> None:
    """The closing table, and the command to run next."""
    scored_only = scores[~np.isnan(scores)]
    rows = [("completions", f"{len(scores):,}"), ("scored", f"{len(scored_only):,}")]
    if len(scored_only):
        rows.append(("reward, mean", f"{scored_only.mean(dtype=np.float64):.4f}"))
        rows.append(("reward, spread", f"{scored_only.std(dtype=np.float64):.4f}"))
    rows += [(reason, f"{count:,}") for reason, count in missed.items()]
    if config.feedback == "binary":
        rows.append(("threshold", f"{fb.bar(fb.number_of(config.threshold, 'binary'), scores):.6g}"))
    rows += [("records", f"{written:,}"), ("completions/s", f"{rate:,.1f}"), ("seconds", f"{seconds:.0f}")]
    terminal.table([*rows, ("feedback", str(config.output))])
    if config.feedback == "pairwise" and written:
        terminal.say(f"train on it: python -m rmkit.train --model.name MODEL --data.train {config.output}")


def show_demo(output: Path, say: Callable[[str], None], count: int = 4) -> None:
    """The first results, in words."""
    with output.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            row = json.loads(line)
            say(f"{row['prompt'][-1]['content']} -> {row['output'][0]['content']}: {row['reward']:.2f}")


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags and label; 2 with a boxed sentence on a user's error, 130 or 143 when stopped by a signal."""
    return run_program(cli.parsed("label", arguments))


def run_program(flags: LabelConfig) -> int:
    """Label as the parsed flags say; the exit status of `main`."""
    # While it scores, Ctrl-C ends the chunk first; this is before or after.
    kept_so_far = "what was scored is kept, go on with --resume"
    return cli.run(
        lambda console: label(flags, console), f"interrupted: {kept_so_far}", kept_so_far.capitalize(), FLAGS
    )
