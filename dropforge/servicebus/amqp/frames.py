"""The frames of a connection: bytes as they arrive in, whole frames out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from dropforge.servicebus.errors import BrokerError

AMQP_HEADER: Final = b"AMQP\x00\x01\x00\x00"
SASL_HEADER: Final = b"AMQP\x03\x01\x00\x00"
# What a connection sends when it has nothing to say, so that the other end sees it alive.
EMPTY_FRAME: Final = b"\x00\x00\x00\x08\x02\x00\x00\x00"

# Kinds of frames. A protocol header is given out as one too; its body are its 8 bytes.
AMQP: Final = 0
SASL: Final = 1
HEADER: Final = -1

_HEAD = struct.Struct(">IBBH")


def frame(channel: int, body: bytes, kind: int = AMQP) -> bytes:
    """A whole frame around a performative and its payload."""
    return _HEAD.pack(len(body) + 8, 2, kind, channel) + body


def framing_error(text: str) -> BrokerError:
    return BrokerError("amqp:connection:framing-error", text, 400)


class FrameReader:
    """Puts frames together. Holds at most one incomplete frame, and refuses one longer than `max_frame` before it
    comes, so that its memory is bounded."""

    __slots__ = ("_max_frame", "_rest")

    def __init__(self, max_frame: int) -> None:
        self._max_frame = max_frame
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """The frames that are complete with the new bytes, as (kind, channel, body). Raises `BrokerError` for bytes
        that are no frame; nothing can be read after that."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, size = 0, len(data)
        while size - at >= 8:
            length, offset, kind, channel = _HEAD.unpack_from(data, at)
            # "AMQP" is no length that a frame can have.
            if length == 0x414D5150:
                yield HEADER, 0, data[at : at + 8]
                at += 8
                continue
            if length > self._max_frame:
                raise framing_error(f"expected frames of at most {self._max_frame} bytes, found one of {length}")
            if offset < 2 or offset * 4 > length:
                raise framing_error(f"expected a frame, found {length} bytes that start at byte {offset * 4}")
            end = at + length
            if end > size:
                break
            yield kind, channel, data[at + offset * 4 : end]
            at = end
        self._rest = data[at:]
