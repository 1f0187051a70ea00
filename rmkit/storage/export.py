"""FINAL/ and every other saved model: an ordinary Hugging Face sequence classifier, with its contract beside it.

safetensors only, chat template inline, both transformers 4 and 5 spellings in config.json. `rmkit.json` holds the
tokenisation contract (template, end-token rule, BOS rule, lengths) and a self-check, a few texts with their scores,
that every later load verifies, and that `python -m rmkit.check` sends to a running server.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

import rmkit
from rmkit.config import TrainConfig
from rmkit.data.tokenizer import default_template
from rmkit.distributed.collectives import rank, ranks
from rmkit.distributed.sharding import gathered, put_whole
from rmkit.errors import AgreedError
from rmkit.model import family, lora, quantised
from rmkit.model.adapter import CONFIG as ADAPTER_CONFIG
from rmkit.model.head import Head, from_json, plain_head, to_json
from rmkit.model.reward_model import RewardModel
from rmkit.storage import host, trust
from rmkit.storage.atomic import files_below, flush, written_folder
from rmkit.storage.card import Card
from rmkit.storage.card import text as text_of_card
from rmkit.storage.self_check import self_check
from rmkit.storage.trust import Trust

HOW_IT_WAS_LOADED = ("is_local", "local_files_only")
"""Keys of tokenizer_config.json that describe how this machine loaded the tokenizer."""

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
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    max_length: int,
    folder: Path,
    card: Card | None = None,
    worth: Trust | None = None,
) -> None:
    """Save the model as an ordinary classifier, with its card and what its scores are worth.
    bench/results/interop.json says which readers were run.

    Every rank takes part, on a disk that all share; the folder appears whole or not at all. Raises AgreedError where it
    cannot be written. Under LoRA the updates are merged, unless --lora.keep asks for the adapter. The reward's row of a
    binary head is all that is saved of it, unless --save.binary-head says keep. Each tensor is written as --save.dtype
    says, under auto in what it is kept in (--model.weights; merged ones in float32) unless the arithmetic is bf16.
    Where that rounds the weights, those of `model` are rounded too: this is the end of a training.
    """
    keep, asked = config.lora.keep, config.save.dtype
    head = plain_head(1) if model.head == plain_head(2) and config.save.binary_head == "fold" else model.head
    rounded = asked == "bf16" or (asked == "auto" and model.bf16)
    dtype = torch.bfloat16 if rounded else torch.float32 if asked == "fp32" else None
    # The adapter first, from weights that are not rounded yet.
    beside = snapshot(model, tokenizer, config, max_length, head=head) if keep == "both" else None
    if keep == "adapter":
        taken = snapshot(model, tokenizer, config, max_length, head=head)
    else:
        taken = snapshot(model, tokenizer, config, max_length, head=head, merged=True, dtype=dtype)
    try:
        with written_folder(folder, all_ranks=True) as partial:
            flush(write(taken, partial))
            if worth is not None and rank() == 0:
                flush(_write_trust(worth, taken, partial))
            if card is not None and rank() == 0:
                made = worth is not None and worth.posterior is not None
                posterior = (partial / trust.FILE).stat().st_size if made else None
                (partial / "README.md").write_text(_card(card, taken, posterior), encoding="utf-8")
                flush([partial / "README.md"])
            if beside is not None:
                flush(write(beside, partial / "adapter"))
                if worth is not None and rank() == 0:
                    flush(_write_trust(worth, beside, partial / "adapter"))
    except AgreedError as error:
        raise AgreedError(f"{folder} could not be written ({error}); make room there, then give --resume") from error


def _write_trust(worth: Trust, taken: Snapshot, folder: Path) -> list[Path]:
    """Write what the scores are worth beside a model; the paths of the files."""
    files = trust.save(worth, folder)
    if worth.posterior is not None and taken.adapter is None:
        # Without an index vLLM and SGLang take every .safetensors of a folder for weights of the model
        # (filter_duplicate_safetensors_files in vllm/model_executor/model_loader/weight_utils.py).
        files.append(_write_index(taken, folder))
    return files


def _write_index(taken: Snapshot, folder: Path) -> Path:
    """Write which file holds which tensor."""
    index = {"metadata": taken.total, "weight_map": taken.file_of}
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(index, indent=2) + "\n")
    return file


def _card(card: Card, taken: Snapshot, posterior: int | None) -> str:
    contract = taken.contract
    return text_of_card(
        card,
        model_type=taken.config.model_type,
        dtype=str(taken.config.dtype).removeprefix("torch."),
        row=from_json(contract["head"], len(contract["head"]["labels"])).row,
        max_length=contract["max_length"],
        labels=len(contract["head"]["labels"]),
        adapter=taken.adapter and str(taken.adapter["base_model_name_or_path"]),
        posterior=posterior,
    )


def snapshot(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    max_length: int,
    *,
    merged: bool = False,
    head: Head | None = None,
    dtype: torch.dtype | None = None,
) -> Snapshot:
    """Score the self-check and copy the weights to the CPU; under LoRA only the adapter's, or all of them `merged`.
    Every rank takes part.

    The model is split into the same files as by Hugging Face, whatever the number of ranks, and one rank writes each
    file. Sharded tensors are gathered on the device one by one, and only the rank that writes a tensor keeps it.
    `head` is given of a FINAL: of one label in place of the model's own two it keeps the reward's row, and the
    self-check gets what `rmkit.check` compares with. `dtype` is what the weights are written in (None: as they are
    kept); with bfloat16 the model becomes what is saved, rounded, so that the self-check has the scores of that.
    """
    bf16 = dtype == torch.bfloat16
    final, head = head is not None, head or model.head
    check = self_check(model, tokenizer, variants=final)
    adapter = None if merged else lora.described(model.classifier)
    updates = lora.updates(model.classifier) if adapter is None else {}
    state = (lora.plain_state if adapter is None else lora.adapter_state)(model.classifier)
    if not model.tested:
        state = _as_saved(model, bf16)
    row = model.head.row if len(head.labels) < len(model.head.labels) else None
    # A sum of weights and updates is float32, and so are the weights beside it.
    beside = torch.float32 if updates else None
    shapes = {
        name: _saved(name, torch.empty(t.shape, dtype=t.dtype, device="meta"), row, dtype or beside)
        for name, t in state.items()
    }
    one_file = {"max_shard_size": 2**63, "filename_pattern": "adapter_model{suffix}.safetensors"}
    split = split_torch_state_dict_into_shards(
        shapes, **({"max_shard_size": FILE_SIZE} if adapter is None else one_file)
    )
    weights: dict[str, dict[str, Tensor]] = {
        file: {} for i, file in enumerate(split.filename_to_tensors) if i % ranks() == rank()
    }
    for name, tensor in state.items():
        full = _gathered(tensor.detach(), updates.get(name), bf16)
        if split.tensor_to_filename[name] in weights:
            weights[split.tensor_to_filename[name]][name] = host.copied(_saved(name, full, row, dtype or beside))
    host.wait()
    if bf16:
        check = self_check(model, tokenizer, variants=final)
    if row is not None:
        del check["by_label"]  # nobody can read what is not saved
    total = {
        "total_size": sum(t.nbytes for t in shapes.values()),
        "total_parameters": sum(t.numel() for t in shapes.values()),
    }
    return Snapshot(
        weights=weights,
        file_of=split.tensor_to_filename,
        total=total,
        config=_described(model, head, bf16),
        tokenizer=tokenizer,
        contract={
            "rmkit": rmkit.__version__,
            "chat_template": default_template(tokenizer),
            "messages": "whole: the template gets every field of a message, tools and chat_template_kwargs",
            "add_special_tokens": False,
            "end_token": "the last token of the rendered text",
            "bos": "as the chat template renders it; none is added",
            "max_length": max_length,
            "overlong": config.data.overlong,
            "head": to_json(head),
            "self_check": check,
            **({"load": "4bit"} if quantised.is_4bit(model.classifier) else {}),
        },
        adapter=adapter,
    )


def _as_saved(model: RewardModel, bf16: bool) -> dict[str, Tensor]:
    """The state of a family that is never sharded, under the names of its checkpoints; with `bf16` the model's own
    parameters are rounded first, for what is written may be copies of their parts."""
    if bf16:
        with torch.no_grad():
            for parameter in model.classifier.parameters():
                parameter.copy_(parameter.to(torch.bfloat16))
    return family.as_saved(model.classifier, model.classifier.state_dict())


def _gathered(tensor: Tensor, update: lora.Update | None, bf16: bool) -> Tensor:
    """The whole tensor with its update; with `bf16` rounded, and then the model's own is that, and the update zero."""
    full = gathered(tensor)
    if update is not None:
        full = update.added(full, gathered(update.down), gathered(update.up))
    if bf16 and full.is_floating_point():
        full = full.to(torch.bfloat16)
        put_whole(tensor, full)
        if update is not None:
            update.up.zero_()
    return full


def _saved(name: str, full: Tensor, row: int | None, dtype: torch.dtype | None) -> Tensor:
    """A tensor of the model as it is saved: in `dtype`; of the head's rows only `row`; unless these are None."""
    if row is not None and name.endswith("score.weight"):
        full = full[row : row + 1]
    return full.to(dtype) if dtype is not None and full.is_floating_point() else full


def _described(model: RewardModel, head: Head, bf16: bool) -> PretrainedConfig:
    """The model's configuration, completed as `save_pretrained` of transformers does."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model.classifier).__name__]
    # Weights that are kept in bf16 are written in it, the head beside them in float32: who reads them all in float32,
    # as transformers does by this, gets the scores of the self-check.
    config.dtype = torch.bfloat16 if bf16 else torch.promote_types(model.classifier.dtype, torch.float32)
    if len(head.labels) != config.num_labels:
        config.num_labels = len(head.labels)
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
        _write_index(taken, folder)
    taken.tokenizer.save_pretrained(folder)
    if taken.adapter is None:
        _write_config(taken, folder)
    else:
        (folder / ADAPTER_CONFIG).write_text(json.dumps(taken.adapter, indent=2) + "\n")
    amend(folder / "tokenizer_config.json", lambda old: _for_every_reader(old, taken.contract["chat_template"]))
    (folder / "rmkit.json").write_text(json.dumps(taken.contract, indent=2) + "\n")
    # The other ranks may be writing their weights by now.
    return [file for file in files_below(folder) if file.suffix != ".safetensors"]


def _write_config(taken: Snapshot, folder: Path) -> None:
    """Write config.json, which every reader of a whole classifier needs."""
    taken.config.save_pretrained(folder)
    # transformers leaves out its default of two labels, which other readers do not know.
    labels = taken.contract["head"]["labels"]
    amend(folder / "config.json", lambda old: both_spellings(with_labels(old, labels)))


def with_labels(values: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """A config.json with the names of all labels, whatever their number."""
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return {**values, **named}


def _for_every_reader(old: dict[str, Any], template: str) -> dict[str, Any]:
    """tokenizer_config.json as transformers 4 and 5 both read it, and as neither adds a BOS or EOS of its own.

    4 does not know the class name that 5 writes, reads the template inline only, and takes `extra_special_tokens` for a
    dict of named tokens: the list of 5 stops it. 5 reads the older name of that list too.
    """
    kept = {key: value for key, value in old.items() if key not in HOW_IT_WAS_LOADED}
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    return {
        **kept,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "add_bos_token": False,
        "add_eos_token": False,
        "chat_template": template,
    }


def amend(file: Path, change: Callable[[dict], dict]) -> None:
    """Rewrite a JSON file of one object as `change` says."""
    file.write_text(json.dumps(change(json.loads(file.read_text())), indent=2) + "\n")


def both_spellings(values: dict[str, Any]) -> dict[str, Any]:
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
