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
from rmkit.model import attention, lora
from rmkit.model.adapter import CONFIG as ADAPTER_CONFIG
from rmkit.model.head import to_json
from rmkit.model.reward_model import RewardModel
from rmkit.storage.atomic import files_below, flush, written_folder

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
"""Keys of tokenizer_config.json that describe how this machine loaded the tokenizer."""

TOLERANCE = 1e-3
"""Largest difference that the self-check allows, relative to the largest expected score (at least 1): far above
round-off between machines, far below the effect of a wrong token, template or rotary base."""

FILE_SIZE = "5GB"
"""Largest size of a file of weights: Hugging Face's default. Each file is written by one rank."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy of the model on the CPU at one moment, which `write` saves while training goes on."""

    weights: dict[str, dict[str, Tensor]]
    """The tensors that this rank writes, by file; those of all ranks are the model"""
    file_of: dict[str, str]
    """The file of every parameter"""
    total: dict[str, int]
    """`total_size` in bytes and `total_parameters`, as the index of Hugging Face's shards has them"""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    contract: dict[str, Any]
    adapter: dict[str, Any] | None = None
    """What adapter_config.json holds, where the weights are those of an adapter"""


def write_model(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, config: TrainConfig, max_length: int, folder: Path
) -> None:
    """Save the model as a classifier that transformers, TRL, OpenRLHF, RewardBench, vLLM and SGLang load as it is.

    Every rank takes part, on a disk that all share; the folder appears whole or not at all. Raises AgreedError where it
    cannot be written. Under LoRA the updates are merged, unless --lora.keep asks for the adapter. Each tensor is
    written in what it is kept in (--model.weights), merged ones in float32.
    """
    keep = config.lora.keep
    taken = snapshot(model, tokenizer, config, max_length, merged=keep != "adapter")
    beside = snapshot(model, tokenizer, config, max_length) if keep == "both" else None
    try:
        with written_folder(folder, all_ranks=True) as partial:
            flush(write(taken, partial))
            if beside is not None:
                flush(write(beside, partial / "adapter"))
    except AgreedError as error:
        raise AgreedError(f"{folder} could not be written ({error}); make room there, then give --resume") from error


def snapshot(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    max_length: int,
    *,
    merged: bool = False,
) -> Snapshot:
    """Score the self-check and copy the weights to the CPU; under LoRA only the adapter's, or all of them `merged`.
    Every rank takes part.

    The model is split into the same files as by Hugging Face, whatever the number of ranks, and one rank writes each
    file. Sharded tensors are gathered on the device one by one, and only the rank that writes a tensor keeps it.
    """
    texts = [render(tokenizer, messages) for messages in SELF_CHECK]
    scores = score_texts(model, tokenizer, texts)
    adapter = None if merged else lora.described(model.classifier)
    updates = lora.updates(model.classifier) if adapter is None else {}
    state = (lora.plain_state if adapter is None else lora.adapter_state)(model.classifier)
    # A sum of weights and updates is float32, and so are the weights beside it.
    kept = {name: torch.promote_types(t.dtype, torch.float32) if updates else t.dtype for name, t in state.items()}
    shapes = {name: torch.empty(t.shape, dtype=kept[name], device="meta") for name, t in state.items()}
    one_file = {"max_shard_size": 2**63, "filename_pattern": "adapter_model{suffix}.safetensors"}
    split = split_torch_state_dict_into_shards(
        shapes, **({"max_shard_size": FILE_SIZE} if adapter is None else one_file)
    )
    weights: dict[str, dict[str, Tensor]] = {
        file: {} for i, file in enumerate(split.filename_to_tensors) if i % ranks() == rank()
    }
    for name, tensor in state.items():
        full = gathered(tensor.detach())
        if (update := updates.get(name)) is not None:
            full = update.added(full, gathered(update.down), gathered(update.up))
        if split.tensor_to_filename[name] in weights:
            weights[split.tensor_to_filename[name]][name] = full.to("cpu", kept[name], copy=True).contiguous()
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
            "head": to_json(model.head),
            "self_check": {"texts": texts, "scores": scores},
        },
        adapter=adapter,
    )


def _described(model: RewardModel) -> PretrainedConfig:
    """The model's configuration, completed as `save_pretrained` of transformers does."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model.classifier).__name__]
    # Weights that are kept in bf16 are written in it, the head beside them in float32: who reads them all in float32,
    # as transformers does by this, gets the scores of the self-check.
    config.dtype = torch.promote_types(model.classifier.dtype, torch.float32)
    return config


def write(taken: Snapshot, folder: Path) -> list[Path]:
    """Write this rank's part of a model into `folder`; the paths of the files."""
    folder.mkdir(exist_ok=True)
    files = []
    for name, tensors in taken.weights.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
        files.append(folder / name)
    if rank() == 0:
        files += _write_rest(taken, folder)
    return files


def _write_rest(taken: Snapshot, folder: Path) -> list[Path]:
    """Write everything but the weights; the paths of the files."""
    if len(set(taken.file_of.values())) > 1:
        index = {"metadata": taken.total, "weight_map": taken.file_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    taken.tokenizer.save_pretrained(folder)
    if taken.adapter is None:
        _write_config(taken, folder)
    else:
        (folder / ADAPTER_CONFIG).write_text(json.dumps(taken.adapter, indent=2) + "\n")
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


def _write_config(taken: Snapshot, folder: Path) -> None:
    """Write config.json, which every reader of a whole classifier needs."""
    taken.config.save_pretrained(folder)
    # transformers leaves out its default of two labels, which other readers do not know.
    labels = taken.contract["head"]["labels"]
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    _amend(folder / "config.json", lambda old: _both_spellings({**old, **named}))


def _amend(file: Path, change: Callable[[dict], dict]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text())), indent=2) + "\n")


def _both_spellings(values: dict[str, Any]) -> dict[str, Any]:
    """Add the keys of transformers 4 to those of 5: without them, 4 silently takes a rope_theta of 10000."""
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
    """rope_scaling as transformers 4 spells it: None where the frequencies are not scaled."""
    plain = rope.get("rope_type", "default") == "default"
    return None if plain else {key: value for key, value in rope.items() if key != "rope_theta"}


def verify(model: RewardModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str | None:
    """Check a loaded model against the contract in its folder; the result in words, or None where there is no contract.

    Raises ValueError where the chat template or the scores differ: the weights or the tokenizer have changed, or a
    library reads them differently.
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
    scores = score_texts(model, tokenizer, texts)
    limit = TOLERANCE * max(1.0, *map(abs, expected))
    gaps = [abs(a - b) for a, b in zip(scores, expected, strict=False)]
    # Not by max(): it drops a NaN that comes later.
    if len(scores) != len(expected) or not all(gap <= limit for gap in gaps):
        raise ValueError(
            f"{file}: the self-check failed. Expected scores {_short(expected)}, got {_short(scores)}: the weights, "
            "the tokenizer or the library that reads them have changed since the folder was written"
        )
    return f"self-check of {folder}: {len(texts)} scores agree to {max(gaps):.1e}"


def _short(scores: list[float]) -> str:
    return "[" + ", ".join(f"{s:.5g}" for s in scores) + "]"


def score_texts(model: RewardModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[float]:
    """Rewards of rendered texts in float32 arithmetic, in one batch of the model's own layout."""
    sequences = [np.array(ids) for ids in encode(tokenizer, texts)]
    layout = "trie" if model.config._attn_implementation == attention.NAME else "padded"
    batch = pack(sequences, layout=layout, pad_token_id=tokenizer.pad_token_id).to(model.device)
    with in_float32(model), torch.no_grad():
        return model.head.rewards(model(batch)).tolist()
