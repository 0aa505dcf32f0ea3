"""The sections of an AMQP message: where each one lies in the bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dropforge.servicebus.amqp.decode import decode, malformed, skip

HEADER: Final = 0x70
DELIVERY_ANNOTATIONS: Final = 0x71
MESSAGE_ANNOTATIONS: Final = 0x72
PROPERTIES: Final = 0x73
APPLICATION_PROPERTIES: Final = 0x74
DATA: Final = 0x75
SEQUENCE: Final = 0x76
VALUE: Final = 0x77
FOOTER: Final = 0x78

# By section, the sections that must not have come before it: a body is one value, or any number of data sections, or of
# sequence sections; of all else there is one at the most.
_BODY: Final = sum(1 << (code - HEADER) for code in (DATA, SEQUENCE, VALUE))
_EXCLUDES: Final = tuple(
    _BODY & ~(1 << (code - HEADER)) if code in (DATA, SEQUENCE) else _BODY if code == VALUE else 1 << (code - HEADER)
    for code in range(HEADER, FOOTER + 1)
)

_BY_SYMBOL: Final = {
    "amqp:header:list": HEADER,
    "amqp:delivery-annotations:map": DELIVERY_ANNOTATIONS,
    "amqp:message-annotations:map": MESSAGE_ANNOTATIONS,
    "amqp:properties:list": PROPERTIES,
    "amqp:application-properties:map": APPLICATION_PROPERTIES,
    "amqp:data:binary": DATA,
    "amqp:amqp-sequence:list": SEQUENCE,
    "amqp:amqp-value:*": VALUE,
    "amqp:footer:map": FOOTER,
}


def sections(raw: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Each section as (code, where it starts, where its value starts, where it ends), in the order they lie.
    Raises `BrokerError` when the bytes are no message; what is inside a section is not looked at."""
    at, size = 0, len(raw)
    seen = 0
    while at < size:
        start = at
        if raw[at : at + 2] == b"\x00\x53" and size > at + 3:
            code = raw[at + 2]
            at += 3
        else:
            code, at = _code(raw, at)
        if not HEADER <= code <= FOOTER:
            raise malformed(f"expected a section of a message at byte {start}, found descriptor 0x{code:02x}")
        if seen & _EXCLUDES[code - HEADER]:
            raise malformed(f"section 0x{code:02x} at byte {start} is one too many")
        seen |= 1 << (code - HEADER)
        end = skip(raw, at)
        yield code, start, at, end
        at = end


def in_order(raw: bytes) -> bytes:
    """The same message with its sections in the order that AMQP asks for. The Python SDK writes the delivery annotations
    last."""
    found = sorted(sections(raw), key=lambda section: section[0])
    return b"".join(raw[start:end] for _, start, _, end in found)


def _code(raw: bytes, at: int) -> tuple[int, int]:
    if raw[at] != 0:
        raise malformed(f"expected a section of a message at byte {at}, found 0x{raw[at]:02x}")
    descriptor, at = decode(raw, at + 1)
    if isinstance(descriptor, str):
        descriptor = _BY_SYMBOL.get(descriptor, 0)
    if not isinstance(descriptor, int):
        raise malformed(f"expected the descriptor of a section, found {type(descriptor).__name__}")
    return int(descriptor), at
