"""inspect.html as text: the tables, and the suspects side by side with what differs marked."""

import difflib
import json
import re
from typing import Any

from rmkit.inspection import report
from rmkit.inspection.facts import Row, text_of
from rmkit.pages.frame import environment

SHOWN = 100
"""Suspects on the page, the worst; suspects.jsonl has all"""
PROMPT = 1500
"""Characters of a prompt that are shown, the last ones"""
ANSWER = 600
"""Words of an answer that are compared and shown: the time of a comparison grows with their square"""
_PIECES = re.compile(r"\s+|\w+|[^\w\s]")

_ENVIRONMENT = environment("rmkit.inspection")


def page(found: dict[str, Any], suspects: list[Row]) -> str:
    """inspect.html, from what inspect.json and suspects.jsonl hold."""
    return _ENVIRONMENT.get_template("inspect.html.jinja").render(
        data=", ".join(found["data"]),
        test=", ".join(found["test"]),
        model=found["model"] or "",
        judged=found["suspects"] is not None,
        key_figures=report.key_figures(found),
        stands_out=list(report.stands_out(found)),
        heads=report.TABLES,
        tables=report.tables(found),
        examples=_examples(found),
        suspects=[_suspect(row) for row in suspects[:SHOWN]],
        total=len(suspects),
        notes=found["notes"],
        environment=json.dumps(found["environment"]),
    )


def _examples(found: dict[str, Any]) -> dict[str, list[str]]:
    """Places of pairs by what is the matter with them."""
    duplicates, shared = found["duplicates"], found["shared"]
    examples = {
        "repeated": duplicates["repeated"]["examples"],
        "contradictory": duplicates["contradictory"]["examples"],
        "on a cycle, each preferred to the next": duplicates["cycles"]["examples"],
        "in test and in training": shared["examples"] if shared else [],
    }
    if near := shared and shared["near"]:
        examples |= {
            "near: prompts of test that are nearly one of training": near["examples"],
            "near: answers of test that are one of training, or nearly": near["answer_examples"],
        }
    return {name: places for name, places in examples.items() if places}


def _suspect(row: Row) -> dict[str, Any]:
    prompt = "\n\n".join(f"{message['role']}: {message['content'] or ''}" for message in row["prompt"])
    chosen, rejected = marked(text_of(row["chosen"]), text_of(row["rejected"]))
    return {
        "source": row["source"],
        "subset": row.get("subset", ""),
        "probability": f"{row['probability']:.3f}",
        "label_is_right": f"{row['label_is_right']:.0%}",
        "prompt": prompt if len(prompt) <= PROMPT else "[...] " + prompt[-PROMPT:],
        "sides": [{"name": "chosen", "pieces": chosen}, {"name": "rejected", "pieces": rejected}],
    }


def marked(a: str, b: str) -> tuple[list[tuple[bool, str]], list[tuple[bool, str]]]:
    """Two texts in pieces, each with whether it differs from the other text, word by word; long texts are cut."""
    words = [_PIECES.findall(text) for text in (a, b)]
    cut = [found[: 2 * ANSWER] for found in words]
    pieces: tuple[list, list] = ([], [])
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, *cut, autojunk=False).get_opcodes():
        for side, text in zip(pieces, ("".join(cut[0][a0:a1]), "".join(cut[1][b0:b1])), strict=True):
            if text:
                side.append((kind != "equal", text))
    for side, whole, kept in zip(pieces, words, cut, strict=True):
        if len(whole) > len(kept):
            side.append((False, " [...]"))
    return pieces
