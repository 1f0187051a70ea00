"""Model folders by configuration alone, weights drawn at random; and pairs with the lengths of real ones."""

import json
import random
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from label_bench import SPREAD, save_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

# As their config.json on the hub has them.
MODELS = {
    "0.6b": ("qwen3", "Qwen3-0.6B", 151936, 1024, 3072, 28, 16, 8, 128, True, 1e6),
    "1b": ("llama", "Llama-3.2-1B", 128256, 2048, 8192, 16, 32, 8, 64, True, 5e5),
    "8b": ("llama", "Llama-3-8B", 128256, 4096, 14336, 32, 32, 8, 128, False, 5e5),
}
"""Family, name, vocabulary, hidden, intermediate, layers, heads, key heads, head size, tied embeddings, rope theta"""
LENGTHS = (256, 350, 350)
"""Mean tokens of prompt, chosen and rejected"""
WIDEN = 20
"""--tiny divides lengths by this"""


def config_of(model: str, tiny: bool) -> PretrainedConfig:
    family, _, vocabulary, hidden, inner, layers, heads, kv, dim, tied, theta = MODELS[model]
    if tiny:
        vocabulary, hidden, inner, layers, heads, kv, dim = 8192, 32, 64, 3, 2, 1, 16
    return AutoConfig.for_model(
        family,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=dim,
        max_position_embeddings=8192,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        num_labels=1,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )


def save_model(model: str, folder: Path, tiny: bool) -> None:
    """A bf16 sequence classifier and a tokenizer of a word a token, as label_bench has it."""
    torch.manual_seed(0)
    # 8 billion numbers are drawn in a second on the card, in a minute off it.
    with torch.device("cpu" if tiny else "cuda"):
        classifier = AutoModelForSequenceClassification.from_config(config_of(model, tiny), dtype=torch.bfloat16)
    classifier.save_pretrained(folder)
    save_tokenizer(folder)


def scratch(model: str, tiny: bool) -> AbstractContextManager[str]:
    """A folder for the weights that is gone afterwards: in memory where the machine has a disk in memory with room for
    them, for 16 GB take a slow disk minutes."""
    memory = Path("/dev/shm")
    room = shutil.disk_usage(memory).free if memory.is_dir() else 0
    needed = 0 if tiny else 3 * _parameters(model)
    return tempfile.TemporaryDirectory(prefix="first_contact_", dir=memory if room > needed > 0 else None)


def _parameters(model: str) -> int:
    with torch.device("meta"):
        made = AutoModelForSequenceClassification.from_config(config_of(model, False))
    return sum(p.numel() for p in made.parameters())


def write_pairs(file: Path, pairs: int, steps: int, tiny: bool) -> None:
    """`pairs` preferences for each of `steps` steps, in order: the same lengths in every step, in other company and a
    little shorter from step to step, so that no step has the shapes of another."""
    rng = random.Random(0)
    bell = NormalDist(-(SPREAD**2) / 2, SPREAD)
    spread = [float(np.exp(bell.inv_cdf((i + 0.5) / pairs))) for i in range(pairs)]

    def turns(role: str, length: float) -> list[dict]:
        words = max(1, round(length / WIDEN if tiny else length))
        return [{"role": role, "content": " ".join(f"w{rng.randrange(4, 8192)}" for _ in range(words))}]

    with file.open("w", encoding="utf-8") as out:
        for step in range(steps):
            columns = [rng.sample(spread, pairs) for _ in LENGTHS]
            for scales in zip(*columns, strict=True):
                size = [mean * scale * (1 - 0.01 * step) for mean, scale in zip(LENGTHS, scales, strict=True)]
                row = {"prompt": turns("user", size[0])}
                row |= {"chosen": turns("assistant", size[1]), "rejected": turns("assistant", size[2])}
                out.write(json.dumps(row) + "\n")
