"""HTTP/2 as bytes (RFC 9113): frames, error codes, and header blocks that touch no table (RFC 7541)."""

from __future__ import annotations

import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Length and type, flags, stream.
HEAD = struct.Struct(">IBI")
HEAD_BYTES = 9
MAX_FRAME = 16_384
MAX_WINDOW = 2**31 - 1
FIRST_WINDOW = 65_535

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED = range(6)
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(6, 12)

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)


class Broken(Exception):
    """What ends a connection: the code and the reason that its GOAWAY gives."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in values.items()))


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def rst_stream(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last: int, code: int, message: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + message.encode()[:200])


def block(headers: Iterable[tuple[str, str]]) -> bytes:
    """A header block of literals, none of which enters the reader's table: it reads the same on every connection."""
    return b"".join(
        b"\0" + _length(len(name)) + name + _length(len(value)) + value
        for name, value in ((name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in headers)
    )


STATUS_200 = b"\x88"


def status(code: int) -> bytes:
    """`:status`, the pseudo header that begins an answer."""
    return STATUS_200 if code == 200 else block([(":status", str(code))])


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of DATA or HEADERS without what is there to hide its length. Raises `Broken`."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Broken(PROTOCOL_ERROR, "a frame is padded with more than it holds")
    return payload[1 : len(payload) - payload[0]]


def _length(size: int) -> bytes:
    """An integer behind a bit that says `not Huffman coded` (RFC 7541, 5.1)."""
    if size < 127:
        return bytes((size,))
    rest, out = size - 127, [127]
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes((*out, rest))
