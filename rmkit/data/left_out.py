"""What a chat template leaves out of a conversation, noticed by rendering it with something else in its place.

A template that was written for other data skips what it does not know: a system message, a tool's answer, a tool call,
a name. Nothing fails then, and the score is that of another conversation. So each kind of message and of field is
changed once, and where the text stays the same, the template does not read it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from rmkit.data.messages import READ_BY_TEMPLATES, Message
from rmkit.data.tokenizer import default_template, render

MARK = "~"


class LeftOut:
    """Finds what one template leaves out; each kind of message is tried once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple, bool] = {}

    def of(self, turns: Sequence[Message], options: dict[str, Any] | None) -> list[str]:
        """Names of what the template leaves out of a conversation, such as "messages of role tool"."""
        if options is None and all(len(turn) == 2 and turn["role"] in ("user", "assistant") for turn in turns):
            return []
        found = {}
        for kind, name, other, other_options in _changed(turns, options):
            if kind not in self._known:
                self._known[kind] = self._same(turns, options, other, other_options)
            if self._known[kind]:
                found[name] = None
        for name in (options or {}).get("chat_template_kwargs", ()):
            if name not in default_template(self._tokenizer):
                found[f"the argument {name}"] = None
        return list(found)

    def _same(self, turns: Any, options: Any, other: Any, other_options: Any) -> bool:
        try:
            return render(self._tokenizer, turns, options) == render(self._tokenizer, other, other_options)
        except jinja2.TemplateError:  # it looked at what was changed
            return False


def matters(name: str) -> bool:
    """Whether what is left out was part of the conversation, and is no id or weight that only a file needs."""
    return not name.startswith("field ") or name.split()[1] in READ_BY_TEMPLATES


def _changed(turns: Sequence[Message], options: dict[str, Any] | None) -> Iterator[tuple]:
    """Each kind of thing that may be left out, its name, and the conversation with something else in its place."""
    asked = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    for i, turn in enumerate(turns):
        place = (turn["role"], i == 0, i > asked)
        if turn["role"] not in ("user", "assistant") and turn["content"]:
            yield (*place, ""), f"messages of role {turn['role']}", _with(turns, i, "content"), options
        for field in turn.keys() - {"role", "content"}:
            yield (*place, field), f"field {field} of role {turn['role']}", _with(turns, i, field), options
    if options and "tools" in options:
        yield ("tools",), "tools", turns, options | {"tools": _other(options["tools"])}


def _with(turns: Sequence[Message], i: int, field: str) -> list[Message]:
    return [*turns[:i], {**turns[i], field: _other(turns[i][field])}, *turns[i + 1 :]]


def _other(value: Any) -> Any:
    """A value of the same form with other texts and numbers; what says of which type something is stays."""
    if isinstance(value, dict):
        return {name: part if name == "type" else _other(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_other(part) for part in value]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}{MARK}"
