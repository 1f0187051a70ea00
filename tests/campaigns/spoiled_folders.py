"""Ways to spoil a folder of a model or a run: files, tensors, pickles, code of its own, paths that lead out of it."""

import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import torch

from campaigns.mutations import HOSTILE, as_json, spoiled_bytes, spoiled_json

PICKLES = (
    "pytorch_model.bin",
    "optimizer.pt",
    "training.pt",
    "tokenizer.pkl",
    "model.pth",
    "rng_state.pth",
    ".metadata",
)


class Payload:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._marker, "w")


def _ordinary(*files: Path) -> bool:
    """Whether files can be written here: an earlier change may have put a pipe or a folder in their place."""
    return all(file.is_file() or not os.path.lexists(file) for file in files)


def spoil(rng: random.Random, folder: Path, marker: Path) -> None:
    """One change of a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    if not files:
        return
    file = rng.choice(files)
    kind = rng.randrange(12)
    written = ("config.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors.index.json", *PICKLES)
    if kind in (2, 3, 4) and not _ordinary(*(file.parent / name for name in written)):
        kind = 0
    if kind == 0:
        file.unlink()
    elif kind == 1:
        _replaced(rng, file, files)
    elif kind == 2:
        _pickle(rng, file.parent, marker)
    elif kind == 3:
        _code(rng, file.parent, marker)
    elif kind == 4:
        _elsewhere(rng, file.parent)
    elif kind in (5, 6) and (tensors := [path for path in files if path.suffix == ".safetensors"]):
        _header(rng, rng.choice(tensors))
    elif file.suffix == ".json" and kind < 11:
        try:
            file.write_bytes(as_json(spoiled_json(rng, json.loads(file.read_text()))))
        except (ValueError, RecursionError):
            file.write_bytes(spoiled_bytes(rng, file.read_bytes()))
    else:
        file.write_bytes(spoiled_bytes(rng, file.read_bytes()))


def _replaced(rng: random.Random, file: Path, files: list[Path]) -> None:
    """Something else by the name of a file."""
    kind = rng.choice(("folder", "pipe", "loop", "dangling", "empty", "other", "endless"))
    other = rng.choice(files).read_bytes()
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind in ("loop", "dangling", "endless"):
        file.symlink_to({"loop": file.name, "dangling": "nowhere", "endless": "/dev/zero"}[kind])
    else:
        file.write_bytes(b"" if kind == "empty" else other)


def _pickle(rng: random.Random, folder: Path, marker: Path) -> None:
    """A pickle by a name that some library loads, often where the tensors are gone."""
    name = rng.choice(PICKLES)
    if rng.random() < 0.5:
        with (folder / name).open("wb") as file:
            torch.save({"model.embed_tokens.weight": Payload(marker)}, file)
    else:
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    if rng.random() < 0.3:
        index = {"metadata": {}, "weight_map": {"score.weight": name}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    if rng.random() < 0.6:
        for file in folder.glob("*.safetensors*"):
            file.unlink()


def _code(rng: random.Random, folder: Path, marker: Path) -> None:
    """Python of the folder's own, and the keys that ask for it; or a chat template that reaches for it."""
    text = f"open({str(marker)!r}, 'w')\n"
    (folder / "evil.py").write_text(text + "class Evil: pass\n")
    (folder / "__init__.py").write_text(text)
    classes = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM", "AutoTokenizer")
    asked = {name: ["evil.Evil", "evil.Evil"] if name == "AutoTokenizer" else "evil.Evil" for name in classes}
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        try:
            values = json.loads(file.read_text())
            values["auto_map"] = asked
            values |= rng.choice(({}, {"model_type": "evil"}, {"tokenizer_class": "Evil"}, {"trust_remote_code": True}))
            values |= rng.choice(
                ({}, {"attn_implementation": "evil/kernel"}, {"quantization_config": {"quant_method": "q"}})
            )
            file.write_text(json.dumps(values))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            continue
    if rng.random() < 0.5:
        (folder / "chat_template.jinja").write_text(rng.choice(TEMPLATES))
    if rng.random() < 0.2:
        (folder / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(folder), "peft_type": "LORA"})
        )


TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ 1 // 0 }}",
    "{{ messages[99].content }}",
    "{{ messages + 1 }}",
    "{{ nothing.at.all }}",
    "{% for i in range(10 ** 12) %}x{% endfor %}",
    "{{ raise_exception('no') }}",
    "{% include '/etc/passwd' %}",
    "{% broken",
    "",
    "\x00\ufeff",
)


def _elsewhere(rng: random.Random, folder: Path) -> None:
    """An index of weights whose files lie outside, or are none."""
    paths = (
        *PICKLES,
        "../outside/model.safetensors",
        "../../outside/model.safetensors",
        "/etc/passwd",
        "",
        ".",
        "\x00",
        "x" * 300,
    )
    index = folder / "model.safetensors.index.json"
    try:
        values = json.loads(index.read_text())
        for key in rng.sample(sorted(values["weight_map"]), rng.choice((1, 1, 3))):
            values["weight_map"][key] = rng.choice((*paths, *HOSTILE[:8]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        values = {"metadata": {}, "weight_map": {"score.weight": rng.choice(paths)}}
    index.write_bytes(as_json(values))


def _header(rng: random.Random, file: Path) -> None:
    """The header of a safetensors file: its length, or one entry of it."""
    raw = file.read_bytes()
    try:
        length = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + length])
    except (struct.error, ValueError, RecursionError):
        return
    if rng.random() < 0.3:
        sizes = (0, 1, length - 1, length + 1, len(raw), 2**31, 2**40, 2**63, 2**64 - 1)
        file.write_bytes(struct.pack("<Q", rng.choice(sizes)) + raw[8:])
        return
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()) or not header:
        return
    entry = header.get(rng.choice(list(header)), {})
    kind = rng.choice(("dtype", "shape", "data_offsets", "drop", "any"))
    if kind == "dtype":
        entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "X", "", None))
    elif kind == "shape":
        entry["shape"] = rng.choice(([], [0], [1], [2**40, 2**40], [-1], [2**63], [128, 16, 2], "x", None, [1.5]))
    elif kind == "data_offsets":
        entry["data_offsets"] = rng.choice(([0, 0], [0, 2**50], [8, 4], [-4, 0], [0], [], None, [2**64 - 4, 2**64]))
    elif kind == "drop":
        header.pop(rng.choice(list(header)))
    else:
        header = spoiled_json(rng, header)
    text = as_json(header)
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
