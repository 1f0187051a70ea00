"""What surrounds the turns of a row: a system prompt, earlier turns, tools, and arguments of the chat template.

These fields mean the same in every shape of row, and each changes the text that is scored, so none is ever ignored:

| field | becomes |
| --- | --- |
| `system`, `system_prompt` | a system message in front (axolotl, LLaMA-Factory, ms-swift) |
| `history` | earlier turns: pairs [query, response] (LLaMA-Factory, ms-swift), or messages |
| `tools` | the template's tools: a list, or its JSON text (TRL, OpenAI, LLaMA-Factory) |
| `chat_template_kwargs` | arguments of the template, such as enable_thinking (TRL) |
| `images`, `videos`, `audios`, .. | refused: only text is scored |
"""

import json
from typing import Any

from rmkit.data.fields import entries, show, text
from rmkit.data.messages import Message, json_value, messages, same_turn

Row = dict[str, Any]

SYSTEM = ("system", "system_prompt")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
FIELDS = (*SYSTEM, "history", "tools", "chat_template_kwargs", *MEDIA)
"""Fields that every shape reads."""

RESERVED = (
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
)
"""What a row may not set of `apply_chat_template`: it would be another rendering than that of the other rows."""


def surrounded(row: Row, prompt: list[Message], sides: tuple[list[Message], ...]) -> list[Message]:
    """The prompt behind the row's system message and earlier turns; raises ValueError where both are given twice."""
    earlier = _history(row["history"]) if given(row, "history") else []
    if earlier and prompt and prompt[0]["role"] == "system":
        earlier, prompt = [prompt[0], *earlier], prompt[1:]
    prompt = [*earlier, *prompt] if earlier else prompt
    system = [name for name in SYSTEM if given(row, name)]
    if not system:
        return prompt
    message = {"role": "system", "content": text(row[system[0]], system[0])}
    if len(system) > 1 and row[system[0]] != row[system[1]]:
        raise ValueError(f"fields '{system[0]}' and '{system[1]}': they differ; give one of them")
    first = next((turns[0] for turns in (prompt, *sides) if turns), None)
    if first is not None and first["role"] == "system":
        if same_turn(first, message):
            return prompt
        raise ValueError(
            f"field '{system[0]}': found {show(message['content'])}, but the conversation has a system message of its "
            f"own ({show(first['content'])}); give one of them"
        )
    return [message, *prompt]


def options(row: Row) -> Row | None:
    """The row's `tools` and `chat_template_kwargs` for the template; None where it has neither."""
    for name in MEDIA:
        if given(row, name):
            raise ValueError(f"field '{name}': found {show(row[name])}; only text can be scored")
    read: Row = {}
    if given(row, "tools"):
        read["tools"] = _tools(row["tools"])
    if given(row, "chat_template_kwargs"):
        read["chat_template_kwargs"] = _arguments(row["chat_template_kwargs"])
    return {name: value for name, value in read.items() if value} or None


def given(row: Row, name: str) -> bool:
    """Whether a field holds anything: null, "" and [] count as absent."""
    value = row.get(name)
    return value is not None and value != "" and value != [] and value != {}


def _history(value: Any) -> list[Message]:
    turns = entries(value, "history")
    if isinstance(turns[0], dict):
        return messages(turns, "history")
    read = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, list) or len(turn) != 2:
            raise ValueError(f"field 'history[{i}]': found {show(turn)}, need a pair [query, response]")
        for j, role in enumerate(("user", "assistant")):
            read.append({"role": role, "content": text(turn[j], f"history[{i}][{j}]")})
    return read


def _tools(value: Any) -> list[Any]:
    """Tools as OpenAI writes them; a bare {"name", "parameters"} is put into that form, as LLaMA-Factory does."""
    if isinstance(value, str):
        try:
            value = json.loads(text(value, "tools"))
        except (ValueError, RecursionError):
            raise ValueError(f"field 'tools': found {show(value)}, need a list of tools, or its JSON") from None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError(f"field 'tools': found {show(value)}, need a list of tools, each an object")
    value = json_value(value, "tools")
    bare = [tool.get("type") is None and isinstance(tool.get("name"), str) for tool in value]
    return [{"type": "function", "function": tool} if b else tool for tool, b in zip(value, bare, strict=True)]


def _arguments(value: Any) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"field 'chat_template_kwargs': found {show(value)}, need an object")
    value = json_value(value, "chat_template_kwargs")
    for name in value:
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
            raise ValueError(
                f"field 'chat_template_kwargs': found {show(name)}, which a row may not set; take it out of the rows"
            )
    return value
