"""Rows of JSON one at a time, of lines or of one array, each with the bytes it stands in, so that it can be looked up
again.

An array streams too: only the element at hand is held, however long the file is. Rows are read by our own reader, not
by a JSON library's bulk one, so that a broken one is named exactly.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

BOM = b"\xef\xbb\xbf"
BLOCK = 1 << 20
"""Bytes of an array that are read at once."""
LONGEST = 1 << 24
"""Bytes of the longest row: parsed, it may take thirty times as much memory. Kilobytes of gzip can unpack to any
length."""
BLANKS = 1 << 20
"""Bytes of blank lines, one behind another, that are read over."""
DEEPEST = 100
"""Lists and objects within one another: what is written again is walked by functions that call themselves."""

_NO_BLANK = re.compile(r"[^ \t\n\r]")
_LONGEST_TOKEN = 16
"""Characters of the longest piece of JSON outside a string that a block may cut ("-Infinity", a surrogate pair)."""


class Row(NamedTuple):
    """A row and where it stands."""

    number: int
    """Line, counted from 1, or index in the array, counted from 0"""
    offset: int
    """Bytes before it in the file"""
    length: int
    """Bytes of it"""
    value: Any


def unit(file: IO[bytes]) -> str:
    """What the rows of a file are called: "index" where it is a JSON array, else "line"; it is wound back."""
    return "index" if first_byte(file) == b"[" else "line"


def rows(file: IO[bytes], shown: str) -> Iterator[Row]:
    """The rows of a file, by content an array or lines, whatever its name is.

    Raises ValueError where the file is empty, cut off, not UTF-8 or no JSON; `shown` is what it is called.
    """
    nothing = True
    for row in _elements(file, shown) if first_byte(file) == b"[" else _lines(file, shown):
        nothing = False
        yield row
    if nothing:
        raise ValueError(f"{shown}: the file is empty; it should hold one object per row")


def first_byte(file: IO[bytes]) -> bytes:
    """First byte that is no blank, behind a byte order mark, b"" where none is near; the file is wound back."""
    file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
    byte = b""
    while not byte and file.tell() < LONGEST and (block := file.read(BLOCK)):
        byte = block.lstrip()[:1]
    file.seek(0)
    return byte


def _lines(file: IO[bytes], shown: str) -> Iterator[Row]:
    offset = number = blank = 0
    while raw := file.readline(LONGEST + 1):
        number += 1
        mark = len(BOM) if number == 1 and raw.startswith(BOM) else 0
        where = f"{shown}, line {number}"
        if len(raw) > LONGEST:
            raise ValueError(_too_long(where))
        line = decoded(raw[mark:], where)
        if line.strip():
            yield Row(number, offset + mark, len(raw) - mark, parsed(line, where))
            blank = 0
        elif (blank := blank + len(raw)) > BLANKS:
            raise ValueError(f"{where}: found nothing but blanks for {BLANKS >> 20} MiB; need one object per line")
        offset += len(raw)


class _Window:
    """The text of a file from a place that moves on; it grows by blocks, at least to double."""

    def __init__(self, file: IO[bytes], shown: str) -> None:
        self._file, self._shown = file, shown
        self._decode = codecs.getincrementaldecoder("utf-8")()
        file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
        self.offset = file.tell()
        """Byte of the file at which text[at] stands"""
        self.text, self.at = "", 0

    def grow(self) -> bool:
        """Read on, and forget what lies before `at`; False at the end of the file."""
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
        """Go on to text[end]; the bytes between."""
        length = len(self.text[self.at : end].encode())
        self.at, self.offset = end, self.offset + length
        return length

    def next_character(self) -> str:
        """The next one that is no blank, at `at` then; "" at the end of the file."""
        while not (found := _NO_BLANK.search(self.text, self.at)):
            self.move(len(self.text))
            if not self.grow():
                return ""
        self.move(found.start())
        return found[0]


def _elements(file: IO[bytes], shown: str) -> Iterator[Row]:
    window, index = _Window(file, shown), 0
    window.next_character()
    window.move(window.at + 1)  # the opening bracket
    closed = window.next_character() == "]"
    while not closed:
        where = f"{shown}, index {index}"
        value, end = _element(window, where)
        offset = window.offset
        yield Row(index, offset, window.move(end), value)
        index += 1
        found = window.next_character()
        if found not in (",", "]"):
            raise ValueError(_broken(where, found, "a comma or the closing bracket"))
        window.move(window.at + 1)
        closed = found == "]"
        if not closed and window.next_character() in ("", "]"):
            raise ValueError(_broken(where, window.next_character(), "another element behind the comma"))
    if not index:
        window.move(window.at + 1)
    if found := window.next_character():
        raise ValueError(_broken(shown, found, "nothing behind the closing bracket"))


def _element(window: _Window, where: str) -> tuple[Any, int]:
    """The value at the window's place, and where its text ends."""
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
        # A line that ends inside a value points at its end, or at the start of the text that is never closed.
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
    """ValueError where a value that stands in `text` is too deep; few rows have brackets enough to be looked at."""
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


def _broken(where: str, found: str, needed: str) -> str:
    kind = f"broken JSON (found {found!r}" if found else "JSON that is cut off (the file ends"
    return f"{where}: found {kind} where {needed} should stand); need one object per line, or one array"
