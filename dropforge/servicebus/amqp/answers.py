"""What the broker says to a client: performatives as bytes.

Every field is written, trailing nulls included: azure-servicebus before 7.15 reads them by place without asking how
many there are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

from dropforge.servicebus.amqp.encode import FALSE, NULL, TRUE, described, encode, list_of
from dropforge.servicebus.amqp.performatives import (
    ACCEPTED,
    ATTACH,
    BEGIN,
    CLOSE,
    DETACH,
    DISPOSITION,
    END,
    FLOW,
    MODIFIED,
    OPEN,
    REJECTED,
    TRANSFER,
)
from dropforge.servicebus.amqp.values import Array, Symbol, UByte, UInt, ULong, UShort
from dropforge.servicebus.errors import BrokerError

_ERROR: Final = 0x1D
_LONGEST_TEXT: Final = 1_000
_SASL_MECHANISMS: Final = 0x40
_SASL_OUTCOME: Final = 0x44

ACCEPTED_STATE: Final = described(ACCEPTED, b"\x45")


def sasl_mechanisms(names: tuple[str, ...]) -> bytes:
    return described(_SASL_MECHANISMS, encode([Array(Symbol, map(Symbol, names))]))


def sasl_outcome(code: int) -> bytes:
    return described(_SASL_OUTCOME, encode([UByte(code), None]))


def opened(container: str, max_frame: int, channel_max: int, idle_ms: int) -> bytes:
    fields: list[Any] = [
        container,
        None,
        UInt(max_frame),
        UShort(channel_max),
        UInt(idle_ms),
        None,
        None,
        None,
        None,
        {},
    ]
    return described(OPEN, encode(fields))


def begun(channel: int, window: int, handle_max: int) -> bytes:
    fields: list[Any] = [UShort(channel), UInt(0), UInt(window), UInt(window), UInt(handle_max), None, None, None]
    return described(BEGIN, encode(fields))


def attached(
    name: str,
    handle: int,
    *,
    receives: bool,
    settle_modes: tuple[int, int],
    source: bytes,
    target: bytes,
    max_message_bytes: int | None,
    properties: Mapping[Any, Any],
) -> bytes:
    """The other half of a link. `receives` is the broker's own role; a null source and target refuse the link."""
    fields = [
        encode(name),
        encode(UInt(handle)),
        TRUE if receives else FALSE,
        encode(UByte(settle_modes[0])),
        encode(UByte(settle_modes[1])),
        source,
        target,
        NULL,
        NULL,
        NULL if receives else encode(UInt(0)),
        NULL if max_message_bytes is None else encode(ULong(max_message_bytes)),
        NULL,
        NULL,
        encode(dict(properties)),
    ]
    return described(ATTACH, list_of(fields))


def flow(
    next_incoming_id: int,
    next_outgoing_id: int,
    window: int,
    link: tuple[int, int, int] | None = None,
    *,
    drain: bool = False,
) -> bytes:
    """Where the channel stands, and with `link` (handle, delivery count, credit) where that link stands."""
    fields: list[Any] = [UInt(next_incoming_id), UInt(window), UInt(next_outgoing_id), UInt(window)]
    if link is None:
        fields += [None] * 7
    else:
        fields += [*map(UInt, link), UInt(0), drain, False, {}]
    return described(FLOW, encode(fields))


def detached(handle: int, error: BrokerError | None, *, closed: bool = True) -> bytes:
    return described(DETACH, list_of([encode(UInt(handle)), TRUE if closed else FALSE, error_of(error)]))


def ended(error: BrokerError | None) -> bytes:
    return described(END, list_of([error_of(error)]))


def closed(error: BrokerError | None) -> bytes:
    return described(CLOSE, list_of([error_of(error)]))


def error_of(error: BrokerError | None) -> bytes:
    if error is None:
        return NULL
    # What a client wrote may be part of the text, and the frame must not be longer than it takes.
    return described(_ERROR, encode([Symbol(error.condition), error.description[:_LONGEST_TEXT], {}]))


def rejected(error: BrokerError) -> bytes:
    return described(REJECTED, list_of([error_of(error)]))


def modified(*, failed: bool, undeliverable: bool) -> bytes:
    return described(MODIFIED, encode([failed, undeliverable, None]))


# A disposition that settles one delivery, up to its state: size, offset, type, channel, descriptor, list32 with 6
# fields, role, first and last. One is written for every message.
_DISPOSITION = struct.Struct(">IBBH3sBIIBBIBI")
_DISPOSITION_START: Final = bytes((0x00, 0x53, DISPOSITION))


def disposition(channel: int, *, receives: bool, delivery_id: int, state: bytes) -> bytes:
    """A whole frame that settles the delivery in that state."""
    size = _DISPOSITION.size + 2 + len(state)
    return (
        _DISPOSITION.pack(
            size, 2, 0, channel, _DISPOSITION_START, 0xD0, size - 16, 6, 0x41 if receives else 0x42, 0x70, delivery_id,
            0x70, delivery_id,
        )
        + b"\x41" + state + b"\x42"
    )  # fmt: skip


_TRANSFER = struct.Struct(">IBBH3sBIIBIBIBB")
_TRANSFER_START: Final = bytes((0x00, 0x53, TRANSFER))
_REST_OF_TRANSFER: Final = b"\x40" * 5


def transfer(
    channel: int, handle: int, delivery_id: int, tag: bytes, *, settled: bool, payload: bytes, room: int
) -> list[bytes]:
    """The frames that carry one message, each with at most `room` bytes of it. The tag has at most 32 bytes."""
    size = len(payload)
    more = size > room
    piece = payload[:room] if more else payload
    # Size of the frame without the payload; the list's own counts from its count field on.
    head = _TRANSFER.size + len(tag) + 3 + 5
    first = (
        _TRANSFER.pack(
            head + len(piece), 2, 0, channel, _TRANSFER_START, 0xD0, head - 16, 11, 0x70, handle, 0x70, delivery_id,
            0xA0, len(tag),
        )
        + tag + b"\x43" + (b"\x41" if settled else b"\x42") + (b"\x41" if more else b"\x42") + _REST_OF_TRANSFER + piece
    )  # fmt: skip
    frames = [first]
    if more:
        frames += _continued(channel, handle, settled, payload, room)
    return frames


def _continued(channel: int, handle: int, settled: bool, payload: bytes, room: int) -> list[bytes]:
    frames = []
    for start in range(room, len(payload), room):
        piece = payload[start : start + room]
        fields: list[Any] = [UInt(handle), None, None, None, settled, start + room < len(payload), *[None] * 5]
        body = described(TRANSFER, encode(fields)) + piece
        frames.append(struct.pack(">IBBH", len(body) + 8, 2, 0, channel) + body)
    return frames
