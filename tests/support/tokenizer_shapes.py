"""Tokenizers in the shapes that families publish, small, each as the folder of a base model without weights.

What is true to the originals is what decides whether a BOS is added or a token is lost: normalizer, pre-tokenizer,
post-processor, added tokens, the keys of tokenizer_config.json and the special tokens of the chat template. The
vocabulary is bytes (Llama 3, Qwen) or printable ASCII with byte fallback (the sentencepiece families), without merges.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA3 = (
    "{{- bos_token }}{% for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

SHAPES = {
    "llama3": {
        "family": "llama",
        "special": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "template": LLAMA3,
        "config": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": 0, "eos_token": 4},
    },
    "qwen": {
        "family": "qwen3",
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|box_start|>"],
        "template": QWEN,
        "config": {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_bos_token": False,
            "eos_token": 2,
            "pad_token": 0,
            "additional_special_tokens": [1, 2, 3, 4],
        },
    },
    "gemma": {
        "family": "gemma2",
        "special": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        "template": GEMMA,
        "config": {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": 2,
            "eos_token": 1,
            "pad_token": 0,
            "unk_token": 3,
            "additional_special_tokens": [4, 5],
        },
    },
    "mistral": {
        "family": "mistral",
        "special": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        "template": MISTRAL,
        "config": {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": False,
            "bos_token": 1,
            "eos_token": 2,
            "unk_token": 0,
        },
    },
    "phi3": {
        "family": "phi3",
        "special": ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "template": PHI3,
        "config": {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": False,
            "add_eos_token": False,
            "legacy": False,
            "bos_token": 1,
            "eos_token": 3,
            "pad_token": 3,
            "unk_token": 0,
        },
    },
}
"""By name: the family that has it, its special tokens (their ids are their places), and tokenizer_config.json, in which
a number stands for a special token."""


def write_base(folder: Path, name: str) -> Path:
    """Write a shape as a base model's folder holds it; there are no weights."""
    shape = SHAPES[name]
    special = shape["special"]
    folder.mkdir(parents=True)
    (_of_bytes if name in ("llama3", "qwen") else _of_pieces)(name, special).save(str(folder / "tokenizer.json"))
    named = {
        key: special[value] if key.endswith("_token") and type(value) is int else value
        for key, value in shape["config"].items()
    }
    if "additional_special_tokens" in named:
        named["additional_special_tokens"] = [special[i] for i in named["additional_special_tokens"]]
    described = {**named, "chat_template": shape["template"], "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "config.json").write_text(json.dumps({"model_type": shape["family"]}))
    return folder


def _added(special: list[str], **more: bool) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False, **more) for token in special]


def _of_bytes(name: str, special: list[str]) -> Tokenizer:
    """Byte-level BPE. Llama 3 puts a BOS in front, Qwen has none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    built.decoder = decoders.ByteLevel()
    trimmed = processors.ByteLevel(trim_offsets=False)
    if name == "qwen":
        built.normalizer = normalizers.NFC()
        built.post_processor = trimmed
    else:
        built.post_processor = processors.Sequence([trimmed, _begin(special[0], 0)])
    built.add_special_tokens(_added(special))
    return built


def _of_pieces(name: str, special: list[str]) -> Tokenizer:
    """sentencepiece's BPE with byte fallback, as it is converted: a BOS in front, but in Phi-3."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *(chr(c) for c in range(33, 127))]
    vocabulary = {token: i for i, token in enumerate([*special, *pieces])}
    built = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bos = "<bos>" if name == "gemma" else "<s>"
    spaces = normalizers.Replace(" ", "\u2581")
    if name == "gemma":
        built.normalizer = spaces
        built.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif name == "mistral":
        built.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="first", split=False)
    else:
        built.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    built.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    if name != "phi3":
        built.post_processor = _begin(bos, vocabulary[bos])
    built.add_special_tokens(_added(special, rstrip=name == "phi3"))
    return built


def _begin(bos: str, number: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, number)]
    )
