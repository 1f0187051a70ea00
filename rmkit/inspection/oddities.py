"""What is odd about one pair, seen from its text alone: scripts, roles, and answers that seem to be cut off.

Of languages nothing is told: German beside English is no oddity. Scripts are those of Unicode's character names
("CYRILLIC SMALL LETTER A"); CJK, Hiragana and Katakana are told apart.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Any

ODDITIES = {
    "odd role": "a role that is none of system, user, assistant, tool",
    "same role twice": "two messages of one role in a row",
    "no user turn last": "a prompt that does not end in a turn of the user or of a tool",
    "system message late": "a system message after the first message",
    "empty turn": "a message of the prompt without text",
    "answer of no assistant": "an answer that does not end in an assistant's message",
    "script differs from prompt": "an answer in another script than its prompt (scripts, not languages)",
    "scripts of answers differ": "two answers in different scripts (scripts, not languages)",
    "chosen seems cut off": "a long chosen answer that ends in the middle of a sentence",
    "rejected seems cut off": "a long rejected answer that ends in the middle of a sentence",
}
"""Name -> what it is; bit i of a pair's flags is the i-th."""
BIT = {name: 1 << i for i, name in enumerate(ODDITIES)}

ROLES = ("system", "developer", "user", "assistant", "tool")
LOOKED_AT = 400
"""Characters of a text whose script is looked up: the first ones."""
LONG = 200
"""Characters from which on an answer is expected to end as a sentence, a list or code does"""
_OPEN = ",;:([_"
"""What no sentence ends in, besides letters and digits"""
_UNENDED = re.compile(r"\s*([-*+]|\d+[.)]|\||#|`{3}|\S+@|https?:)")
"""How a line starts that needs no full stop: of a list, a table, a heading, code, an address"""

Messages = list[dict[str, Any]]


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    return unicodedata.name(character, "?").split()[0].partition("-")[0]


def script(text: str) -> str:
    """The script of most letters of a text; "" where it has none."""
    head = text[:LOOKED_AT]
    if head.isascii():
        return "LATIN" if any(map(str.isalpha, head)) else ""
    counts: dict[str, int] = {}
    for character in filter(str.isalpha, head):
        found = _script(character)
        counts[found] = counts.get(found, 0) + 1
    return max(counts, key=counts.__getitem__) if counts else ""


def seems_cut(text: str) -> bool:
    """Whether a long answer ends within a sentence: in a letter, a comma or an open bracket, outside a list."""
    if len(text) < LONG:
        return False
    end = text.rstrip()
    if not end or not (end[-1].isalnum() or end[-1] in _OPEN):
        return False
    return not _UNENDED.match(end, end.rfind("\n") + 1) and script(end[-20:]) not in ("THAI", "LAO", "KHMER")


def roles(prompt: Messages, chosen: Messages, rejected: Messages) -> int:
    """Flags of the roles and turns of a pair."""
    flags, before = 0, ""
    for i, message in enumerate(prompt):
        role = message["role"]
        if role == before and role != "tool":
            flags |= BIT["same role twice"]
        if role not in ROLES:
            flags |= BIT["odd role"]
        if role == "system" and i:
            flags |= BIT["system message late"]
        if not (message["content"] or len(message) > 2):
            flags |= BIT["empty turn"]
        before = role
    if before not in ("user", "tool"):
        flags |= BIT["no user turn last"]
    for side in (chosen, rejected):
        if side and side[-1]["role"] != "assistant":
            flags |= BIT["answer of no assistant"]
        last = before
        for message in side:
            if message["role"] == last and last != "tool":
                flags |= BIT["same role twice"]
            last = message["role"]
    return flags


def texts(prompt: str, chosen: str, rejected: str) -> tuple[int, str]:
    """Flags of the texts of a pair, and the script of its chosen answer."""
    of_prompt, of_chosen, of_rejected = script(prompt), script(chosen), script(rejected)
    flags = 0
    if of_chosen and of_rejected and of_chosen != of_rejected:
        flags |= BIT["scripts of answers differ"]
    if of_prompt and ((of_chosen and of_chosen != of_prompt) or (of_rejected and of_rejected != of_prompt)):
        flags |= BIT["script differs from prompt"]
    if seems_cut(chosen):
        flags |= BIT["chosen seems cut off"]
    if seems_cut(rejected):
        flags |= BIT["rejected seems cut off"]
    return flags, of_chosen or of_rejected
