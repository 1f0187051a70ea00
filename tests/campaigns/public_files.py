"""Public preference files as they lie in their repositories, through `rmkit.evaluate` and beside another reading.

    python tests/campaigns/public_files.py FOLDER                # what of public_readers is there, as OWNER/NAME/PATH
    python tests/campaigns/public_files.py FOLDER --pairs PAIRS  # and PAIRS/*/*.jsonl, in TRL's form

Of each file, 20 rows spread evenly are read by a few lines of their own (public_readers.py), rendered and tokenised;
the tokens must be those that rmkit scores. Then `rmkit.evaluate` judges the whole file with a model of one layer that
is made here (the demo model's context is 256 characters), and its account must add up: rows = read + dropped, pairs =
kept + dropped, the same in the terminal, metrics.json and report.html; and as many pairs as the other reading counts.

Writes bench/results/public_files.json; nothing of a file but its counts and its checksum.
"""

import argparse
import gzip
import hashlib
import html
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.append(str(Path(__file__).parents[1]))  # support/, the tests and this folder, as a package

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from campaigns.fence import told
from campaigns.public_readers import FILES, File, messages
from rmkit import evaluate, runtime
from rmkit.batch.pairs import tokenise
from rmkit.config import DataConfig
from rmkit.data import source

COMPARED = 20
"""Rows of a file that are read a second time."""
RESULTS = Path(__file__).parents[2] / "bench" / "results" / "public_files.json"
UNDECIDED = ("tie", "no label")
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content or '' }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}</s>{% endfor %}"
)


class Rows:
    """The rows of a file, or of all files of a clone, each with its place as rmkit names it."""

    def __init__(self, file: File, folder: Path) -> None:
        self.root = folder / file.repository / file.path
        paths = sorted(self.root.glob(file.files)) if file.files else [self.root]
        self.given = f"{file.benchmark}={self.root}" if file.benchmark else str(self.root)
        self.rows, digest = [], hashlib.sha256()
        for path in paths:
            raw = path.read_bytes()
            digest.update(raw)
            shown = f"{file.benchmark}={path}" if file.benchmark else str(path)
            self.rows += [(f"{shown}:{number}", row) for number, row in numbered(raw)]
        self.sha256 = digest.hexdigest()

    def spread(self) -> list[tuple[str, Any]]:
        places = np.linspace(0, len(self.rows) - 1, min(COMPARED, len(self.rows)))
        return [self.rows[int(i)] for i in places]


def numbered(raw: bytes) -> list[tuple[int, Any]]:
    """An array's entries count from 0, lines from 1."""
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    if text.lstrip().startswith("["):
        return list(enumerate(json.loads(text)))
    return [(i, json.loads(line)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def model(folder: Path, texts: list[str]) -> PreTrainedTokenizerFast:
    """A classifier of one layer with random weights, whose tokenizer has learned from these texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "</s>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4096, special_tokens=special, initial_alphabet=letters)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "num_labels": 1, "vocab_size": len(tokenizer)}
    LlamaForSequenceClassification(LlamaConfig(**sizes, **ids, max_position_embeddings=32768)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def equal_rows(file: File, rows: Rows, tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """How many rows were read twice, and of how many all pairs have the same tokens on both sides."""
    columns = file.flags[1:] if file.flags[:1] == ("--columns",) else ()
    read = source.load((rows.given,), "test", lambda text: None, columns=columns, bad_rows="drop", judged=True)
    at = defaultdict(list)
    for i, place in enumerate(read["source"]):
        at[place].append(i)
    equal, spread = 0, rows.spread()
    wanted = [i for place, _ in spread for i in at[place]]
    pairs = tokenise(read.select(wanted), tokenizer, DataConfig(workers=1), 10**6, lambda text: None, judged=True)
    tokens = iter(zip(*pairs.columns, strict=True))
    for place, row in spread:
        theirs = [tuple(_ids(tokenizer, side, tools) for side in (a, b)) for a, b, tools in file.read(row)]
        ours = [(a.tolist(), b.tolist()) for a, b in itertools.islice(tokens, len(at[place]))]
        equal += sorted(ours) == sorted(theirs)
        if sorted(ours) != sorted(theirs):
            print(f"  {place}: {len(ours)} pairs, the other reading has {len(theirs)}")
            for a, b in zip(ours, theirs, strict=False):
                for mine, other in zip(a, b, strict=True):
                    print(
                        f"    rmkit: {tokenizer.decode(mine)[-300:]!r}\n    other: {tokenizer.decode(other)[-300:]!r}"
                    )
    return len(spread), equal


def _ids(tokenizer: PreTrainedTokenizerFast, turns: Any, tools: Any) -> list[int]:
    text = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def account(file: File, rows: Rows, folder: Path, out: Path) -> tuple[dict[str, Any], list[str]]:
    """The counts of `rmkit.evaluate` on the whole file, and what is wrong with them."""
    command = ["--model", str(folder), "--data", rows.given, "--out", str(out), "--overwrite", *file.flags]
    status, words = told(lambda: evaluate.main(command))
    if status:
        return {"rows": len(rows.rows)}, [f"exit status {status}: {' '.join(words.split())[:500]}"]
    measured = json.loads((out / "metrics.json").read_text())
    counts = measured["counts"]
    page = html.unescape((out / "report.html").read_text())
    decided = counts["pairs"] - sum(counts["pairs_dropped"].get(why, 0) for why in UNDECIDED)
    scored = len((out / "scores.jsonl").read_text().splitlines())
    wrong = [
        *_unless(counts["rows"] == len(rows.rows) == file.rows, f"{counts['rows']} rows, not {file.rows}"),
        *_unless(
            counts["rows"] == counts["rows_read"] + sum(counts["rows_dropped"].values()), "rows are not read + dropped"
        ),
        *_unless(
            counts["pairs"] == counts["pairs_kept"] + sum(counts["pairs_dropped"].values()),
            "pairs are not kept + dropped",
        ),
        *_unless(counts["pairs_kept"] == measured["overall"]["pairs"] == scored, "pairs kept are not pairs scored"),
        *_unless(decided == (own := sum(len(file.read(row)) for _, row in rows.rows)), f"{decided} pairs, not {own}"),
        *_unless(f": {file.shape};" in words, f"not read as {file.shape}"),
    ]
    for kind in ("rows", "pairs"):
        said = sentence(counts, kind)
        wrong += _unless(said in words, f"the terminal does not say: {said}")
        wrong += _unless(said in page, f"the report does not say: {said}")
    return counts, wrong


def _unless(true: bool, fault: str) -> list[str]:
    return [] if true else [fault]


def sentence(counts: dict[str, Any], kind: str) -> str:
    """How the terminal and the report should tell a count."""
    dropped = counts[f"{kind}_dropped"]
    reasons = "; ".join(f"{n:,} {why}" for why, n in dropped.items())
    return f"{counts[kind]:,}" + (f", of which {sum(dropped.values()):,} dropped ({reasons})" if dropped else "")


def own_files(folder: Path) -> list[File]:
    """Files of a folder in TRL's form, as the table would list them."""
    found = []
    for path in sorted(folder.glob("*/*.jsonl")):
        with path.open() as lines:
            count = sum(1 for line in lines if line.strip())
        where = {"repository": "", "commit": "", "path": str(path.relative_to(folder))}
        found.append(File(**where, rows=count, read=messages, shape="explicit prompt"))
    return found


def judged(file: File, rows: Rows, scratch: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What was found of one file, as the results hold it."""
    began = time.perf_counter()
    try:
        compared, equal = equal_rows(file, rows, tokenizer)
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            counts, wrong = account(file, rows, scratch / "tiny", Path(out) / "out")
    except Exception:  # it is one file's, and the others are judged all the same
        compared, equal, counts, wrong = 0, 0, {}, [traceback.format_exc()]
    wrong += _unless(compared == equal, f"{equal} of {compared} rows are read alike")
    about = {name: value for name, value in asdict(file).items() if name not in ("read", "rows") and value}
    found = {**about, "sha256": rows.sha256, "counts": counts, "compared": compared, "equal": equal, "faults": wrong}
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def in_a_line(found: dict[str, Any]) -> str:
    """A file's result, for the terminal."""
    name = "/".join(found[part] for part in ("repository", "path", "benchmark") if part in found)
    counts = [f"{kind} {sentence(found['counts'], kind)}" for kind in ("rows", "pairs") if kind in found["counts"]]
    return "; ".join([name, *counts, f"{found['equal']} of {found['compared']} rows alike", *found["faults"]])


def main(arguments: list[str] | None = None) -> int:
    os.environ["COLUMNS"] = "4000"  # no sentence is wrapped
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="clones, or single files of them, as OWNER/NAME/PATH")
    parser.add_argument("--pairs", type=Path, help="a folder of folders of files in TRL's form")
    parser.add_argument("--only", default="", help="files whose name holds this; nothing is written")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    listed = [(file, given.folder) for file in FILES if (given.folder / file.repository / file.path).exists()]
    listed += [(file, given.pairs) for file in (own_files(given.pairs) if given.pairs else [])]
    listed = [(file, folder) for file, folder in listed if given.only in f"{file.repository}/{file.path}"]
    datasets.disable_progress_bars()
    ways = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="public-") as scratch, ProcessPoolExecutor(given.processes, ways) as pool:
        opened = [(file, Rows(file, folder)) for file, folder in listed]
        texts = [json.dumps(row, ensure_ascii=False)[:2000] for _, rows in opened for _, row in rows.rows[:100]]
        tokenizer = model(Path(scratch) / "tiny", texts)
        largest = sorted(range(len(opened)), key=lambda i: -len(opened[i][1].rows))
        running = {i: pool.submit(judged, *opened[i], Path(scratch), tokenizer) for i in largest}
        for done in as_completed(running.values()):
            print(in_a_line(done.result()), flush=True)
        results = [running[i].result() for i in range(len(opened))]
    faults = sum(bool(found["faults"]) for found in results)
    print(f"{len(results)} files, {faults} with a fault")
    if not given.only:
        what = {"bench": "public_files", "command": "python tests/campaigns/public_files.py FOLDER --pairs PAIRS"}
        what |= {"model": "a Llama of one layer with random weights", "files": results}
        here = runtime.environment(torch.device("cpu"), 1)
        what |= {"environment": {name: value for name, value in here.items() if name != "command"}}  # it has paths
        given.out.write_text(json.dumps(what, indent=1) + "\n")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
