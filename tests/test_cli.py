"""Around every program: a sentence in a box and a status, whatever goes wrong for the user."""

import importlib
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import datasets
import pytest
import torch
from golden.write import file_of

from rmkit import __version__ as version
from rmkit import cli, errors
from rmkit.distributed import launch


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("--flag 3: set 4"), 2, "--flag 3: set 4"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (errors.AgreedError("rank 3: no such file"), 2, "rank 3: no such file"),
        (errors.UserError("model.name", "x", "set y"), 2, "--model x: set y"),
        (errors.AgreedError(errors.UserError("model.name", "x", "set y")), 2, "--model x: set y"),
        (KeyboardInterrupt(), 130, "nothing was lost"),
    ],
)
def test_an_error_of_the_user_is_a_box_and_a_status(error, status, told, capsys):
    def work(console):
        raise error

    assert cli.run(work, "nothing was lost", flags={"model.name": "--model"}) == status
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "GPU"),
        (RuntimeError("rank 1: OutOfMemoryError: CUDA out of memory"), "GPU"),
        (MemoryError(), "machine"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "machine"),
    ],
)
@pytest.mark.parametrize(("program", "flag"), [("label", "--max-tokens"), ("evaluate", "--max-tokens"), ("check", "")])
def test_full_memory_is_a_sentence_that_says_what_to_lower(program, flag, error, whose, monkeypatch, capsys):
    module = importlib.import_module(f"rmkit.{program}")

    def fills(*_):
        raise error

    monkeypatch.setattr(module, program, fills)
    assert module.run_program(cli.parsed(program, [])) == 2
    told = " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    lower = f"lower {flag}, the tokens of one pass or " if flag else ""
    assert f"the memory of the {whose} is full; {lower}end what else runs on it" in told


def test_our_own_errors_keep_their_traceback():
    def work(console):
        raise AssertionError

    with pytest.raises(AssertionError):
        cli.run(work, "")


def test_a_lost_process_is_a_box_that_says_how_to_go_on(monkeypatch, capsys):
    def work(console):
        raise RuntimeError("[pair.cc:1] Connection closed by peer, says gloo")

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(launch, "_silent_ranks", lambda: [1, 3])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.run(work, "", "Try --resume") == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    told = " ".join(capsys.readouterr().err.split())
    assert "rank 1, 3 has ended" in told
    assert "Connection closed by peer" in told
    assert "Try --resume" in told


def test_progress_bars_are_off_in_a_log_and_given_back():
    datasets.enable_progress_bars()  # whatever ran before
    seen = []
    assert cli.run(lambda console: seen.append(datasets.are_progress_bars_disabled()) or 0, "") == 0
    assert seen == [True]
    assert not datasets.are_progress_bars_disabled()


# --- rmkit PROGRAM ...

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "tyro")
SECONDS = HEAVY[:4]
"""Those whose import takes seconds"""


def rmkit(*arguments: str) -> subprocess.CompletedProcess:
    """python -m rmkit, which leaves on the last line of standard error what it has imported of `HEAVY`."""
    code = "import atexit, json, runpy, sys\n"
    code += f"atexit.register(lambda: print(json.dumps([m for m in {HEAVY} if m in sys.modules]), file=sys.stderr))\n"
    code += "sys.argv[1:] = json.loads(sys.argv[1])\nrunpy.run_module('rmkit', run_name='__main__', alter_sys=True)"
    given = [sys.executable, "-c", code, json.dumps(arguments)]
    return subprocess.run(given, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "100"})


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--help"], 0, ["train", "label", "evaluate", "rmkit PROGRAM --help"]),
        (["-h"], 0, ["usage: rmkit PROGRAM"]),
        (["--version"], 0, [f"rmkit {version}"]),
        (["trian"], 2, ["trian: there is no such program", "train, label, evaluate"]),
        ([], 2, ["no program is named", "train, label, evaluate"]),
        (["--model.name", "x"], 2, ["--model.name: there is no such program", "train, label, evaluate"]),
    ],
)
def test_without_a_program_nothing_heavy_is_imported(arguments, status, words):
    done = rmkit(*arguments)
    assert done.returncode == status, done.stderr
    told = " ".join((done.stdout + done.stderr).replace("\u2502", " ").split())
    for word in words:
        assert word in told
    assert "Traceback" not in told
    assert json.loads(done.stderr.splitlines()[-1]) == []
    assert ("\u256d" in done.stderr) == (status == 2), "an error stands in a box"


@pytest.mark.parametrize("program", list(cli.PROGRAMS))
def test_a_program_is_that_of_python_m(program):
    done = rmkit(program, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == file_of(program).read_text().strip()
    assert not {*SECONDS} & {*json.loads(done.stderr.splitlines()[-1])}


@pytest.mark.parametrize(
    ("program", "flag", "told"),
    [
        ("train", ["--modle.name", "x"], "Perhaps you meant: --model.name"),
        ("train", ["--optim.lr", "fast"], "--optim.lr"),
        ("train", ["--loss.label-smoothing", "2"], "set a number in [0, 0.5)"),
        ("label", ["--feedback", "pairwize"], "pairwise"),
        ("evaluate", ["--dta", "x"], "--data"),
        ("train", ["--data.train", "nowhere.jsonl"], "--data.train nowhere.jsonl: no such file or folder"),
        ("train", ["--data.test", "rm-bench=/no/clone"], "--data.test rm-bench=/no/clone: there is no such path"),
        ("train", ["--model.name", "runs/nowhere/FINAL"], "--model.name runs/nowhere/FINAL: there is no such folder"),
        ("evaluate", ["--model", "runs/nowhere/FINAL", "--data", "demo"], "--model runs/nowhere/FINAL: there is no"),
        ("evaluate", ["--against", "./nowhere"], "--against ./nowhere: there is no such folder"),
        ("label", ["nowhere.jsonl", "out.json", "--model", "m"], "SAMPLES nowhere.jsonl: no such file or folder"),
        ("inspect", ["nowhere.jsonl"], "DATA nowhere.jsonl: no such file or folder"),
        ("check", ["nowhere"], "TARGET nowhere: there is no such folder; give one, or http://HOST:PORT"),
        ("convert", ["nowhere", "out"], "SOURCE nowhere: there is no such folder"),
        ("convert", ["l" * 300, "out"], "there is no such folder"),
        ("check", ["l" * 300], "there is no such folder"),
        ("train", ["--data.train", "l" * 300], "File name too long"),
        ("evaluate", ["--model", "l/" * 900, "--data", "demo"], "there is no such folder"),
        ("runs", ["nowhere"], "NAME nowhere: there is no such run"),
        ("train", ["--data.train", "rmb"], "--data.train rmb: it is no set on the hub; clone its repository"),
        (
            "train",
            ["--data.train", "no-body/thing"],
            "hub's set no-body/thing cannot be reached and is in no cache",
        ),
        ("evaluate", ["--data", "rewardbench"], "the hub's set allenai/reward-bench cannot be reached and is in no"),
        ("label", ["demo", "o.json", "--model", "no-body/rm"], "--model no-body/rm: no model configuration was found"),
    ],
)
def test_a_mistyped_flag_or_name_is_answered_before_anything_heavy_is_imported(program, flag, told):
    """As python -m rmkit.PROGRAM is started, by torchrun too."""
    code = "import atexit, json, runpy, sys\nsys.argv[1:] = sys.argv[2:]\n"
    code += f"atexit.register(lambda: print([m for m in {SECONDS} if m in sys.modules], file=sys.stderr))\n"
    code += f"runpy.run_module('rmkit.{program}', run_name='__main__', alter_sys=True)"
    done = subprocess.run([sys.executable, "-c", code, "", *flag], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert told in " ".join((done.stdout + done.stderr).replace("\u2502", " ").split())
    assert done.stderr.splitlines()[-1] == "[]"


def test_one_of_several_ranks_leaves_a_mistyped_name_to_the_program(monkeypatch):
    """Which speaks once for all of them; a rank that leaves early would end the others before that."""
    flags = cli.parsed("train", ["--data.train", "nowhere.jsonl"])
    assert cli.unknown_name(flags).startswith("--data.train nowhere.jsonl: no such file")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.unknown_name(flags) is None


@pytest.mark.parametrize("program", ["train", "label"])
def test_what_is_resumed_may_have_no_need_of_its_files_any_more(program):
    given = {"train": ["--data.train", "nowhere.jsonl"], "label": ["nowhere.jsonl", "f.json", "--model", "./nowhere"]}
    assert cli.unknown_name(cli.parsed(program, given[program])) is not None
    assert cli.unknown_name(cli.parsed(program, [*given[program], "--resume"])) is None


def test_flags_and_exit_status_are_the_programs_own(tmp_path):
    (tmp_path / "s.json").write_text("[]")
    done = rmkit("label", "--model", "nowhere", str(tmp_path / "s.json"), str(tmp_path / "f.json"))
    assert done.returncode == 2
    assert "--model" in done.stderr
    assert "no model configuration" in " ".join(done.stderr.replace("\u2502", " ").split())
    assert "Traceback" not in done.stderr


def test_the_console_script_is_main():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"rmkit": "rmkit.cli:main"}
    assert project["version"] == version


# --- How threads wait

POLICY = "import os\nprint(os.environ.get('OMP_WAIT_POLICY', 'unset'), flush=True)\nos._exit(0)\n"
ROOT = Path(__file__).parents[1]


def policy_when_torch_is_loaded(folder: Path, command: list[str], **environment: str) -> str:
    """OMP_WAIT_POLICY as a module finds it that stands in for torch."""
    (folder / "torch.py").write_text(POLICY)
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "PYTHONPATH")}
    own |= {"PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT, ROOT / "kernels"))), **environment}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, env=own)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("program", [name for name in cli.PROGRAMS if name != "runs"])  # which has no need of torch
@pytest.mark.parametrize("as_command", [False, True], ids=["python -m rmkit.PROGRAM", "rmkit PROGRAM"])
def test_threads_of_a_program_sleep_while_they_wait_unless_the_user_says_otherwise(tmp_path, program, as_command):
    command = ["-m", "rmkit", program] if as_command else ["-m", f"rmkit.{program}"]
    command += [str(tmp_path), "OUT"] if program == "convert" else []
    assert policy_when_torch_is_loaded(tmp_path, command) == "passive"
    assert policy_when_torch_is_loaded(tmp_path, command, OMP_WAIT_POLICY="active") == "active"


@pytest.mark.parametrize("name", ["step_bench", "label_bench", "loss_bench"])
def test_benchmarks_wait_as_the_programs_do(tmp_path, name):
    assert policy_when_torch_is_loaded(tmp_path, [str(ROOT / "bench" / f"{name}.py")]) == "passive"


def test_a_library_leaves_the_environment_to_its_user(tmp_path):
    assert policy_when_torch_is_loaded(tmp_path, ["-c", "from rmkit import fit, load_scorer"]) == "unset"
