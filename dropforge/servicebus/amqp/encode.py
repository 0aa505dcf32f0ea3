"""Values to AMQP 1.0 bytes, each in its shortest form."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dropforge.servicebus.amqp.values import (
    Array,
    Byte,
    Char,
    Decimal32,
    Decimal64,
    Decimal128,
    Described,
    Float,
    Int,
    Raw,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    UShort,
)
from dropforge.servicebus.errors import bad_field

NULL: Final = b"\x40"
TRUE: Final = b"\x41"
FALSE: Final = b"\x42"

_Writer = Callable[[Any], bytes]

_U16 = struct.Struct(">H").pack
_I16 = struct.Struct(">h").pack
_U32 = struct.Struct(">I").pack
_I32 = struct.Struct(">i").pack
_U64 = struct.Struct(">Q").pack
_I64 = struct.Struct(">q").pack
_F32 = struct.Struct(">f").pack
_F64 = struct.Struct(">d").pack


def encode(value: Any) -> bytes:
    """The value with its constructor. Raises `BrokerError` for a number or text that its AMQP type cannot hold,
    `TypeError` for a value of any other type."""
    writer = _WRITERS.get(type(value))
    if writer is None:
        raise TypeError(f"expected a value of an AMQP type, found {type(value).__name__}")
    try:
        return writer(value)
    except (struct.error, ValueError, OverflowError) as error:
        raise bad_field(f"the value cannot be written as {type(value).__name__}: {error}") from error


def list_of(items: Iterable[bytes]) -> bytes:
    """A list of items that are encoded already."""
    parts = list(items)
    return _compound(0xC0, len(parts), b"".join(parts)) if parts else b"\x45"


def map_of(entries: Mapping[Any, bytes]) -> bytes:
    """A map whose values are encoded already."""
    return raw_map(2 * len(entries), b"".join([encode(key) + value for key, value in entries.items()]))


def raw_map(count: int, body: bytes) -> bytes:
    """A map of `count` items (keys and values both count), all encoded already."""
    return _compound(0xC1, count, body)


def described(code: int, body: bytes) -> bytes:
    """A value with one of AMQP's own descriptors, all of which are below 256."""
    return b"\x00\x53" + bytes((code,)) + body


def _variable(constructor: int, data: bytes) -> bytes:
    size = len(data)
    if size < 256:
        return bytes((constructor, size)) + data
    return bytes((constructor + 16,)) + _U32(size) + data


def _compound(constructor: int, count: int, body: bytes) -> bytes:
    size = len(body) + 1
    if size < 256 and count < 256:
        return bytes((constructor, size, count)) + body
    return bytes((constructor + 16,)) + _U32(size + 3) + _U32(count) + body


def _uint(value: int) -> bytes:
    return b"\x43" if value == 0 else bytes((0x52, value)) if 0 < value < 256 else b"\x70" + _U32(value)


def _ulong(value: int) -> bytes:
    return b"\x44" if value == 0 else bytes((0x53, value)) if 0 < value < 256 else b"\x80" + _U64(value)


def _int(value: int) -> bytes:
    return bytes((0x54, value & 0xFF)) if -128 <= value < 128 else b"\x71" + _I32(value)


def _long(value: int) -> bytes:
    return bytes((0x55, value & 0xFF)) if -128 <= value < 128 else b"\x81" + _I64(value)


def _opaque(constructor: int, width: int) -> _Writer:
    def write(value: bytes) -> bytes:
        if len(value) != width:
            raise ValueError(f"expected {width} bytes, found {len(value)}")
        return bytes((constructor,)) + value

    return write


def _char(value: str) -> bytes:
    if len(value) != 1:
        raise ValueError(f"expected one character, found {len(value)}")
    return value.encode("utf-32-be")


def _sized32(data: bytes) -> bytes:
    return _U32(len(data)) + data


def _wide_compound(count: int, body: bytes) -> bytes:
    return _U32(len(body) + 4) + _U32(count) + body


def _array(value: Array) -> bytes:
    return b"\xf0" + _array_body(value)


def _array_body(value: Array) -> bytes:
    if not value and value.of is type(None):
        return _wide_compound(0, b"")
    if value.of is Described:
        return _described_array_body(value)
    element = _ELEMENTS.get(value.of)
    if element is None:
        raise ValueError(f"there is no AMQP array of {value.of.__name__}")
    constructor, write = element
    return _wide_compound(len(value), bytes((constructor,)) + b"".join(map(write, value)))


def _described_array_body(value: Array) -> bytes:
    if not value:
        return _wide_compound(0, b"")
    first: Described = value[0]
    if type(first.value) not in _ELEMENTS:
        raise ValueError(f"there is no AMQP array of described values of type {type(first.value).__name__}")
    constructor, write = _ELEMENTS[type(first.value)]
    head = b"\x00" + encode(first.descriptor) + bytes((constructor,))
    return _wide_compound(len(value), head + b"".join(write(item.value) for item in value))


def _map_items(value: Mapping[Any, Any]) -> bytes:
    return b"".join([encode(key) + encode(item) for key, item in value.items()])


_WRITERS: Final[dict[type, _Writer]] = {
    type(None): lambda value: NULL,
    bool: lambda value: TRUE if value else FALSE,
    UByte: lambda value: b"\x50" + value.to_bytes(1, "big"),
    UShort: lambda value: b"\x60" + _U16(value),
    UInt: _uint,
    ULong: _ulong,
    Byte: lambda value: b"\x51" + value.to_bytes(1, "big", signed=True),
    Short: lambda value: b"\x61" + _I16(value),
    Int: _int,
    int: _long,
    Timestamp: lambda value: b"\x83" + _I64(value),
    Float: lambda value: b"\x72" + _F32(value),
    float: lambda value: b"\x82" + _F64(value),
    Char: lambda value: b"\x73" + _char(value),
    Decimal32: _opaque(0x74, 4),
    Decimal64: _opaque(0x84, 8),
    Decimal128: _opaque(0x94, 16),
    uuid.UUID: lambda value: b"\x98" + value.bytes,
    bytes: lambda value: _variable(0xA0, value),
    bytearray: lambda value: _variable(0xA0, bytes(value)),
    memoryview: lambda value: _variable(0xA0, bytes(value)),
    str: lambda value: _variable(0xA1, value.encode("utf-8")),
    Symbol: lambda value: _variable(0xA3, value.encode("ascii")),
    Raw: bytes,
    list: lambda value: list_of([encode(item) for item in value]),
    dict: lambda value: raw_map(2 * len(value), _map_items(value)),
    Array: _array,
    Described: lambda value: b"\x00" + encode(value.descriptor) + encode(value.value),
}

# What stands before the items of an array, and how one item is written there: one width for all.
_ELEMENTS: Final[dict[type, tuple[int, _Writer]]] = {
    bool: (0x56, lambda value: b"\x01" if value else b"\x00"),
    UByte: (0x50, lambda value: value.to_bytes(1, "big")),
    UShort: (0x60, _U16),
    UInt: (0x70, _U32),
    ULong: (0x80, _U64),
    Byte: (0x51, lambda value: value.to_bytes(1, "big", signed=True)),
    Short: (0x61, _I16),
    Int: (0x71, _I32),
    int: (0x81, _I64),
    Timestamp: (0x83, _I64),
    Float: (0x72, _F32),
    float: (0x82, _F64),
    Char: (0x73, _char),
    Decimal32: (0x74, bytes),
    Decimal64: (0x84, bytes),
    Decimal128: (0x94, bytes),
    uuid.UUID: (0x98, lambda value: value.bytes),
    bytes: (0xB0, _sized32),
    str: (0xB1, lambda value: _sized32(value.encode("utf-8"))),
    Symbol: (0xB3, lambda value: _sized32(value.encode("ascii"))),
    list: (0xD0, lambda value: _wide_compound(len(value), b"".join(map(encode, value)))),
    dict: (0xD1, lambda value: _wide_compound(2 * len(value), _map_items(value))),
    Array: (0xF0, _array_body),
}
