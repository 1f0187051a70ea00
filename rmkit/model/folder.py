"""What a model's folder holds, told without reading its weights: whether it is safe, and which head it brings."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from rmkit.data.files import is_pointer
from rmkit.errors import UserError, brief
from rmkit.model.adapter import CONFIG as ADAPTER_CONFIG
from rmkit.model.adapter import adapter_in
from rmkit.model.head import Head, from_json, plain_head

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def check_folder(folder: Path) -> None:
    """ValueError where a local folder holds what is neither file nor folder (to open a pipe is to wait for somebody) or
    what Git LFS leaves in a file's place, where its index of weights names anything but safetensors of its own (another
    file would be read as a pickle), or where it holds weights that would be left unread."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError("model.name", folder, f"{path.name} is no ordinary file (a pipe, a device)")
        if path.suffix in (".safetensors", ".json") and is_pointer(path):
            hint = f"{path.name} is a Git LFS pointer, not the file itself; fetch that with: git lfs pull"
            raise UserError("model.name", folder, hint)
    _shards(folder)
    if (stray := sorted(folder.glob("adapter_model.*"))) and not (folder / ADAPTER_CONFIG).is_file():
        hint = f"it holds {stray[0].name} without the {ADAPTER_CONFIG} that says how it is read; move it elsewhere"
        raise UserError("model.name", folder, hint)
    if sorted(folder.glob("pytorch_model*.bin")) and not sorted(folder.glob("*.safetensors")):
        raise UserError("model.name", folder, f"its weights are a pickle, which can run code; {convert_hint(folder)}")


def convert_hint(name: str | Path) -> str:
    """How a reward model of HALOs or OpenRLHF becomes one that can be read."""
    return f"if it is a reward model of HALOs or OpenRLHF, python -m rmkit.convert {name} OUT writes an ordinary one"


def saved_head(architecture: PretrainedConfig, name: str) -> Head | None:
    """The head that a checkpoint brings; None where it is a causal LM, whose head must be drawn.

    rmkit.json says what its labels mean; without one, 1 or 2 labels are read as HALOs saves them. Raises ValueError
    where there are more, or where the two do not fit.
    """
    adapter = adapter_in(name)
    if adapter is not None and adapter.labels is None:
        return saved_head(architecture, adapter.base)
    if adapter is not None:
        return _head_of(adapter.folder, name, adapter.labels)
    kinds = architecture.architectures or [""]
    if not isinstance(kinds, list) or not isinstance(kinds[0], str):
        raise UserError("model.name", name, f"its config.json gives {kinds!a} as architectures, need a class name")
    if kinds[0].endswith("ForCausalLM"):
        return None
    if not kinds[0].endswith("ForSequenceClassification"):
        raise UserError(
            "model.name",
            name,
            f"it is saved as {kinds[0] or 'an unnamed class'}; "
            "give a causal LM, a sequence classifier or a folder that rmkit wrote",
            convert_hint(name),
        )
    return _head_of(Path(name), name, _labels_in_weights(Path(name)) or architecture.num_labels)


def _head_of(folder: Path, name: str, labels: int) -> Head:
    """What the labels of a saved head mean; ValueError where nothing says it."""
    described = _described_head(folder / "rmkit.json", labels)
    head = described or plain_head(labels)
    if head is None:
        raise UserError(
            "model.name",
            name,
            f"its head has {labels} labels; a reward model has 1, or 2 as HALOs saves them, or an rmkit.json beside it "
            "that says what they mean",
        )
    return head


def _described_head(file: Path, labels: int) -> Head | None:
    """The head as rmkit.json describes it; None where it does not."""
    if not file.is_file():
        return None
    try:
        contract = json.loads(file.read_text())
        held = contract.get("head") if isinstance(contract, dict) else None
        return None if held is None else from_json(held, labels)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: the head cannot be read ({brief(error)}); restore the file or delete it") from error


def _shards(folder: Path) -> dict[str, str] | None:
    """File of each tensor, as the index of a folder has it; None where there is no index."""
    index = folder / INDEX
    if not index.is_file():
        return None
    try:
        shards = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError("model.name", folder, f"{index.name} cannot be read ({brief(error)})") from error
    for file in shards.values():
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\\0"):
            raise UserError("model.name", folder, f"{index.name} names {file!a}, need a .safetensors beside it")
    return shards


def _labels_in_weights(folder: Path) -> int | None:
    """Rows of score.weight in a local folder: num_labels is not serialised, and other exports leave id2label out."""
    shards = _shards(folder)
    file = folder / (WEIGHTS if shards is None else shards.get("score.weight", "absent"))
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as tensors:
            held = "score.weight" in tensors.keys()  # noqa: SIM118 (not a dict)
            return tensors.get_slice("score.weight").get_shape()[0] if held else None
    except SafetensorError as error:
        raise UserError("model.name", folder, f"{file.name} is damaged or cut short ({error})") from error
