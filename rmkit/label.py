"""Label completions with a trained reward model, as scalar, binary or pairwise feedback.

SAMPLES are scored whole, as they are saved, and FEEDBACK is written when all of them are: it appears whole or not at
all. Until then the scores lie beside it in .FEEDBACK.partial/, from which --resume goes on after a kill. Runs on
several processes under accelerate launch or torchrun. With no argument, embedded samples and the demo model.
"""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tyro
from accelerate import Accelerator
from rich.console import Console

from rmkit import cli, demo_model, terminal
from rmkit.demo_model import DEMO_MODEL
from rmkit.distributed import launch
from rmkit.labelling import feedback as fb
from rmkit.labelling.chunks import Chunk, chunk_bounds, scored, tokenised
from rmkit.labelling.config import LabelConfig
from rmkit.labelling.index import SampleFile, build_index, by_prompt
from rmkit.labelling.input import plain_file, shown
from rmkit.labelling.partial import Spool
from rmkit.labelling.records import records, write
from rmkit.runtime import stop_asked
from rmkit.scorer import Scorer, load_scorer
from rmkit.terminal import Gauge


@contextlib.contextmanager
def kept(spool: Spool) -> Iterator[None]:
    """Errors within the block are told with the word that the scores are kept."""
    advice = f"what was scored is kept in {spool.folder}: go on with --resume"
    try:
        yield
    except OSError as error:
        raise ValueError(f"{error.filename or spool.folder}: {error.strerror or error}; {advice}") from error
    except ValueError as error:
        raise ValueError(f"{error}. {advice[0].upper() + advice[1:]}") from error


def score_all(
    file: SampleFile, scorer: Scorer, spool: Spool, accelerator: Accelerator, console: Console
) -> tuple[int, float]:
    """Score this process's share into the spool; the signal that stopped it or 0, and completions/s of all processes.

    No process waits for another one here, so none can hang however the chunks fall.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    order, starts = by_prompt(file.index["group"])
    bounds = chunk_bounds(starts)
    done = spool.done()
    mine = [c for c in range(rank, len(bounds) - 1, ranks) if c not in done]
    sizes = np.diff(bounds)
    before, share = int(sizes[list(done)].sum()), max(1, int(sizes[mine].sum()))
    gauge = Gauge(console, "scored", "completions", len(file), before, accelerator.is_main_process)

    def prepare(c: int) -> Chunk:
        return tokenised(file, c, order[bounds[c] : bounds[c + 1]], scorer)

    ready = 0
    with stop_asked() as stop, contextlib.closing(gauge), spool.writer(rank) as write, ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(prepare, mine[0]) if mine else None
        for following in [*mine[1:], None]:
            if coming is None or stop.received:
                break
            chunk = coming.result()
            coming = None if following is None else ahead.submit(prepare, following)
            write(scored(chunk, scorer, file))
            ready += len(chunk.positions)
            gauge.show(before + round(ready / share * (len(file) - before)))  # the others are about as far
        finished = coming is None
    return (0 if finished else int(stop.received)), gauge.rate


def label(config: LabelConfig, console: Console) -> int:
    """Label as `config` says; the exit status. Raises ValueError with a sentence for the user."""
    accelerator = launch.start(launch.PATIENCE)
    main, spool = accelerator.is_main_process, Spool(config.output)

    def say(text: str) -> None:
        if main:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    config.check_output()
    if config.resume and config.output.exists() and not spool.folder.exists():
        say(f"{config.output} is there, whole: nothing to resume (give --overwrite to label anew)")
        return 0
    accelerator.wait_for_everyone()  # all have looked at the folder before one changes it
    if main:
        spool.open(config.contract(), resume=config.resume, overwrite=config.overwrite, say=say)
    accelerator.wait_for_everyone()
    with spool.locked(accelerator.process_index):
        with spool.removed_if_unused(main):
            scorer = load_scorer(
                config.model,
                device=accelerator.device,
                layout=config.layout,
                precision=config.precision,
                max_tokens=config.max_tokens,
                max_length=config.max_length,
                say=say,
            )
            if main:
                index(config, spool, say)
            accelerator.wait_for_everyone()
        with kept(spool):
            status = score_and_write(config, scorer, spool, accelerator, console, say)
    if status == 0:
        launch.end(accelerator)
    return status


def score_and_write(
    config: LabelConfig,
    scorer: Scorer,
    spool: Spool,
    accelerator: Accelerator,
    console: Console,
    say: Callable[[str], None],
) -> int:
    """Score what is not scored yet, all processes together; then the first one writes FEEDBACK. The exit status."""
    copy = spool.folder / "input"
    file = SampleFile(copy if copy.exists() else Path(config.samples), shown(config.samples), spool.folder)
    began = time.perf_counter()
    stopped, rate = score_all(file, scorer, spool, accelerator, console)
    if stopped:
        say(f"stopped by signal {stopped}: go on with --resume")
        return 128 + stopped
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        order, starts = by_prompt(file.index["group"])
        scores, skipped = spool.scores(order, chunk_bounds(starts))
        counts: Counter[str] = Counter()
        written = write(records(config, file, scores, counts), config.output, spool.folder)
        spool.remove()
        report(config, console, say, scores, {**skipped, **counts}, written, rate, time.perf_counter() - began)
    return 0


def index(config: LabelConfig, spool: Spool, say: Callable[[str], None]) -> None:
    """Find every sample of the input, and whatever is wrong with it, before anything is scored."""
    file = spool.folder / "index.json"
    if not file.is_file():
        copy = spool.folder / "input"
        try:
            plain = copy if copy.exists() else plain_file(config.samples, spool.folder, say)
            build_index(plain, shown(config.samples), spool.folder)
        except OSError as error:
            raise ValueError(f"{error.filename or spool.folder}: {error.strerror or error}") from error
    counts = json.loads(file.read_text())
    twice = f" ({counts['duplicates']:,} more stand in several preferences)" if counts["duplicates"] else ""
    say(f"{shown(config.samples)}: {counts['samples']:,} completions in {counts['rows']:,} rows{twice}")


def report(
    config: LabelConfig,
    console: Console,
    say: Callable[[str], None],
    scores: np.ndarray,
    missed: dict[str, int],
    written: int,
    rate: float,
    seconds: float,
) -> None:
    """The closing table, and the command to run next."""
    found = scores[~np.isnan(scores)]
    rows = [("completions", f"{len(scores):,}"), ("scored", f"{len(found):,}")]
    if len(found):
        rows.append(("reward, mean", f"{found.mean(dtype=np.float64):.4f}"))
        rows.append(("reward, spread", f"{found.std(dtype=np.float64):.4f}"))
    rows += [(reason, f"{count:,}") for reason, count in missed.items()]
    if config.feedback == "binary":
        rows.append(("threshold", f"{fb.bar(fb.number_of(config.threshold, 'binary'), scores):.6g}"))
    rows += [("records", f"{written:,}"), ("completions/s", f"{rate:,.1f}"), ("seconds", f"{seconds:.0f}")]
    terminal.closing(console, [*rows, ("feedback", str(config.output))], say)
    if config.feedback == "pairwise" and written:
        say(f"train on it: python -m rmkit.train --model.name MODEL --data.train {config.output}")


def show_demo(output: Path, console: Console, count: int = 4) -> None:
    """The first results, in words."""
    with output.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            row = json.loads(line)
            text = f"{row['prompt'][-1]['content']} -> {row['output'][0]['content']}: {row['reward']:.2f}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags and label; 2 with a boxed sentence on a user's error, 130 or 143 when stopped by a signal."""

    def work(console: Console) -> int:
        given = tyro.cli(LabelConfig, args=arguments, prog="python -m rmkit.label", description=__doc__)
        config = given.resolved()
        if config.model == str(DEMO_MODEL):
            demo_model.prepare(lambda text: console.print(text, highlight=False))
        if given.demo:
            config.output.parent.mkdir(parents=True, exist_ok=True)
        status = label(config, console)
        if status == 0 and (given.demo, config.feedback, config.format) == (True, "scalar", "halos"):
            show_demo(config.output, console)
        return status

    # While it scores, Ctrl-C ends the chunk first; this is before or after.
    kept_so_far = "what was scored is kept, go on with --resume"
    return cli.run(work, f"interrupted: {kept_so_far}", kept_so_far.capitalize())


if __name__ == "__main__":
    sys.exit(main())
