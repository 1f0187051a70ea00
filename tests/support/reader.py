"""Read a saved folder with whatever transformers this Python has, and print what it gives: JSON on one line.

    python tests/support/reader.py FOLDER..

For each: the ids of the self-check's texts with and without special tokens, and of its messages; the scores of one
padded batch of texts; and one by one, as the tokenizer's defaults have them. Imports nothing of rmkit's.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def read(folder: str) -> dict:
    check = json.loads((Path(folder) / "rmkit.json").read_text())["self_check"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, torch_dtype=torch.float32)
    model.eval()
    texts = check["texts"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    rendered = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in check["messages"]]
    with torch.no_grad():
        padded = model(**batch).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in rendered])
    return {
        "ids": tokenizer(texts)["input_ids"],
        "plain_ids": tokenizer(texts, add_special_tokens=False)["input_ids"],
        "message_ids": tokenizer(rendered, add_special_tokens=False)["input_ids"],
        "padded": padded.tolist(),
        "alone": alone.tolist(),
        "class": type(tokenizer).__name__,
    }


def main(folders: list[str]) -> dict:
    found = {"transformers": transformers.__version__, "torch": torch.__version__, "folders": {}}
    for folder in folders:
        try:
            found["folders"][folder] = read(folder)
        except Exception as error:  # whatever a version says is what we want to know
            found["folders"][folder] = {"error": f"{type(error).__name__}: {error}"}
    return found


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    print(json.dumps(main(sys.argv[1:])))
