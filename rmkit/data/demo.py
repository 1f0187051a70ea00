"""The embedded default: preferences, tokenizer and model that need no network, for a first run in two minutes.

The rule is "answer with the letters reversed". A rejected answer holds the same letters in another order, so neither
its length nor its letters tell which answer is preferred: the model has to read prompt and response together. Each
prompt has three wrong answers; the held-out prompts are never seen in training.
"""

import random
from collections.abc import Iterator
from typing import Literal

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rmkit.data.forms import LABELS

LETTERS = "abcdefghijkl"
TRAIN_PROMPTS, TEST_PROMPTS = 26000, 300
WRONG_ANSWERS = 3
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% else %}{{ eos_token }}{% endif %}"
)


def preferences(split: Literal["train", "test"]) -> Iterator[dict]:
    """Normalised preferences of a split. They are the same on every machine and for every --seed."""
    rng = random.Random("rmkit reverse")
    seen: set[str] = set()
    while len(seen) < TRAIN_PROMPTS + TEST_PROMPTS:
        letters = "".join(rng.sample(LETTERS, rng.randint(4, 6)))
        wrong: set[str] = set()
        while len(wrong) < WRONG_ANSWERS:
            shuffled = "".join(rng.sample(letters, len(letters)))
            if shuffled != letters[::-1]:
                wrong.add(shuffled)
        if letters in seen:
            continue
        seen.add(letters)
        if (len(seen) <= TEST_PROMPTS) == (split == "test"):
            for i, answer in enumerate(sorted(wrong)):
                yield _preference(letters, answer, f"{letters}-{i}")


def _preference(letters: str, wrong: str, name: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": f"reverse {letters}"}],
        "chosen": [{"role": "assistant", "content": letters[::-1]}],
        "rejected": [{"role": "assistant", "content": wrong}],
        **{column: label.default for column, label in LABELS.items()},
        "ratings": None,
        "compared": 1.0,
        "subset": f"{len(letters)} letters",
        "id": name,
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each printable ASCII character, and a chat template."""
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    fast = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    fast.decoder = Fuse()
    built = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=["<user>", "<assistant>"],
        model_max_length=256,
    )
    built.chat_template = TEMPLATE
    return built


def model_config() -> LlamaConfig:
    """A Llama of 0.45 million parameters. From the usual initial weights (0.02) it learns minutes later."""
    return LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
