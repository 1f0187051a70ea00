"""What stands in for a tokenizer where only tokens are counted, and there is none: a guess of one for every 4 bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from rmkit.data.tokenizer import DEFAULT_TEMPLATE

BYTES = 4
"""Bytes a token. Of English text the vocabularies of today's models make about that many."""
FILES = ("tokenizer*", "vocab*", "merges.txt", "spiece*", "sentencepiece*", "*.tiktoken", "tekken.json")
"""Names of what a tokenizer is loaded from"""


def no_tokenizer_in(name: str) -> bool:
    """Whether `name` is a folder on this disk that holds no file of a tokenizer."""
    return Path(name).is_dir() and not any(next(Path(name).glob(pattern), None) for pattern in FILES)


class Guess(PreTrainedTokenizerFast):
    """Encodes and renders, no more. Each 4 bytes are a token, so that texts which begin alike share tokens."""

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        padded = [(b := text.encode("utf-8", "replace")) + bytes(-len(b) % BYTES) for text in texts]
        return {"input_ids": [(np.frombuffer(b, "<u4") & 0x7FFFFFFF).tolist() for b in padded]}


def guess() -> Guess:
    """The stand-in, which renders as a base model without a template does."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<no tokenizer, only a guess>"}
    vocabulary = {token: i for i, token in enumerate(special.values())}
    return Guess(tokenizer_object=Tokenizer(WordLevel(vocabulary)), chat_template=DEFAULT_TEMPLATE, **special)
