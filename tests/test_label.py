"""The command, as a user runs it: scores, records, several processes, kills, and every bad input.

Tests whose name begins with halos_ hold a fault of HALOs' labeller that must not happen here.
"""

import contextlib
import errno
import gzip
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden.write import file_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rmkit import label, train
from rmkit.data import demo, source
from rmkit.label import main
from rmkit.labelling import partial
from rmkit.labelling.config import LabelConfig
from rmkit.scorer import Scorer
from support import ranks
from support.oracle import TINY, scores_one_by_one
from support.ranks import started
from support.true_rows import call

TEXTS = ("Sure. Here is code:\n  x = 3.14159 ", " no", "", "Yes! And", "a b c d e f " * 5, "?", "the same", "the same")
PROMPTS = 40


def messages(role, content):
    return [{"role": role, "content": content}]


def made_up(prompts=PROMPTS, k=8, seed=0) -> list[dict]:
    """HALOs' samples in no order at all, so that the completions of a prompt stand anywhere."""
    rng = random.Random(seed)
    rows = []
    for p in range(prompts):
        prompt = messages("user", f"say {p} " + "please " * (p % 5))
        for i in range(k):
            output = TEXTS[i % 8] + (str(rng.random()) if i % 8 < 6 else "")
            rows.append({"output": output, "prompt": prompt, "generator": "m", "dataset": "d_test"})
            rows[-1] |= {"prompt_id": p, "sample_id": i, "type": "sample"}
    rng.shuffle(rows)
    return rows


def save_model(folder: Path, labels: int = 1, **extra) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**TINY, "vocab_size": 128, "num_labels": labels, **extra})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    demo.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As each process of `launch` has: matrix products on another number of threads round their last bit otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_model(folder / "rm")
    (folder / "s.json").write_text(json.dumps(made_up(), indent=1))
    return folder


def flags(world: Path, out: Path, *more: str) -> list[str]:
    return ["--model", str(world / "rm"), str(world / "s.json"), str(out), *more]


def read(file: Path) -> list[dict]:
    return json.loads(file.read_text()) if file.suffix == ".json" else list(map(json.loads, file.open()))


def labelled(arguments: list[str], out: Path) -> list[dict]:
    assert main(arguments) == 0
    assert [part.name for part in out.parent.iterdir() if part.name.endswith(".partial")] == []
    return read(out)


@pytest.fixture(scope="module")
def scalars(world, tmp_path_factory) -> bytes:
    """The scalar feedback of an uninterrupted run."""
    out = tmp_path_factory.mktemp("scalars") / "f.json"
    labelled(flags(world, out), out)
    return out.read_bytes()


def rewards(raw: bytes) -> np.ndarray:
    return np.array([row["reward"] for row in json.loads(raw)])


def truth(folder: Path, conversations: list[list[dict]]) -> np.ndarray:
    """Scores by plain transformers, one at a time, as HALOs does it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
    ids = [np.array(x) for x in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        return scores_one_by_one(model, ids).numpy()


def test_help_is_the_golden_text(tmp_path):
    told = ranks.run(1, tmp_path, main, ["--help"], NO_COLOR=1, TERM="dumb").out(0)
    assert told == file_of("label").read_text(), "flags changed? python tests/golden/write.py"


def test_scores_are_those_of_transformers_one_at_a_time(world, scalars):
    rows = json.loads(scalars)
    assert [(r["prompt_id"], r["sample_id"]) for r in rows] == [(r["prompt_id"], r["sample_id"]) for r in made_up()]
    wanted = truth(world / "rm", [row["prompt"] + row["output"] for row in rows])
    np.testing.assert_allclose(rewards(scalars), wanted, rtol=1e-5, atol=1e-5)
    assert rewards(scalars).std() > 0.1


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_layouts_give_the_same_scores(world, scalars, tmp_path, layout):
    out = tmp_path / "f.json"
    labelled(flags(world, out, "--layout", layout, "--max-tokens", "512"), out)
    np.testing.assert_allclose(rewards(out.read_bytes()), rewards(scalars), rtol=1e-5, atol=1e-5)


def test_halos_what_is_scored_is_what_is_saved(world, scalars):
    """HALOs cuts the text behind the last full stop before it scores: "3.14159" -> "3."."""
    rows = json.loads(scalars)
    assert [row["output"] for row in rows] == [messages("assistant", row["output"]) for row in made_up()]
    kinds = {row["output"][0]["content"][:5] for row in rows}
    assert {"Sure.", " no0.", "Yes! "} <= kinds


def test_halos_own_command_with_the_default_threshold(world, scalars, tmp_path):
    """HALOs: pairwise with its default threshold crashes after all is scored. Only the module's name is changed."""
    out = tmp_path / "feedback.json"
    command = f"--reward_model_path {world}/rm --feedback_type pairwise {world}/s.json {out}".split()
    rows = labelled(command, out)
    assert [row["prompt_id"] for row in rows] == list(dict.fromkeys(row["prompt_id"] for row in made_up()))
    by_prompt = {}
    for row in json.loads(scalars):
        by_prompt.setdefault(row["prompt_id"], []).append(row["reward"])
    for row in rows:
        of_prompt = by_prompt[row["prompt_id"]]
        assert sorted((row["reward_A"], row["reward_B"])) == [min(of_prompt), max(of_prompt)]
        assert row["label"] == int(row["reward_A"] > row["reward_B"])
    assert 8 < sum(row["label"] for row in rows) < PROMPTS - 8, "A and B are swapped with p = 0.5"
    assert out.read_text().startswith('[\n  {\n    "prompt_id"')
    for row, read_back in zip(rows, source.load((str(out),), "train", print, judged=True), strict=True):
        better = "output_A" if row["reward_A"] > row["reward_B"] else "output_B"
        assert (row["label"] in (0, 1), read_back["chosen"], read_back["target"]) == (True, row[better], None)


def test_halos_binary_takes_a_threshold_that_is_no_whole_number(world, scalars, tmp_path):
    out = tmp_path / "f.jsonl"
    rows = labelled(flags(world, out, "--feedback", "binary", "--threshold", "-0.5"), out)
    assert [row["label"] for row in rows] == (rewards(scalars) >= -0.5).astype(int).tolist()
    rows = labelled(flags(world, out, "--feedback", "binary", "--overwrite"), out)
    assert [row["label"] for row in rows] == (rewards(scalars) >= np.median(rewards(scalars))).astype(int).tolist()


@pytest.mark.parametrize("feedback", ["scalar", "binary", "pairwise", "best"])
def test_halos_split_is_written_into_every_record(world, tmp_path, feedback):
    out = tmp_path / "f.jsonl"
    rows = labelled(flags(world, out, "--feedback", feedback, "--split", "test"), out)
    assert {row["split"] for row in rows} == {"test"}


def test_halos_nothing_is_written_elsewhere(world, tmp_path, monkeypatch):
    """HALOs: files of fixed names in the working directory, so that two jobs collide."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    labelled(flags(world, tmp_path / "out" / "f.json"), tmp_path / "out" / "f.json")
    assert [part.name for part in tmp_path.iterdir()] == ["out"]


def test_best_of_each_prompt(world, scalars, tmp_path):
    out = tmp_path / "f.jsonl"
    rows = labelled(flags(world, out, "--feedback", "best"), out)
    highest = {}
    for row in json.loads(scalars):
        highest[row["prompt_id"]] = max(highest.get(row["prompt_id"], -np.inf), row["reward"])
    assert {row["prompt_id"]: row["reward"] for row in rows} == highest
    assert {row["n"] for row in rows} == {8}


@pytest.mark.parametrize("pairing", ["min", "random", "all"])
def test_no_response_is_paired_with_its_equal(world, tmp_path, pairing):
    out = tmp_path / "f.jsonl"
    rows = labelled(flags(world, out, "--feedback", "pairwise", "--pairing", pairing), out)
    assert len(rows) >= PROMPTS
    assert all(row["output_A"] != row["output_B"] for row in rows)


def as_given(rows: list[dict], form: str) -> bytes:
    if form == "array":
        return json.dumps(rows).encode()
    if form == "lines":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if form == "instruction":  # HALOs' sampler in its default mode, which its labeller refuses
        return json.dumps([{**r, "instruction": r["prompt"][0]["content"], "prompt": None} for r in rows]).encode()
    grouped: dict[int, dict] = {}
    for row in rows:
        of_prompt = grouped.setdefault(row["prompt_id"], {"prompt": row["prompt"], "responses": []})
        of_prompt["responses"].append(row["output"])
    if form == "responses":
        return as_given(list(grouped.values()), "lines")
    every = [g["responses"] for g in grouped.values()]
    pairs = zip(grouped.values(), every, strict=True)
    lists = [{"prompt": g["prompt"], "chosen": r[:3], "rejected": r[3:]} for g, r in pairs]
    return as_given(lists, "lines")


@pytest.mark.parametrize("form", ["array", "lines", "instruction", "responses", "preferences"])
def test_forms_of_input(world, scalars, tmp_path, form):
    file, out = tmp_path / "in.json", tmp_path / "f.jsonl"
    file.write_bytes(as_given(made_up(), form))
    rows = labelled(["--model", str(world / "rm"), str(file), str(out)], out)
    wanted = {(r["prompt"][0]["content"], r["output"][0]["content"]): r["reward"] for r in json.loads(scalars)}
    found = {(r["prompt"][0]["content"], r["output"][0]["content"]): r["reward"] for r in rows}
    assert found.keys() == wanted.keys()
    for key, reward in wanted.items():
        assert found[key] == pytest.approx(reward, abs=1e-5)
    if form == "preferences":
        assert len(rows) == len(wanted), "a response that stands on a prompt twice is one sample"
    else:
        assert len(rows) == len(made_up())


@pytest.mark.parametrize("how", ["gz", "stdin", "stdin gz"])
def test_gzip_and_standard_input_give_the_same_bytes(world, scalars, tmp_path, monkeypatch, how):
    raw, out = (world / "s.json").read_bytes(), tmp_path / "f.json"
    raw = gzip.compress(raw) if "gz" in how else raw
    given = tmp_path / "s.json.gz"
    given.write_bytes(raw)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(raw))))
    labelled(["--model", str(world / "rm"), "-" if "stdin" in how else str(given), str(out)], out)
    assert out.read_bytes() == scalars


@pytest.mark.parametrize("form", ["halos", "trl", "openrlhf"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_what_is_written_is_read_back_for_training(world, tmp_path, form, suffix):
    out = tmp_path / f"f{suffix}"
    labelled(flags(world, out, "--feedback", "pairwise", "--pairing", "all", "--format", form), out)
    read_back = source.load((str(out),), "train", print)
    plain = tmp_path / "plain.jsonl"
    labelled(flags(world, plain, "--feedback", "pairwise", "--pairing", "all", "--format", "trl"), plain)
    wanted = [(row["prompt"], row["chosen"], row["rejected"]) for row in read(plain)]
    wanted = [turns for turns in wanted if turns[1][0]["content"].strip() and turns[2][0]["content"].strip()]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in read_back] == wanted
    assert all(row["score_chosen"] > row["score_rejected"] for row in read(plain))


def test_training_on_labels(world, tmp_path):
    """Sample file -> label -> train, by command."""
    out = tmp_path / "f.jsonl"
    labelled(flags(world, out, "--feedback", "pairwise"), out)
    arguments = ["--exp-name", "r", "--cache-dir", str(tmp_path), "--model.name", str(world / "rm")]
    assert train.main([*arguments, "--data.train", str(out), "--optim.max-steps", "1"]) == 0


def test_two_labels_as_halos_saves_them(tmp_path):
    save_model(tmp_path / "rm", labels=2)
    (tmp_path / "s.json").write_text(json.dumps(made_up(4)))
    out = tmp_path / "f.json"
    rows = labelled(flags(tmp_path, out), out)
    wanted = truth(tmp_path / "rm", [row["prompt"] + row["output"] for row in rows])
    np.testing.assert_allclose([row["reward"] for row in rows], wanted, rtol=1e-5, atol=1e-5)


def test_halos_overlong_conversations_are_counted_and_not_cut(world, scalars, tmp_path, capsys):
    out = tmp_path / "f.json"
    rows = labelled(flags(world, out, "--max-length", "60"), out)
    said = capsys.readouterr().out
    left = len(made_up()) - len(rows)
    assert 0 < left < len(made_up())
    line = next(line for line in said.splitlines() if line.startswith("over-long (more than 60 tokens)"))
    assert line.split()[-1].endswith(str(left))
    known = {(r["prompt_id"], r["sample_id"]): r["reward"] for r in json.loads(scalars)}
    for row in rows:
        assert row["reward"] == pytest.approx(known[row["prompt_id"], row["sample_id"]], abs=1e-5)


def test_one_completion_and_pairwise_asked_is_counted_and_said(world, tmp_path, capsys):
    file, out = tmp_path / "s.jsonl", tmp_path / "f.jsonl"
    rows = made_up(3, k=1) + [{"prompt": "two", "responses": ["a", "bb"]}, {"prompt": "same", "responses": ["a", "a"]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(labelled(["--model", str(world / "rm"), str(file), str(out), "--feedback", "pairwise"], out)) == 1
    said = capsys.readouterr().out
    assert "prompts with one scored completion: no pair" in said
    assert "prompts without a gap over 0: no pair" in said


# --- several processes, kills and resume


def launch(processes: int, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "rmkit.label", *arguments], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("bad file", "{tmp}/bad.json, index 0: "),
        ("no file", "SAMPLES nowhere.json: no such file"),
        ("no folder", "FEEDBACK {tmp}/nowhere/f.json: there is no folder {tmp}/nowhere"),
        ("held folder", "{tmp}/.f.json.partial holds scores of an interrupted labelling"),
        ("no model", "--model nowhere: no model configuration"),
        ("too long", "--max-length 4096: the model's context is"),
        ("no default", "runs/demo/FINAL is not there; make it in one process first"),
        ("full disk", "{tmp}/.f.json.partial: No space left on device; what was scored is kept"),
        ("full disk on one", "rank 1: {tmp}/.f.json.partial: No space left on device; what was scored is kept"),
    ],
)
def test_an_error_on_two_ranks_is_one_sentence(world, tmp_path, monkeypatch, case, words):
    monkeypatch.chdir(tmp_path)
    arguments, failing = flags(world, tmp_path / "f.json"), None
    if case == "bad file":
        arguments[2] = str(tmp_path / "bad.json")
        (tmp_path / "bad.json").write_text('[{"prompt": 3}]')
    elif case == "no file":
        arguments[2] = "nowhere.json"
    elif case == "no folder":
        arguments[3] = str(tmp_path / "nowhere" / "f.json")
    elif case == "held folder":
        (tmp_path / ".f.json.partial").mkdir()
    elif case == "no model":
        arguments[1] = "nowhere"
    elif case == "too long":
        arguments += ["--max-length", "4096"]
    elif case == "no default":
        arguments = []
    else:
        failing = "01" if case == "full disk" else "1"
    with started(2, tmp_path / "said", main if failing is None else full_disk, arguments, *failing or ()) as ranks:
        assert ranks.wait(120) == [2, 2]
    told = ranks.told(0)
    assert told.replace(" ", "").startswith(words.format(tmp=tmp_path).replace(" ", "")), told
    assert ranks.err(0).count("\u256d") == 1, "one box"
    assert ranks.err(1) == "", "it is said once"
    assert "connection" not in told
    assert not (tmp_path / "f.json").exists()


def full_disk(arguments: list[str], *failing: str) -> int:
    """The ranks `failing` cannot write what they have scored."""
    if os.environ["RANK"] in failing:
        label.scored = fails_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    return main(arguments)


def fails_with(error: Exception):
    def fails(*_):
        raise error

    return fails


def test_a_rank_that_fails_ends_the_others_at_their_next_chunk(world, tmp_path):
    """They would score for hours what another run has to go on from."""
    arguments = flags(world, tmp_path / "f.json")
    with started(2, tmp_path / "said", waits_for_the_other, arguments) as ranks:
        assert ranks.wait(120) == [2, 2]
    lines = (tmp_path / ".f.json.partial" / "scores-0.jsonl").read_text().count("\n")
    assert lines == 1, "the chunk that was in work"
    assert main([*arguments, "--resume"]) == 0
    assert len(read(tmp_path / "f.json")) == len(made_up())


def waits_for_the_other(arguments: list[str]) -> int:
    """Rank 1 fails in its first chunk; rank 0 ends its own once it has."""
    if os.environ["RANK"] == "1":
        return full_disk(arguments, "1")
    real, failed = label.scored, Path(arguments[3]).parent / ".f.json.partial" / "failed"

    def scored(*given):
        while not failed.exists():
            time.sleep(0.01)
        return real(*given)

    label.scored = scored
    return main(arguments)


def test_halos_fewer_samples_than_processes(world, tmp_path):
    """HALOs: a count that the processes do not divide makes them hang."""
    file, out = tmp_path / "s.json", tmp_path / "f.json"
    file.write_text(json.dumps(made_up(1, k=1)))
    ranks.run(2, tmp_path / "said", main, ["--model", str(world / "rm"), str(file), str(out)])
    assert len(read(out)) == 1


class Crash(BaseException):
    """The process dies here: nothing may catch it."""


def crash_after(monkeypatch, calls: int, module, name: str, error: BaseException) -> None:
    """The function `name` fails at its call number `calls`, counted from 0."""
    real, done = getattr(module, name), []

    def fails(*args, **kwargs):
        if len(done) == calls:
            raise error
        done.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, fails)


def test_two_processes_go_on_where_one_crashed_and_give_the_same_bytes(world, scalars, tmp_path, monkeypatch):
    out = tmp_path / "f.json"
    with monkeypatch.context() as patch:
        crash_after(patch, 3, label, "scored", Crash())
        with pytest.raises(Crash):
            main(flags(world, out))
    assert not out.exists()
    ranks.run(2, tmp_path / "said", main, flags(world, out, "--resume"))
    assert out.read_bytes() == scalars


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [(label, "scored", 0), (label, "scored", 5), (label, "write", 0), (partial.os, "fsync", 6)],
)
def test_resume_after_a_crash_gives_the_same_bytes(world, scalars, tmp_path, monkeypatch, module, name, calls):
    out = tmp_path / "f.json"
    with monkeypatch.context() as patch:
        crash_after(patch, calls, module, name, Crash())
        with pytest.raises(Crash):
            main(flags(world, out))
    assert not out.exists()
    scored_again = []
    real = label.scored
    monkeypatch.setattr(label, "scored", lambda *args: scored_again.append(1) or real(*args))
    assert main(flags(world, out, "--resume")) == 0
    assert out.read_bytes() == scalars
    assert (len(scored_again) == 0) == (name != "scored")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_chunk_and_resume_goes_on(world, scalars, tmp_path, monkeypatch, capsys, number):
    out = tmp_path / "f.json"
    real = label.scored

    def interrupted(chunk, *rest):
        if chunk.number == 2:
            os.kill(os.getpid(), number)
        return real(chunk, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(label, "scored", interrupted)
        assert main(flags(world, out)) == 128 + number
    assert "--resume" in capsys.readouterr().out
    assert main(flags(world, out, "--resume")) == 0
    assert out.read_bytes() == scalars


def test_resume_of_a_finished_labelling_does_nothing(world, tmp_path, capsys):
    out = tmp_path / "f.json"
    labelled(flags(world, out), out)
    before = out.stat().st_mtime_ns
    assert main(flags(world, out, "--resume")) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before


def family(pid: int) -> list[int]:
    """A process and all that it has started: torchrun gives its workers sessions of their own."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


@pytest.mark.slow
def test_killed_at_ten_random_moments(world, tmp_path):
    """kill -9 at any moment of a run of two processes; each time --resume; the same bytes in the end."""
    (tmp_path / "s.json").write_text(json.dumps(made_up(2500), indent=1))
    model = str(world / "rm")
    arguments = ["--model", model, str(tmp_path / "s.json"), "--feedback", "pairwise", "--max-tokens", "1024"]
    began = time.monotonic()
    launch(2, [*arguments, str(tmp_path / "whole.json")])
    seconds = time.monotonic() - began
    out = tmp_path / "killed.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "rmkit.label", *arguments, str(out), "--resume"]
    rng, quiet = random.Random(0), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    kept = []
    for _ in range(10):
        running = subprocess.Popen(command, **quiet)
        time.sleep(rng.uniform(0.3, 0.95) * seconds)
        for pid in reversed(family(running.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.wait()
        kept.append(sum(len(file.read_bytes()) for file in tmp_path.glob(".killed.json.partial/scores-*")))
        if out.exists():  # whole already: begin anew, so that there are ten kills
            assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
            shutil.rmtree(tmp_path / ".killed.json.partial", ignore_errors=True)
            out.unlink()
    print(f"bytes of scores after each kill: {kept}")
    assert len(set(kept)) > 2
    launch(2, [*arguments, str(out), "--resume"])
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()


# --- what goes wrong


def refusal(capsys, arguments: list[str]) -> str:
    """What the user is told, on one line; the status must say that it was the input."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "\u256d" in err, "the sentence stands in a box"
    return " ".join(line.strip("\u2502 ") for line in err.splitlines() if line.startswith("\u2502"))


GOOD = json.dumps({"prompt": "q", "output": "a"})
BAD_FILES = {
    "empty": ("", "empty"),
    "half an array": (f"[{GOOD}, {GOOD[:20]}", "index 1: found JSON that is cut off"),
    "no prompt": (f'{GOOD}\n{{"output": "a"}}\n', "line 2: field 'prompt': found nothing"),
    "element without a prompt": (f'[{GOOD}, {{"output": "a"}}]', "index 1: field 'prompt': found nothing"),
    "other fields": ('{"question": "q", "answer": "a"}', "line 1: found the fields question, answer"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_before_anything_is_scored(world, tmp_path, capsys, monkeypatch, name):
    content, words = BAD_FILES[name]
    file, out = tmp_path / "bad.json", tmp_path / "f.json"
    file.write_text(content)
    monkeypatch.setattr(Scorer, "score_tokens", None)
    told = refusal(capsys, ["--model", str(world / "rm"), str(file), str(out)])
    assert "bad.json" in told.replace(" ", "")
    assert words.replace(" ", "") in told.replace(" ", "")
    assert [part.name for part in tmp_path.iterdir()] == ["bad.json"], "nothing is left behind"


@pytest.mark.parametrize("form", ["lines", "folder"])
def test_bad_rows_are_left_out_and_listed_where_that_is_asked_for(world, tmp_path, capsys, monkeypatch, form):
    rows = [{"prompt": "q", "output": "yes"}, {"output": "a"}, {"prompt": "Go on:\n\nHuman: q", "output": "no"}]
    file, out = tmp_path / "rows" / "s.jsonl", tmp_path / "f.json"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": \n')
    given = ["--model", str(world / "rm"), str(file if form == "lines" else file.parent), str(out)]
    assert "s.jsonl, line 2: field 'prompt'" in refusal(capsys, given)
    with monkeypatch.context() as patch:
        crash_after(patch, 0, label, "scored", Crash())
        with pytest.raises(Crash):
            main([*given, "--bad-rows", "drop"])
    assert "--bad-rows stop: it differs" in refusal(capsys, [*given, "--resume"])
    assert [row["output"][0]["content"] for row in labelled([*given, "--bad-rows", "drop", "--resume"], out)] == [
        "yes",
        "no",
    ]
    told = " ".join(capsys.readouterr().out.split())
    assert "2 completions in 2 rows; dropped: 2 bad rows; 1 prompts hold" in told
    assert "s.jsonl, line 2: field 'prompt': found nothing" in told
    assert "s.jsonl, line 4: " in told
    assert "bad rows: left out 2" in told


def test_a_conversation_that_the_chat_template_refuses(world, tmp_path, capsys):
    """--resume, which was advised, would meet it again; and --bad-rows drop did not cover it."""
    rows = [{"prompt": f"q{i}", "responses": ["yes", f"{i}"]} for i in range(99)]
    rows[1]["responses"][1] = rows[97]["responses"][0] = [call("Ulm")]
    rows[97]["responses"] += [[call("Ulm")], ""]
    file, out = tmp_path / "s.jsonl", tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--model", str(world / "rm"), str(file), str(out)]
    told = refusal(capsys, given)
    assert "s.jsonl,line2:thechattemplaterefusesthisconversation:" in "".join(told.split()), "a long path is broken"
    assert "--bad-rows drop --overwrite starts anew" in told
    assert "--resume" not in told
    with pytest.MonkeyPatch.context() as patch:
        crash_after(patch, 3, label, "scored", Crash())
        with pytest.raises(Crash):
            main([*given, "--bad-rows", "drop", "--overwrite"])
    capsys.readouterr()
    written = labelled([*given, "--bad-rows", "drop", "--resume"], out)
    said = " ".join(capsys.readouterr().out.split())
    assert len(written) == 200 - 3
    assert not any(turn.get("tool_calls") for row in written for turn in row["output"])
    assert "completions 200 scored 197" in said
    assert "refused by the chat template 3" in said
    assert "no token" not in said
    for line in (2, 98):
        assert said.count(f"s.jsonl, line {line}: the chat template refuses this conversation: ") == 1
    for each in rows:  # the other scores are those of a file without these rows
        each["responses"] = [answer for answer in each["responses"] if isinstance(answer, str)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = labelled([*given, "--overwrite"], out)
    assert [row["output"] for row in others] == [row["output"] for row in written]
    np.testing.assert_allclose([r["reward"] for r in others], [r["reward"] for r in written], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "4 completions in 2 rows; not used: documents; kept in the records, not scored: source"),
        (["--format", "trl"], "4 completions in 2 rows; not used: documents, source"),
        (["--feedback", "binary"], "4 completions in 2 rows; not used: documents, source"),
        (
            ["--feedback", "best"],
            "4 completions in 2 rows; not used: documents; kept in the records, not scored: source",
        ),
    ],
)
def test_fields_that_are_not_scored_are_said(world, tmp_path, capsys, more, told):
    """They were lost without a word, where evaluate and train say so."""
    rows = [{"prompt": "q", "responses": ["yes", "no"], "source": "x"}]
    rows += [{"prompt": "r", "chosen": "yes", "rejected": "no", "documents": ["d"]}]
    file, out = tmp_path / "s.jsonl", tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = labelled(["--model", str(world / "rm"), str(file), str(out), *more], out)
    assert told in " ".join(capsys.readouterr().out.split())
    assert ("source" in written[0]) == ("kept in" in told)


def test_nothing_more_is_said_of_halos_samples(world, tmp_path, capsys):
    for more in ([], ["--feedback", "pairwise"]):
        labelled(flags(world, tmp_path / "f.json", *more, "--overwrite"), tmp_path / "f.json")
        assert "320 completions in 320 rows\n" in capsys.readouterr().out


BAD_FLAGS = {
    "no such file": (("nowhere.json", "f.json"), "SAMPLES nowhere.json"),
    "no output named": (("s.json",), "FEEDBACK: name the file"),
    "no folder": (("s.json", "nowhere/f.json"), "there is no folder nowhere"),
    "another suffix": (("s.json", "f.csv"), ".json (an array) or .jsonl"),
    "a folder": (("s.json", "rm.json"), "it is a folder"),
    "itself": (("s.json", "s.json", "--overwrite"), "the file of the samples"),
    "into the model": (("s.json", "rm/config.json", "--overwrite", "--model", "rm"), "in the folder of the model"),
    "too long": (("s.json", "f.json", "--max-length", "5000"), "--max-length 5000"),
    "budget": (("s.json", "f.json", "--max-length", "100", "--max-tokens", "50"), "--max-tokens 50"),
}
SENSELESS = {
    "median of pairs": (("--feedback", "pairwise", "--threshold", "median"), "--threshold median"),
    "threshold of scalar": (("--threshold", "1"), "--threshold 1"),
    "pairs of binary": (("--feedback", "binary", "--pairing", "max"), "--pairing max"),
    "both": (("--resume", "--overwrite"), "give one of the two"),
    "seed": (("--seed", "-1"), "--seed -1"),
    "one token": (("--max-tokens", "1"), "--max-tokens 1"),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_senseless_flags_are_refused_at_once(world, tmp_path, capsys, name):
    """tyro shows what the configuration itself refuses, in a box of its own."""
    given, words = SENSELESS[name]
    with pytest.raises(SystemExit) as left:
        main(flags(world, tmp_path / "f.json", *given))
    assert left.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_a_bad_flag_is_named(world, tmp_path, capsys, monkeypatch, name):
    given, words = BAD_FLAGS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.json").write_text(GOOD)
    (tmp_path / "rm.json").mkdir()
    (tmp_path / "rm").symlink_to(world / "rm")
    assert words in refusal(capsys, ["--model", str(world / "rm"), *given])
    assert sorted(part.name for part in tmp_path.iterdir()) == ["rm", "rm.json", "s.json"]


def test_no_model_named(world, tmp_path, capsys):
    assert "--model: name a reward model" in refusal(capsys, [str(world / "s.json"), str(tmp_path / "f.json")])


def test_a_model_without_a_score_head_is_refused(world, tmp_path, capsys):
    config = AutoConfig.for_model("llama", **{**TINY, "vocab_size": 128})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "rm")
    demo.tokenizer().save_pretrained(tmp_path / "rm")
    told = refusal(capsys, ["--model", str(tmp_path / "rm"), str(world / "s.json"), str(tmp_path / "f.json")])
    assert "LlamaForCausalLM" in told
    assert "rmkit.train" in told


def test_output_that_is_there_is_kept(world, tmp_path, capsys):
    out = tmp_path / "f.json"
    out.write_text("mine")
    told = refusal(capsys, flags(world, out))
    assert "--overwrite" in told
    assert out.read_text() == "mine"


def test_an_unwritable_folder_is_found_before_scoring(world, tmp_path, capsys, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)  # the tests may run as root, whom no folder refuses
    monkeypatch.setattr(label, "load_scorer", None)
    assert "cannot be written (Permission denied)" in refusal(capsys, flags(world, tmp_path / "f.json"))


def test_a_score_that_is_no_number_is_refused_with_its_sample(world, scalars, tmp_path, capsys, monkeypatch):
    out = tmp_path / "f.json"
    real = Scorer.score_tokens

    def with_nan(self, sequences, group):
        found = real(self, sequences, group)
        wanted = made_up()[17]
        text = self.tokenizer.apply_chat_template(
            wanted["prompt"] + messages("assistant", wanted["output"]), tokenize=True, return_dict=False
        )
        return np.array(
            [np.nan if s.tolist() == text else f for s, f in zip(sequences, found, strict=True)], np.float32
        )

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score_tokens", with_nan)
        told = refusal(capsys, flags(world, out)).replace(" ", "")
    assert "s.json,index17:themodelgivesitthescorenan" in told
    assert "--resume" in told
    assert not out.exists()
    assert main(flags(world, out, "--resume")) == 0
    assert out.read_bytes() == scalars


@pytest.mark.parametrize(("module", "name", "calls"), [(partial, "_write_all", 2), (partial.os, "fsync", 6)])
def test_a_full_disk_keeps_what_was_scored(world, scalars, tmp_path, capsys, monkeypatch, module, name, calls):
    out = tmp_path / "f.json"
    with monkeypatch.context() as patch:
        crash_after(patch, calls, module, name, OSError(errno.ENOSPC, "No space left on device"))
        told = refusal(capsys, flags(world, out))
    assert "No space left on device" in told
    assert "--resume" in told
    assert not out.exists()
    assert main(flags(world, out, "--resume")) == 0
    assert out.read_bytes() == scalars


def test_other_samples_are_not_resumed(world, tmp_path, capsys, monkeypatch):
    file, out = tmp_path / "s.json", tmp_path / "f.json"
    file.write_bytes((world / "s.json").read_bytes())
    arguments = ["--model", str(world / "rm"), str(file), str(out)]
    with monkeypatch.context() as patch:
        crash_after(patch, 2, label, "scored", Crash())
        with pytest.raises(Crash):
            main(arguments)
    told = refusal(capsys, arguments)
    assert "give --resume" in told
    told = refusal(capsys, [*arguments, "--resume", "--layout", "packed"])
    assert "--layout packed: it differs" in told
    file.write_text(json.dumps(made_up(5)))
    assert "SAMPLES" in refusal(capsys, [*arguments, "--resume"])
    assert main([*arguments, "--overwrite"]) == 0
    assert len(read(out)) == 40


def test_no_argument_labels_embedded_samples_with_the_demo_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    real = train.main
    quick = ["--data.train", "demo:test", "--optim.max-steps", "2"]
    monkeypatch.setattr(train, "main", lambda _: real(quick))
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "the demo model is trained first" in out
    assert "self-check" in out
    assert out.count(" -> ") == 4
    assert len(read(tmp_path / "runs" / "demo" / "feedback.jsonl")) == 1200
    assert main([]) == 0, "a second run takes the model that is there, and writes anew"
    assert "trained first" not in capsys.readouterr().out


def test_config_names_its_defaults():
    assert LabelConfig().resolved().samples == "demo:test"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(world, tmp_path):
    """Peak of 20 and of 200 thousand short completions; an entry of the index has 37 bytes, the texts have 40 MB."""
    peaks = {}
    for count in (20_000, 200_000):
        file = tmp_path / f"{count}.jsonl"
        with file.open("w") as out:
            for i in range(count):
                row = {"prompt": f"p {i // 4}", "output": f"{i} " + "x" * 20, "prompt_id": i // 4, "note": "n" * 100}
                out.write(json.dumps(row) + "\n")
        arguments = ["--model", str(world / "rm"), str(file), str(tmp_path / f"{count}.out.jsonl")]
        arguments += ["--feedback", "pairwise"]
        code = f"import sys\nfrom rmkit.label import main\nassert main({arguments!r}) == 0\n"
        code += "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        peaks[count] = int(done.stdout.split()[-1]) / 1024
    print(f"peak memory in MiB: {peaks}")
    assert peaks[200_000] - peaks[20_000] < 60, peaks
