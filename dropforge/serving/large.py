"""Large bodies of JSON, read in pieces: a decoder holds the interpreter's lock, and with it every other request, for as long
as it is at work.

Long lists of numbers are first put aside, as they take all the time; what is left is read as any request. Then each long
list is cut at its commas, read piece by piece, and after each piece it is the turn of others.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

import msgspec

# Lists, and bodies, above this are read in pieces.
LARGE_BYTES = 256 * 1024
PIECE_BYTES = 64 * 1024
# After a piece: a thread that only offers the lock mostly gets it back itself.
PAUSE_SECONDS = 50e-6
# A cut may fall into a text that looks like the end of an element; then the next place is tried, so many times.
CUTS = 8

# Where elements end: numbers, texts, objects; lists, by how deep they are.
NUMBERS = re.compile(rb",")
TEXTS = re.compile(rb'"\s*,')
OBJECTS = re.compile(rb"\}\s*,")
_MARK = secrets.token_hex(8)
_DATA = re.compile(rb'"data"\s*:\s*\[')
_ROWS = re.compile(rb'"rows"\s*:\s*\[')
_LISTS = re.compile(rb"\s*\[\s*\[")
_BLANK = b" \t\r\n"
_PLACE = re.compile(r"\$\[(\d+)\]")


def lists(depth: int) -> re.Pattern[bytes]:
    """Where lists of lists end, that deep; 1: lists of values."""
    return re.compile(rb"(?:\]\s*){%d}," % depth)


def numbers_aside(body: bytes) -> tuple[bytes, dict[bytes, memoryview]]:
    """The body with a mark in the place of each long list of numbers that is a `data`; and the lists by their marks."""
    parts: list[bytes] = []
    found: dict[bytes, memoryview] = {}
    done = at = 0
    view = memoryview(body)
    while (at := body.find(b'"data"', at)) >= 0:
        begins = _DATA.match(body, at)
        if begins is None:
            at += 6
            continue
        start = begins.end() - 1
        # A list of numbers, nested or not, holds no quote and no brace: it ends before the next one.
        quote = body.find(b'"', start)
        stop = body.find(b"}", start, quote if quote >= 0 else len(body))
        stop = stop if stop >= 0 else quote if quote >= 0 else len(body)
        end = body.rfind(b"]", start, stop) + 1
        at = max(end, begins.end())
        if end - start > LARGE_BYTES:
            mark = b'"%b-%d"' % (_MARK.encode(), len(found))
            found[mark] = view[start:end]
            parts += [body[done:start], mark]
            done = end
    return b"".join((*parts, body[done:])), found


def rows_aside(body: bytes) -> tuple[bytes, bytes, memoryview] | None:
    """The body with a mark in the place of its rows, the mark, and the rows, if nothing behind them is a list: where they
    end is not known before they are read. None where they are not found."""
    begins = _ROWS.search(body, 0, PIECE_BYTES)
    if begins is None:
        return None
    start, end = begins.end() - 1, body.rfind(b"]") + 1
    mark = b'"%b"' % _MARK.encode()
    return b"".join((body[:start], mark, body[end:])), mark, memoryview(body)[start:end]


def inside(data: memoryview) -> memoryview:
    """What a JSON list holds, without its brackets. Raises `msgspec.DecodeError`."""
    start, end = 0, len(data)
    while start < end and data[start] in _BLANK:
        start += 1
    while start < end and data[end - 1] in _BLANK:
        end -= 1
    if end - start < 2 or data[start] != ord("[") or data[end - 1] != ord("]"):
        raise msgspec.DecodeError("JSON is malformed: expected a list")
    return data[start + 1 : end - 1]


def holds_lists(data: memoryview) -> bool:
    """Whether the first element of a JSON list is a list."""
    return _LISTS.match(data) is not None


def pieces(
    decoder: msgspec.json.Decoder[Any], data: memoryview, ends: re.Pattern[bytes], piece_bytes: int = PIECE_BYTES
) -> Iterator[list[Any]]:
    """The elements of a JSON list, a few at a time. Raises `msgspec.DecodeError`, and `msgspec.ValidationError` that counts
    from the beginning of the list."""
    data = inside(data)
    at, count, size = 0, 0, len(data)
    while True:
        values, at = _piece(decoder, data, at, at + piece_bytes, ends, count)
        if not values and (count or at < size):
            raise msgspec.DecodeError("JSON is malformed: a comma too many in a list")
        yield values
        count += len(values)
        if at > size:
            return
        time.sleep(PAUSE_SECONDS)


def _piece(
    decoder: msgspec.json.Decoder[Any], data: memoryview, at: int, start: int, ends: re.Pattern[bytes], count: int
) -> tuple[list[Any], int]:
    """The elements that begin at a place, up to one behind `start`, and where the next ones do; behind the end when there
    are none."""
    size = len(data)
    for tried in range(CUTS + 1):
        cut = ends.search(data, start) if tried < CUTS and start < size else None
        end = cut.end() - 1 if cut is not None else size
        try:
            return decoder.decode(b"".join((b"[", data[at:end], b"]"))), end + 1
        except msgspec.ValidationError as error:
            told = _PLACE.sub(lambda place: f"$[{int(place[1]) + count}]", str(error), count=1)
            raise msgspec.ValidationError(told) from error
        except msgspec.DecodeError:
            if cut is None:
                raise
            start = end + 1
    raise AssertionError("the last try takes all that is left")
