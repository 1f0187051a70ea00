"""Read a field of a row as messages: whole, as the chat template gets them.

A message is `{"role", "content"}` and whatever else a row gives it (`tool_calls`, `tool_call_id`, `name`,
`reasoning_content`, ..); what is null counts as absent. Also read: plain text (one message), one message as an object,
ShareGPT's `{"from", "value"}` (LLaMA-Factory `data/converter.py`), content as a list of text parts (OpenAI), and null
content beside tool calls (OpenAI). Images, audio and video are refused by name: only text is scored.
"""

import json
from typing import Any

from rmkit.data.fields import show, text

Message = dict[str, Any]

READ_BY_TEMPLATES = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking")
"""Fields of a message that tell two messages apart. Others (ids, weights) reach the template too, but two messages that
differ only there are the same turn of a conversation."""

SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bot": "assistant"}
SHAREGPT |= {"chatgpt": "assistant", "system": "system", "observation": "tool", "tool": "tool"}
"""Speakers of ShareGPT, as LLaMA-Factory and ms-swift name them -> roles. function_call is read by itself."""


def messages(value: Any, field: str, role: str = "assistant") -> list[Message]:
    """The messages of a field, whole; plain text becomes one message of `role`."""
    if isinstance(value, str):
        return [{"role": role, "content": text(value, field)}]
    if isinstance(value, dict) and value:
        return [_message(value, field)]
    if not isinstance(value, list):
        raise ValueError(f"field '{field}': found {show(value)}, need text or a list of messages")
    return [_quick(each) or _message(each, f"{field}[{i}]") for i, each in enumerate(value)]


def same_turn(a: Message, b: Message) -> bool:
    """Whether two messages are one turn of a conversation: role, content and what templates read are equal."""
    if a == b or len(a) == len(b) == 2:
        return a == b
    return all(a.get(part) == b.get(part) for part in ("role", "content", *READ_BY_TEMPLATES))


def is_plain(message: Message) -> bool:
    """Whether a message is nothing but a role and a text."""
    return len(message) == 2 and message["content"] is not None


def _quick(given: Any) -> Message | None:
    """A plain message, as nearly all are; None where it needs a closer look, which names the place of what is wrong."""
    if type(given) is not dict or len(given) != 2:
        return None
    role, content = given.get("role"), given.get("content")
    if type(role) is not str or type(content) is not str or not role.strip():
        return None
    try:
        role.encode(), content.encode()
    except UnicodeEncodeError:
        return None
    return {"role": role, "content": content}


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise ValueError(f"field '{where}': found {show(given)}, need a message with role and content")
    if given.get("from") is not None and given.get("role") is None:
        given = _sharegpt(given, where)
    role, content = given.get("role"), given.get("content")
    if type(role) is not str or not role.strip():
        text(role, f"{where}.role")
        raise ValueError(f"field '{where}.role': found {show(role)}, need a role such as user")
    read = {"role": text(role, f"{where}.role"), "content": None}
    if len(given) > 2 or content is None:
        read |= {
            _key(name, where): json_value(part, f"{where}.{name}")
            for name, part in given.items()
            if name not in read and part is not None
        }
    if isinstance(content, list) and content:
        read |= _of_parts(content, f"{where}.content")
    elif content is not None or not any(read.get(name) for name in ("tool_calls", "reasoning_content", "thinking")):
        read["content"] = text(content, f"{where}.content")
    return read


def _key(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"field '{where}': found the name {show(name)} among its fields, need text")
    return text(name, where)


def _of_parts(parts: list[Any], where: str) -> Message:
    """What a list of parts says: its texts joined as chat templates join them, with nothing between; LLaMA-Factory 1
    puts reasoning and tool calls there too."""
    texts, read = [], {}
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        field = "value" if kind and part.get("text") is None else "text"
        if kind == "text":
            texts.append(text(part.get(field), f"{where}[{i}].{field}"))
        elif kind == "reasoning" and field == "value":
            read["reasoning_content"] = text(part.get("value"), f"{where}[{i}].value")
        elif kind == "tool_call" and field == "value":
            read.setdefault("tool_calls", []).extend(called(part.get("value"), f"{where}[{i}].value"))
        else:
            raise ValueError(
                f"field '{where}[{i}]': found {f'a part of type {show(kind)}' if kind else show(part)}, need a part of "
                "type text; only text can be scored"
            )
    return {"content": "".join(texts) if texts or not read else None, **read}


def _sharegpt(given: Message, where: str) -> Message:
    speaker, value = given["from"], given.get("value")
    rest = {name: part for name, part in given.items() if name not in ("from", "value")}
    if speaker == "function_call":
        return {**rest, "role": "assistant", "tool_calls": called(value, f"{where}.value")}
    if not isinstance(speaker, str) or speaker not in SHAREGPT:
        raise ValueError(f"field '{where}.from': found {show(speaker)}, need human, gpt, system, observation or such")
    return {**rest, "role": SHAREGPT[speaker], "content": text(value, f"{where}.value")}


def called(value: Any, field: str) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's form from the JSON text of one or several `{"name", "arguments"}` (LLaMA-Factory,
    ms-swift)."""
    try:
        calls = json.loads(text(value, field))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"field '{field}': found {show(value)}, need a tool call as JSON ({error})") from None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise ValueError(f'field \'{field}\': found {show(value)}, need a tool call: {{"name": .., "arguments": ..}}')
    return [{"type": "function", "function": json_value(call, field)} for call in calls]


def json_value(value: Any, field: str) -> Any:
    """A JSON value without the nulls that a table puts wherever another row has a field, checked to be text that can be
    encoded."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
        return _dropped(value)
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"field '{field}': found {show(value)}, which is no JSON value ({error})") from None


def _dropped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _dropped(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_dropped(part) for part in value]
    return value if isinstance(value, str | int | float | bool) else str(value)
