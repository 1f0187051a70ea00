"""Whole messages between the cache and the chat template.

The cache's columns prompt, chosen and rejected hold role and content of each message, as nearly all data has no more.
What is beyond that stands in the column `more`, as JSON: other fields of messages, null content, and the row's options
(tools, chat_template_kwargs). `whole` puts it together again for the template.
"""

import json
from typing import Any

from rmkit.data.messages import READ_BY_TEMPLATES, Message, is_plain

SIDES = ("prompt", "chosen", "rejected")
PLAIN = ("role", "content")

Row = dict[str, Any]


def packed(preference: Row) -> Row:
    """A preference as the cache's columns hold it."""
    options = preference.get("options")
    more = {} if options is None else {"options": options}
    columns = {name: value for name, value in preference.items() if name not in ("options", "undecided")}
    for side in SIDES:
        if all(map(is_plain, preference[side])):
            continue
        columns[side] = [{"role": m["role"], "content": m["content"] or ""} for m in preference[side]]
        more[side] = [
            {name: part for name, part in m.items() if name not in PLAIN or part is None} for m in preference[side]
        ]
    return {**columns, "more": json.dumps(more, default=str) if more else None}


def whole(row: Row) -> tuple[list[Message], list[Message], list[Message], Row | None]:
    """Prompt, chosen and rejected of a row of the cache with every field of their messages, and the row's options."""
    if row["more"] is None:
        return row["prompt"], row["chosen"], row["rejected"], None
    more = json.loads(row["more"])
    sides = [[{**m, **rest} for m, rest in _zipped(row[side], more.get(side))] for side in SIDES]
    return *sides, more.get("options")


def _zipped(messages: list[Message], more: list[Message] | None) -> Any:
    return zip(messages, more or [{}] * len(messages), strict=True)


def key(prompt: list[Message], options: Row | None) -> Any:
    """What tells one prompt from another, as a JSON value: role and content, and what templates read besides."""
    plain = [{name: message[name] for name in PLAIN} for message in prompt]
    besides = [{name: m[name] for name in READ_BY_TEMPLATES if name in m} for m in prompt]
    return plain if options is None and not any(besides) else [plain, besides, options]
