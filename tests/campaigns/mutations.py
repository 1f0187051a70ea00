"""Real rows of every form that the readers accept, and ways to spoil them: bytes, values, names, drawn from `rng`."""

import copy
import json
import random
from typing import Any

from support.true_rows import true_rows


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def rows_of(form: str) -> list[dict[str, Any]]:
    """Six rows of a form; the odd ones have other texts, so that two copied chunks never make a valid file."""
    return [
        _row(form, i, ("yes", "no \u00fc\u4e2d", "a longer answer", "?", "tab\there", "x" * 40)[i]) for i in range(6)
    ]


def _row(form: str, i: int, text: str) -> dict[str, Any]:
    if form in SHAPES:
        row = true_rows(text, f"not {text}", f"ask {i // 2}")[form][1]
        return row | {"helpfulness": 4 - i % 2} if form in ("HelpSteer2", "HelpSteer2 turns") else row
    user, good, bad = [turn("user", f"ask {i // 2}")], [turn("assistant", text)], [turn("assistant", f"not {text}")]
    if form == "texts":
        extra = {"margin": 0.5, "weight": 1, "target": 0.9, "subset": "s", "id": f"n{i}", "split": "train"}
        return {"prompt": f"ask {i // 2}", "chosen": text, "rejected": f"not {text}", **extra}
    if form == "messages":
        return {"prompt": user, "chosen": good, "rejected": bad, "id": i}
    if form == "implicit":
        return {"chosen": [*user, *good], "rejected": [*user, *bad]}
    if form == "hh":
        head = f"\n\nHuman: ask {i // 2}\n\nAssistant: "
        return {"chosen": head + text, "rejected": head + f"not {text}"}
    if form == "halos":
        more = {"type": "pairwise_feedback", "reward_difference": 0.25, "prompt_id": i // 2}
        return {"prompt": user, "output_A": good, "output_B": bad, "label": i % 2, **more}
    if form == "ranked":
        return {"prompt": f"ask {i}", "responses": [text, "b", f"not {text}"], "ranks": [1, 2, 2]}
    if form == "lists":
        return {"prompt": f"ask {i}", "chosen": [text, text + "!"], "rejected": ["b", f"not {text}"], "domain": "chat"}
    if form == "sample":
        more = {"prompt_id": i // 2, "sample_id": i % 2, "generator": "m", "dataset": "d", "type": "sample"}
        return {"prompt": user, "output": text, **more}
    if form == "responses":
        return {"prompt": f"ask {i}", "responses": [text, f"not {text}"]}
    if form == "scalar":
        return {"prompt": user, "output": good, "reward": 0.5 * i, "type": "scalar_feedback", "prompt_id": f"p{i}"}
    if form in NEIGHBOURS:
        return _neighbour(form, i, text)
    raise AssertionError(form)


def _neighbour(form: str, i: int, text: str) -> dict[str, Any]:
    """Rows of forms that no source of true_rows has: the same answers under other names."""
    if form == "rated":
        return {"prompt": f"ask {i // 2}", "response": text, "ratings": {"helpful": i % 5, "harmless": 1}}
    if form == "oasst":
        first, rank = i - i % 3, i % 3 - 1
        tree = {"parent_id": f"m{first}" if i % 3 else None, "rank": rank if i % 3 else None}
        role = "assistant" if i % 3 else "prompter"
        return {"message_id": f"m{i}", **tree, "text": text, "role": role, "lang": "en", "deleted": False}
    field, _, named = form.partition(" ")
    return {field: f"ask {i // 2}", f"chosen{named}": text, f"rejected{named}": f"not {text}"}


PAIRS = ("texts", "messages", "implicit", "hh", "halos", "ranked", "lists")
SHAPES = tuple(true_rows())
"""Those of other trainers and sets."""
NEIGHBOURS = ("rated", "oasst", "conversation", "query", "prompt _response", "question _response", "input _response")
"""Forms that have no source of their own there."""
WHOLE = ("SHP", "PKU-SafeRLHF", "HelpSteer2", "HelpSteer2 turns", "oasst")
"""Of these, what is read by the file, not by the row."""
SAMPLES = ("sample", "responses", "scalar")

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "\n",
        "0",
        "null",
        "\x00",
        "\ud800",
        "\udfff\ud800",
        "\ufeff",
        "\u2028\u2029\x85",
        "\r\n",
        "\x1b[31m\x07",
    ),
    *(
        "[bold]",
        "[/bold]",
        "[/]",
        "{{ bos_token }}",
        "{% raw %}",
        "<pad>",
        "</s>",
        "%s%n{0}",
        "\U0001f600",
        "e\u0301" * 9,
    ),
    *("../../x", "\n\nHuman: a\n\nAssistant: b", "\n\nAssistant:", "scalar_feedback", "pairwise_feedback", "sample"),
    *([], {}, [[]], [{}], [None], [""], [1, "a", None], {"role": "user"}, {"role": None, "content": 1}),
    *([turn("", "")], [turn("user", "x")], [turn("system", "s")], [turn("assistant", "\ud800")], [[turn("user", "x")]]),
)
"""Values that have broken readers of JSON, of text and of tables before."""

TOKENS = (
    *(
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\n",
    ),
    *(b"\xe2\x80\xa8", b"\xc2\x85", b"\x0c", b"\x1f\x8b", b"\x1f\x8b\x08\x00", b"PAR1", b"ARROW1", b"\x1b[2J"),
    *(b"NaN", b"-Infinity", b"1e999", b"-", b"1" * 5000, b"0x10", b"\\ud800", b"\\u0000", b"\\x", b"'", b'"', b'"""'),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"[" * 300,
        b"[" * 100_000,
        b'{"a":' * 5000,
        b"[]" * 50,
        b"null",
        b"//",
        b"#",
    ),
    *(
        b'"prompt"',
        b'"chosen": 1,',
        b'"role": "user"',
        b'{"prompt": "p"}',
        b"\\",
        b"\x80" * 9,
        b" " * 4096,
        b"a" * 70_000,
    ),
)
"""Pieces that are put between the bytes of a file."""


def spoiled_bytes(rng: random.Random, raw: bytes) -> bytes:
    """One to four changes: flips, cuts, copies, swaps, pieces put in."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, end = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
        kind = rng.randrange(9)
        if kind == 0:
            changed = bytearray(raw)
            for _ in range(rng.choice((1, 1, 8, 64)) if raw else 0):
                changed[rng.randrange(len(raw))] = rng.randrange(256)
            raw = bytes(changed)
        elif kind == 1:
            raw = raw[:at]
        elif kind == 2:
            raw = raw[:at] + raw[end:]
        elif kind == 3:
            raw = raw[:end] + raw[at:end] * rng.choice((1, 2, 9)) + raw[end:]
        elif kind == 4:
            raw = raw[end:] + raw[at:end] + raw[:at]
        elif kind == 5 and raw:
            bit = rng.randrange(len(raw) * 8)
            raw = raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]
        else:
            raw = raw[:at] + rng.choice(TOKENS) + raw[at:]
    return raw if rng.random() > 0.01 else b""


def spoiled_json(rng: random.Random, value: Any, deepest: int = 900) -> Any:
    """A copy of a JSON value in which one to four places hold something else, twice, under another name, or nothing."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        holders = list(_holders(value))
        if not holders:
            return rng.choice(HOSTILE)
        holder = rng.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key, kind = rng.choice(keys), rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(("", "\ud800", "[bold]\x1b[1m", "split", "type", "output", "scores", *holder))] = holder[
                key
            ]
        elif kind == 1:
            holder.extend(holder[key : key + 1] * rng.choice((1, 2, 30)))
        elif kind == 2:
            holder[key] = deep(rng, holder[key], deepest)
        elif kind == 3 and isinstance(holder[key], str):
            at = rng.randrange(len(holder[key]) + 1)
            piece = rng.choice([text for text in HOSTILE if isinstance(text, str)])
            holder[key] = holder[key][:at] + piece + holder[key][at:]
        else:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
    return value


def deep(rng: random.Random, value: Any, deepest: int) -> Any:
    """The value inside many lists or objects."""
    for _ in range(min(deepest, rng.choice((1, 5, 60, 300, 900)))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def _holders(value: Any, levels: int = 8) -> Any:
    """Every list and object within a value that holds something, down to a few levels."""
    if isinstance(value, (list, dict)) and value and levels:
        yield value
        for part in list(value.values() if isinstance(value, dict) else value):
            yield from _holders(part, levels - 1)


def as_json(value: Any) -> bytes:
    """JSON as Python writes it (NaN, half surrogates by escape), or as text where that can be encoded at all."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 2000 + b"]" * 2000


NAMES = (
    *("case{n}", "case{n} with blanks", "[bold]case{n}[red]", "[[case{n}]]", ":smile:case{n}", "case{n}\u00fc\u4e2d"),
    *(
        "-case{n}",
        "--case{n}",
        "case{n}*?[a-c]",
        "case{n}::x",
        "file:case{n}",
        "case{n}%20%s{{0}}",
        "case{n}#?a=b",
        "~case{n}",
    ),
    *(
        "case{n}\n",
        "case{n}\x1b[31m",
        "case{n}\udcff",
        "case{n}\t",
        "case{n}'\"",
        "train-case{n}",
        "case{n}" + "x" * 200,
    ),
)
"""Names of files, of which most are odd; each keeps the word by which a message is found to name it."""


def name(rng: random.Random, n: int) -> str:
    return (rng.choice(NAMES) if rng.random() < 0.3 else NAMES[0]).format(n=n)
