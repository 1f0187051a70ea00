"""FINAL/ and every other saved model: an ordinary Hugging Face sequence classifier, with its contract beside it.

safetensors only, chat template inline, both transformers 4 and 5 spellings in config.json. `rmkit.json` holds the
tokenisation contract (template, end-token rule, BOS rule, lengths) and a self-check, a few texts with their scores,
that every later load verifies.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

import rmkit
from rmkit.batch.trie import pack
from rmkit.config import TrainConfig
from rmkit.data.fields import entries, text
from rmkit.data.tokenizer import default_template, encode, render
from rmkit.distributed.collectives import rank, ranks
from rmkit.distributed.sharding import gathered, in_float32
from rmkit.errors import AgreedError
from rmkit.model import attention
from rmkit.model.reward_model import RewardModel, score_index
from rmkit.storage.atomic import files_below, flush, written_together

SELF_CHECK = (
    [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "Four."}],
    [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "I would rather not say."}],
    [
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Danube."},
        {"role": "user", "content": "And a mountain, please?"},
        {"role": "assistant", "content": "Mont Blanc \u2014 4,806 m."},
    ],
)
"""Conversations whose scores are written into every saved folder: a shared prompt, several turns, non-ASCII."""

HOW_IT_WAS_LOADED = ("is_local", "local_files_only")
"""What transformers writes into tokenizer_config.json about the machine that it read the tokenizer on."""

TOLERANCE = 1e-3
"""Of the self-check, relative to the largest expected score (at least 1): far above round-off between machines, far
below what a wrong token, template or rotary base does."""

FILE_SIZE = "5GB"
"""Of one file of weights, at most: Hugging Face's own measure, and what one rank writes without a break."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A model as it is at one moment, on the CPU, while training goes on: what `write` makes a folder of."""

    weights: dict[str, dict[str, Tensor]]
    """By file, the tensors that this rank writes; all ranks' together are the model"""
    file_of: dict[str, str]
    """The file of every parameter"""
    total: dict[str, int]
    """`total_size` in bytes and `total_parameters`, as the index of Hugging Face's shards has them"""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    contract: dict[str, Any]


def write_model(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, config: TrainConfig, max_length: int, folder: Path
) -> None:
    """Make `folder` a classifier that transformers, TRL, OpenRLHF, RewardBench, vLLM and SGLang read as it is.

    Every rank takes part, on a disk that all share; the folder appears whole or not at all. Raises AgreedError where it
    cannot be written.
    """
    taken = snapshot(model, tokenizer, config, max_length)
    try:
        written_together(folder, lambda partial: flush(write(taken, partial)))
    except AgreedError as error:
        raise AgreedError(f"{folder} could not be written ({error}); make room there, then give --resume") from error


def snapshot(model: RewardModel, tokenizer: PreTrainedTokenizerBase, config: TrainConfig, max_length: int) -> Snapshot:
    """Score the self-check and copy the weights to the CPU. Every rank takes part.

    The files are those into which Hugging Face splits the model, whatever the number of ranks, and each is one rank's:
    a sharded tensor is gathered on the device, the next one after it, and only the rank that writes it keeps it.
    """
    texts = [render(tokenizer, messages) for messages in SELF_CHECK]
    scores = score_texts(model, tokenizer, texts)
    state = model.classifier.state_dict()
    shapes = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in state.items()}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=FILE_SIZE)
    weights: dict[str, dict[str, Tensor]] = {
        file: {} for i, file in enumerate(split.filename_to_tensors) if i % ranks() == rank()
    }
    for name, tensor in state.items():
        full = gathered(tensor.detach())
        if split.tensor_to_filename[name] in weights:
            weights[split.tensor_to_filename[name]][name] = full.to("cpu", copy=True).contiguous()
    total = {
        "total_size": sum(t.nbytes for t in shapes.values()),
        "total_parameters": sum(t.numel() for t in shapes.values()),
    }
    return Snapshot(
        weights=weights,
        file_of=split.tensor_to_filename,
        total=total,
        config=_described(model),
        tokenizer=tokenizer,
        contract={
            "rmkit": rmkit.__version__,
            "chat_template": default_template(tokenizer),
            "add_special_tokens": False,
            "end_token": "the last token of the rendered text",
            "bos": "as the chat template renders it; none is added",
            "max_length": max_length,
            "overlong": config.data.overlong,
            "score_index": score_index(model.config),
            "self_check": {"texts": texts, "scores": scores},
        },
    )


def _described(model: RewardModel) -> PretrainedConfig:
    """The configuration as transformers' own `save_pretrained` completes it."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model.classifier).__name__]
    config.dtype = model.classifier.dtype
    return config


def write(taken: Snapshot, folder: Path) -> list[Path]:
    """Write this rank's part of a model into `folder`; the files."""
    files = []
    for name, tensors in taken.weights.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
        files.append(folder / name)
    if rank() == 0:
        files += _write_rest(taken, folder)
    return files


def _write_rest(taken: Snapshot, folder: Path) -> list[Path]:
    """Everything beside the weights."""
    if len(set(taken.file_of.values())) > 1:
        index = {"metadata": taken.total, "weight_map": taken.file_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    taken.config.save_pretrained(folder)
    taken.tokenizer.save_pretrained(folder)
    # transformers leaves out its default of two labels, which other readers do not know.
    labels = [f"LABEL_{i}" for i in range(taken.config.num_labels)]
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    _amend(folder / "config.json", lambda old: _both_spellings({**old, **named}))
    # transformers 4 does not know the class name that transformers 5 writes, and reads the template inline only.
    _amend(
        folder / "tokenizer_config.json",
        lambda old: {
            **{key: value for key, value in old.items() if key not in HOW_IT_WAS_LOADED},
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "chat_template": taken.contract["chat_template"],
        },
    )
    (folder / "rmkit.json").write_text(json.dumps(taken.contract, indent=2) + "\n")
    # The other ranks may be writing their weights by now.
    return [file for file in files_below(folder) if file.suffix != ".safetensors"]


def _amend(file: Path, change: Callable[[dict], dict]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text())), indent=2) + "\n")


def _both_spellings(values: dict[str, Any]) -> dict[str, Any]:
    """transformers 4 and 5 each read their own keys; without the old ones 4 takes rope_theta 10000 in silence."""
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        values.setdefault("rope_theta", rope["rope_theta"])
        values.setdefault("rope_scaling", _scaling(rope))
    elif isinstance(rope, dict) and "full_attention" in rope:  # one set a layer type, as Gemma 3 has it
        full = rope["full_attention"]
        values.setdefault("rope_theta", full.get("rope_theta"))
        values.setdefault("rope_scaling", _scaling(full))
        values.setdefault("rope_local_base_freq", rope.get("sliding_attention", {}).get("rope_theta"))
    if "dtype" in values:
        values.setdefault("torch_dtype", values["dtype"])
    return values


def _scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    """rope_scaling as transformers 4 spells it: nothing where the frequencies are the plain ones."""
    plain = rope.get("rope_type", "default") == "default"
    return None if plain else {key: value for key, value in rope.items() if key != "rope_theta"}


def verify(model: RewardModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str | None:
    """Check a loaded model against the contract in its folder; what was found, or None where there is none.

    Raises ValueError where the chat template or the scores differ: other weights, another tokenizer, or a library that
    reads them otherwise.
    """
    file = folder / "rmkit.json"
    if not file.is_file():
        return None
    try:
        contract = json.loads(file.read_text())
        template = contract["chat_template"]
        texts = [text(given, "texts") for given in entries(contract["self_check"]["texts"], "texts")]
        expected = [float(s) for s in contract["self_check"]["scores"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: the self-check cannot be read ({error}); restore the file or delete it") from error
    if template != default_template(tokenizer):
        raise ValueError(f"{file}: the tokenizer's chat template is not the one that the model was trained with")
    found = score_texts(model, tokenizer, texts)
    limit = TOLERANCE * max(1.0, *map(abs, expected))
    gaps = [abs(a - b) for a, b in zip(found, expected, strict=False)]
    # Not by max(): it drops a NaN that comes later.
    if len(found) != len(expected) or not all(gap <= limit for gap in gaps):
        raise ValueError(
            f"{file}: the self-check failed. Expected scores {_short(expected)}, got {_short(found)}: the weights, the "
            "tokenizer or the library that reads them have changed since the folder was written"
        )
    return f"self-check of {folder}: {len(texts)} scores agree to {max(gaps):.1e}"


def _short(scores: list[float]) -> str:
    return "[" + ", ".join(f"{s:.5g}" for s in scores) + "]"


def score_texts(model: RewardModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[float]:
    """Scores of rendered texts in float32 arithmetic, in one batch of the model's own layout."""
    sequences = [np.array(ids) for ids in encode(tokenizer, texts)]
    layout = "trie" if model.config._attn_implementation == attention.NAME else "padded"
    batch = pack(sequences, layout=layout, pad_token_id=tokenizer.pad_token_id).to(model.device)
    with in_float32(model), torch.no_grad():
        return model(batch)[1].tolist()
