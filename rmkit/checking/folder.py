"""The doors of a folder: rmkit itself, and what transformers alone makes of text, ids and messages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmkit.errors import UserError, brief
from rmkit.model.family import layout_of
from rmkit.model.pretrained import load_config
from rmkit.scorer import load_scorer


def rows_of(folder: Path, given: dict[str, list[Any]], say: Callable[[str], None]) -> dict[str, list[list[float]]]:
    """Scores by door, in float32: those of rmkit's own loading, and each text alone through transformers with its
    defaults. Raises UserError where one of them cannot load the folder."""
    layout = layout_of(load_config(str(folder)))
    # Its self-check is verified.
    scorer = load_scorer(folder, device=torch.device("cpu"), layout=layout, precision="fp32", say=say)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    except Exception as error:  # whatever a library says of a folder that it cannot read
        raise UserError("target", folder, f"transformers cannot load it ({brief(error)})") from error

    def scored(ids: list[int]) -> list[float]:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].tolist()

    found = {}
    if "messages" in given:
        found["rmkit"] = [[score] for score in scorer.score(given["messages"])]
        rendered = [tokenizer.apply_chat_template(each, tokenize=False) for each in given["messages"]]
        found["messages"] = [scored(ids) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"]]
    found["text"] = [scored(ids) for ids in tokenizer(given["text"])["input_ids"]]
    if "ids" in given:
        found["ids"] = [scored(ids) for ids in given["ids"]]
    return found
