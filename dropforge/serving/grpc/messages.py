"""Messages of protobuf as gRPC sends them: behind a byte that tells whether they are compressed, and four of their length."""

from __future__ import annotations

import zlib

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from dropforge.domain.errors import BadInput, DropforgeError
from dropforge.serving.grpc.schema import Message

PREFIX_BYTES = 5
ENCODINGS = ("identity", "gzip", "deflate")


class TooLarge(DropforgeError):
    http_status = 413


def too_large(size: int, limit: int) -> TooLarge:
    return TooLarge(
        f"a message of {size} bytes is above the limit of {limit} bytes for this call; send less in one, as fewer rows"
    )


def prefixed(message: bytes) -> bytes:
    """The message as it is sent, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def whole(data: bytes, encoding: str, kind: Message, limit: int) -> Message:
    """The one message that these bytes are. Raises `BadInput` and `TooLarge`."""
    if len(data) > limit + PREFIX_BYTES:
        raise too_large(len(data) - PREFIX_BYTES, limit)
    if len(data) < PREFIX_BYTES or int.from_bytes(data[1:PREFIX_BYTES], "big") != len(data) - PREFIX_BYTES:
        begun = f" that begin {data[:PREFIX_BYTES].hex()}" if data else ""
        raise BadInput(f"wanted one message behind its length in {PREFIX_BYTES} bytes; found {len(data)} bytes{begun}")
    return parsed(data, encoding, kind, limit)


def parsed(data: bytes, encoding: str, kind: Message, limit: int) -> Message:
    """The message behind a prefix. Raises `BadInput` and `TooLarge`."""
    content = data[PREFIX_BYTES:]
    if data[0]:
        content = _decompressed(content, encoding, limit)
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise BadInput(f"the message is no {kind.DESCRIPTOR.full_name}: {error}") from error


def _decompressed(content: bytes, encoding: str, limit: int) -> bytes:
    if encoding == "identity":
        raise BadInput("a message is compressed, and `grpc-encoding` does not say how")
    reader = zlib.decompressobj(31 if encoding == "gzip" else 15)
    try:
        plain = reader.decompress(content, limit + 1)
    except zlib.error as error:
        raise BadInput(f"a message is not compressed as {encoding}: {error}") from error
    if len(plain) > limit:
        raise TooLarge(
            f"a compressed message holds more than the limit of {limit} bytes for this call; send less in one"
        )
    if not reader.eof:
        raise BadInput(f"a message compressed as {encoding} is not whole")
    return plain
