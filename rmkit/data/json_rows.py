"""Read rows of JSON one at a time, from lines or from one array, with the place of each in the file, so that it can be
read again.

An array is streamed too: only one element is held at a time, however long the file is. rmkit reads the rows itself, not
with the bulk reader of a JSON library, so that an error names the exact row.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any, Literal, NamedTuple

BOM = b"\xef\xbb\xbf"
BLOCK = 1 << 20
"""Bytes of an array that are read at a time."""
LONGEST = 1 << 24
"""Most bytes of a row: parsed, it may take thirty times as much memory, and a few kilobytes of gzip can unpack to any
length."""
BLANKS = 1 << 20
"""Most bytes of blank lines in a row that are skipped."""
DEEPEST = 100
"""Deepest nesting of lists and objects: values are written again by recursive functions."""

_NO_BLANK = re.compile(r"[^ \t\n\r]")
_WRAPPED = re.compile(r'\{\s*"(data|rows|examples|instances|train|test|validation)"\s*:\s*\[\s*(?=[{\]])')
_BLANK = object()
_LONGEST_TOKEN = 16
"""Most characters of a piece of JSON that a block may cut in two ("-Infinity", a surrogate pair)."""


class Row(NamedTuple):
    """A row and its place in the file."""

    number: int
    """Line, counted from 1, or index in the array, counted from 0"""
    offset: int
    """Bytes before it in the file"""
    length: int
    """Bytes of the row"""
    value: Any


def unit(file: IO[bytes]) -> str:
    """What a message calls the place of a row: "line" where each has one, else "index"; rewinds the file."""
    return "line" if _kind(file) == "lines" else "index"


def _kind(file: IO[bytes]) -> Literal["lines", "array", "wrapped", "objects"]:
    """How the rows of a file stand in it; rewinds it. Wrapped: {"data": [..]}. Objects: printed over several lines."""
    if first_byte(file) == b"[":
        return "array"
    start = file.read(4096).removeprefix(BOM).lstrip()
    file.seek(0)
    if _WRAPPED.match(start.decode("utf-8", "replace")):
        return "wrapped"
    return "objects" if re.match(rb"\{[ \t]*\r?\n", start) else "lines"


def rows(file: IO[bytes], shown: str, skip: bool = False) -> Iterator[Row]:
    """The rows of a file; its content, not its name, tells whether it is an array or lines. With `skip`, a line that is
    no JSON is a row whose value is the ValueError.

    Raises ValueError where the file is empty, cut off, not UTF-8 or not JSON; `shown` is its name in the message.
    """
    nothing, kind = True, _kind(file)
    if kind == "lines":
        found = _lines(file, shown, skip)
    else:
        found = _objects(file, shown) if kind == "objects" else _elements(file, shown, kind == "wrapped")
    for row in found:
        nothing = False
        yield row
    if nothing:
        raise ValueError(f"{shown}: the file is empty; it should hold one object per row")


def first_byte(file: IO[bytes]) -> bytes:
    """The first byte that is not blank, after any byte order mark; b"" where none is near. Rewinds the file."""
    file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
    byte = b""
    while not byte and file.tell() < LONGEST and (block := file.read(BLOCK)):
        byte = block.lstrip()[:1]
    file.seek(0)
    return byte


def _lines(file: IO[bytes], shown: str, skip: bool = False) -> Iterator[Row]:
    offset = number = blank = 0
    while raw := file.readline(LONGEST + 1):
        number += 1
        mark = len(BOM) if number == 1 and raw.startswith(BOM) else 0
        where = f"{shown}, line {number}"
        if len(raw) > LONGEST:
            raise ValueError(_too_long(where))
        value = _line(raw[mark:], where, skip)
        if value is not _BLANK:
            yield Row(number, offset + mark, len(raw) - mark, value)
            blank = 0
        elif (blank := blank + len(raw)) > BLANKS:
            raise ValueError(f"{where}: found nothing but blanks for {BLANKS >> 20} MiB; need one object per line")
        offset += len(raw)


def _line(raw: bytes, where: str, skip: bool) -> Any:
    """The value of a line, _BLANK, or with `skip` the error that it is."""
    try:
        line = decoded(raw, where)
        return parsed(line, where) if line.strip() else _BLANK
    except ValueError as error:
        if not skip:
            raise
        return error


class _Window:
    """The text of a file around the current place. Each read at least doubles it."""

    def __init__(self, file: IO[bytes], shown: str) -> None:
        self._file, self._shown = file, shown
        self._decode = codecs.getincrementaldecoder("utf-8")()
        file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
        self.offset = file.tell()
        """Position of text[at] in the file, in bytes"""
        self.text, self.at = "", 0

    def grow(self) -> bool:
        """Read the next block, and drop the text before `at`; False at the end of the file."""
        place = self._file.tell()
        block = self._file.read(max(BLOCK, len(self.text) - self.at))
        try:
            more = self._decode.decode(block, not block)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._shown}: not UTF-8 (byte 0x{error.object[error.start]:02x} near offset {place + error.start}); "
                "save the file as UTF-8"
            ) from None
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(block)

    def move(self, end: int) -> int:
        """Move to text[end]; how many bytes that is."""
        length = len(self.text[self.at : end].encode())
        self.at, self.offset = end, self.offset + length
        return length

    def next_character(self) -> str:
        """Move to the next character that is not blank, and return it; "" at the end of the file."""
        while not (match := _NO_BLANK.search(self.text, self.at)):
            self.move(len(self.text))
            if not self.grow():
                return ""
        self.move(match.start())
        return match[0]


def _objects(file: IO[bytes], shown: str) -> Iterator[Row]:
    """Values one after the other, each over several lines."""
    window, index = _Window(file, shown), 0
    while window.next_character():
        value, end = _element(window, f"{shown}, index {index}")
        offset = window.offset
        yield Row(index, offset, window.move(end), value)
        index += 1


def _elements(file: IO[bytes], shown: str, wrapped: bool = False) -> Iterator[Row]:
    """The elements of an array, or of the one that an object holds under its only name."""
    window, index = _Window(file, shown), 0
    window.next_character()
    opened = None
    while wrapped and not (opened := _WRAPPED.match(window.text, window.at)) and window.grow():
        pass
    window.move(opened.end() if opened else window.at + 1)  # the opening bracket
    closed = window.next_character() == "]"
    while not closed:
        where = f"{shown}, index {index}"
        value, end = _element(window, where)
        offset = window.offset
        yield Row(index, offset, window.move(end), value)
        index += 1
        character = window.next_character()
        if character not in (",", "]"):
            raise ValueError(_broken(where, character, "a comma or the closing bracket"))
        window.move(window.at + 1)
        closed = character == "]"
        if not closed and window.next_character() in ("", "]"):
            raise ValueError(_broken(where, window.next_character(), "another element behind the comma"))
    if not index:
        window.move(window.at + 1)
    if wrapped:
        if (character := window.next_character()) != "}":
            raise ValueError(_broken(shown, character, "the end of the object around the list"))
        window.move(window.at + 1)
    if character := window.next_character():
        raise ValueError(_broken(shown, character, "nothing behind the closing bracket"))


def _element(window: _Window, where: str) -> tuple[Any, int]:
    """The JSON value at the window's place, and the index in the text where it ends."""
    decoder = json.JSONDecoder()
    while True:
        try:
            value, end = decoder.raw_decode(window.text, window.at)
        except json.JSONDecodeError as error:
            cut = error.pos >= len(window.text) - _LONGEST_TOKEN or error.msg.startswith("Unterminated string")
            if cut and len(window.text) - window.at > LONGEST:
                raise ValueError(_too_long(where)) from None
            if not (cut and window.grow()):
                parsed(window.text[window.at :], where)
                raise
            continue
        except (ValueError, RecursionError):
            parsed(window.text[window.at :], where)
            raise
        length = end - window.at
        if length > LONGEST:
            raise ValueError(_too_long(where))
        _check_depth(value, window.text[window.at : end], where)
        # A number near the end of the block ("0", "0.", "1e") may go on in the next one.
        if end <= len(window.text) - _LONGEST_TOKEN or not window.grow():
            return value, window.at + length


def decoded(raw: bytes, where: str) -> str:
    """UTF-8 bytes as text; ValueError names the byte and its offset."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}); save the file as UTF-8"
        ) from None


def parsed(text: str, where: str) -> Any:
    """JSON text as a value; ValueError says whether it is broken or cut off, and where."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # Of a line that is cut off, the error points at its end, or at the start of a string that is not closed.
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        kind = "JSON that is cut off" if cut else "broken JSON"
        raise ValueError(
            f"{where}: found {kind} ({error.msg.lower()} at {place}); need one object per line, or one array"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of open brackets
        raise ValueError(f"{where}: found JSON that cannot be read ({error})") from None
    _check_depth(value, text, where)
    return value


def _check_depth(value: Any, text: str, where: str) -> None:
    """Raise ValueError where a value is nested too deep. Only where its `text` has many brackets is it walked."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    holders = [value]
    for _ in range(DEEPEST):
        parts = (part for h in holders for part in (h.values() if isinstance(h, dict) else h))
        holders = [part for part in parts if isinstance(part, (dict, list))]
        if not holders:
            return
    raise ValueError(f"{where}: found lists and objects more than {DEEPEST} deep; give the fields themselves")


def _too_long(where: str) -> str:
    return f"{where}: longer than {LONGEST >> 20} MiB; need one object per line, or one array of them"


def _broken(where: str, character: str, needed: str) -> str:
    kind = f"broken JSON (found {character!r}" if character else "JSON that is cut off (the file ends"
    return f"{where}: found {kind} where {needed} should stand); need one object per line, or one array"
