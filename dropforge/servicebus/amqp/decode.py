"""AMQP 1.0 bytes to values, for input that nobody vouches for: every length, count and depth is checked."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterator
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
from dropforge.servicebus.errors import BrokerError

MAX_DEPTH: Final = 32

# Reads the value whose constructor stands before `at`; returns it and where the next one starts. A value that runs
# past the end of the data is found by whoever asked first: `decode` and every compound compare the end they reach.
_Reader = Callable[[bytes, int, int], tuple[Any, int]]

_U16 = struct.Struct(">H").unpack_from
_I16 = struct.Struct(">h").unpack_from
_U32 = struct.Struct(">I").unpack_from
_I32 = struct.Struct(">i").unpack_from
_U64 = struct.Struct(">Q").unpack_from
_I64 = struct.Struct(">q").unpack_from
_F32 = struct.Struct(">f").unpack_from
_F64 = struct.Struct(">d").unpack_from


def malformed(text: str) -> BrokerError:
    """The refusal of bytes that are not AMQP."""
    return BrokerError("amqp:decode-error", text, 400)


def decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The value at `at` and the position after it. Raises `BrokerError` when there is no whole, valid value."""
    try:
        value, end = _READERS[data[at]](data, at + 1, 0)
    except (IndexError, ValueError, TypeError, struct.error) as error:
        raise malformed(f"expected an AMQP value at byte {at}, found none that is valid: {error}") from error
    if end > len(data):
        raise malformed(f"the AMQP value at byte {at} ends at byte {end}, but only {len(data)} bytes came")
    return value, end


def decode_whole(data: bytes) -> Any:
    """The one value that the data holds."""
    value, end = decode(data)
    if end != len(data):
        raise malformed(f"expected one AMQP value, found {len(data) - end} bytes more")
    return value


def skip(data: bytes, at: int) -> int:
    """The position after the value at `at`, without looking into it."""
    size = len(data)
    try:
        values = 1
        depth = 0
        while values:
            constructor = data[at]
            if constructor == 0:
                values += 1
                depth += 1
                if depth > MAX_DEPTH:
                    raise malformed(f"descriptors are nested deeper than {MAX_DEPTH}")
                at += 1
                continue
            width = _WIDTHS[constructor]
            if width >= 0:
                at += 1 + width
            elif width == _SIZE8:
                at += 2 + data[at + 1]
            elif width == _SIZE32:
                at += 5 + _U32(data, at + 1)[0]
            else:
                raise malformed(f"0x{constructor:02x} is no AMQP constructor")
            values -= 1
    except (IndexError, struct.error) as error:
        raise malformed(f"an AMQP value is cut off at byte {size}") from error
    if at > size:
        raise malformed(f"an AMQP value ends at byte {at}, but only {size} bytes came")
    return at


def split_list(data: bytes, at: int = 0) -> list[Raw]:
    """The items of a list or map, still encoded; null is an empty list."""
    constructor = data[at] if at < len(data) else None
    if constructor in (0xC0, 0xC1):
        head, sizes = 3, "BB"
    elif constructor in (0xD0, 0xD1):
        head, sizes = 9, "II"
    elif constructor in (0x40, 0x45):
        return []
    else:
        raise malformed(f"expected a list or a map at byte {at}, found " + _shown(constructor))
    end = skip(data, at)
    count = int(struct.unpack_from(">x" + sizes, data, at)[1]) if end - at >= head else end
    at += head
    if count > end - at:
        raise malformed(f"a list of {count} items cannot stand in {max(0, end - at)} bytes")
    items = []
    for _ in range(count):
        after = skip(data, at)
        items.append(Raw(data[at:after]))
        at = after
    if at != end:
        raise malformed(f"the items of a list end at byte {at}, the list at byte {end}")
    return items


def split_map(data: bytes, at: int = 0) -> Iterator[tuple[Any, Raw]]:
    """The entries of a map: key decoded, value still encoded. Null is an empty map."""
    if at < len(data) and data[at] not in (0xC1, 0xD1, 0x40):
        raise malformed(f"expected a map at byte {at}, found " + _shown(data[at]))
    items = split_list(data, at)
    if len(items) % 2:
        raise malformed("a map has a key without a value")
    for place in range(0, len(items), 2):
        key = decode(items[place])[0]
        if isinstance(key, list | dict | Described):
            raise malformed("expected the keys of a map as simple values, found a compound one")
        yield key, items[place + 1]


def _shown(constructor: int | None) -> str:
    return "the end" if constructor is None else f"0x{constructor:02x}"


# ---------------------------------------------------------------------------------------------------- compounds


def _items(data: bytes, at: int, end: int, count: int, depth: int) -> list[Any]:
    # Every item of a list takes a byte, so a count is bounded by the bytes that are there.
    if end > len(data) or count > end - at:
        raise ValueError(f"{count} items do not fit in what is left")
    if depth >= MAX_DEPTH:
        raise ValueError(f"values are nested deeper than {MAX_DEPTH}")
    depth += 1
    readers = _READERS
    found: list[Any] = []
    for _ in range(count):
        constructor = data[at]
        at += 1
        # Most fields of a performative or of a message's properties are null.
        if constructor == 0x40:
            found.append(None)
            continue
        value, at = readers[constructor](data, at, depth)
        found.append(value)
    if at != end:
        raise ValueError(f"items end at byte {at}, their list at byte {end}")
    return found


def _list8(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 1 + data[at]
    return _items(data, at + 2, end, data[at + 1], depth), end


def _list32(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 4 + _U32(data, at)[0]
    return _items(data, at + 8, end, _U32(data, at + 4)[0], depth), end


def _paired(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a map has a key without a value")
    each = iter(items)
    return dict(zip(each, each, strict=True))


def _map8(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    items, end = _list8(data, at, depth)
    return _paired(items), end


def _map32(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    items, end = _list32(data, at, depth)
    return _paired(items), end


def _array8(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 1 + data[at]
    return _array(data, at + 2, end, data[at + 1], depth), end


def _array32(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 4 + _U32(data, at)[0]
    return _array(data, at + 8, end, _U32(data, at + 4)[0], depth), end


def _array(data: bytes, at: int, end: int, count: int, depth: int) -> Array:
    # Items of no width (0x41, 0x45, ...) would let a few bytes ask for any number of items; they are refused with
    # the same rule, and no encoder writes them.
    if end > len(data) or count > end - at:
        raise ValueError(f"{count} items do not fit in what is left")
    if depth >= MAX_DEPTH:
        raise ValueError(f"values are nested deeper than {MAX_DEPTH}")
    if at == end:
        return Array(type(None))
    depth += 1
    constructor = data[at]
    at += 1
    descriptor = None
    if constructor == 0:
        descriptor, at = _READERS[data[at]](data, at + 1, depth)
        constructor = data[at]
        at += 1
    reader = _READERS[constructor]
    found = Array(Described if descriptor is not None else _TYPES.get(constructor, type(None)))
    for _ in range(count):
        value, at = reader(data, at, depth)
        found.append(value if descriptor is None else Described(descriptor, value))
    if at != end:
        raise ValueError(f"items end at byte {at}, their array at byte {end}")
    return found


def _described(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth >= MAX_DEPTH:
        raise ValueError(f"values are nested deeper than {MAX_DEPTH}")
    descriptor, at = _READERS[data[at]](data, at + 1, depth + 1)
    value, at = _READERS[data[at]](data, at + 1, depth + 1)
    return Described(descriptor, value), at


# ---------------------------------------------------------------------------------------------------- primitives


def _binary8(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 1 + data[at]
    return data[at + 1 : end], end


def _binary32(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 4 + _U32(data, at)[0]
    return data[at + 4 : end], end


def _string8(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 1 + data[at]
    return str(data[at + 1 : end], "utf-8"), end


def _string32(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 4 + _U32(data, at)[0]
    return str(data[at + 4 : end], "utf-8"), end


def _symbol8(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 1 + data[at]
    return Symbol(str(data[at + 1 : end], "ascii")), end


def _symbol32(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 4 + _U32(data, at)[0]
    return Symbol(str(data[at + 4 : end], "ascii")), end


def _boolean(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if data[at] > 1:
        raise ValueError(f"0x{data[at]:02x} is no boolean")
    return data[at] == 1, at + 1


def _char(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    return Char(str(data[at : at + 4], "utf-32-be")), at + 4


def _uuid(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    return uuid.UUID(bytes=data[at : at + 16]), at + 16


def _opaque(kind: type[bytes], width: int) -> _Reader:
    return lambda data, at, depth: (kind(data[at : at + width]), at + width)


def _constant(value: Any) -> _Reader:
    return lambda data, at, depth: (value, at)


def _number(unpack: Callable[[bytes, int], tuple[Any, ...]], width: int, kind: type | None = None) -> _Reader:
    if kind is None:
        return lambda data, at, depth: (unpack(data, at)[0], at + width)
    return lambda data, at, depth: (kind(unpack(data, at)[0]), at + width)


def _small(kind: type) -> _Reader:
    return lambda data, at, depth: (kind(data[at]), at + 1)


def _small_signed(kind: type) -> _Reader:
    return lambda data, at, depth: (kind((data[at] ^ 0x80) - 0x80), at + 1)


def _unknown(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    raise ValueError(f"0x{data[at - 1]:02x} is no AMQP constructor")


_KNOWN: Final[dict[int, _Reader]] = {
    0x00: _described,
    0x40: _constant(None),
    0x41: _constant(True),
    0x42: _constant(False),
    0x43: _constant(UInt(0)),
    0x44: _constant(ULong(0)),
    0x45: lambda data, at, depth: ([], at),
    0x50: _small(UByte),
    0x51: _small_signed(Byte),
    0x52: _small(UInt),
    0x53: _small(ULong),
    0x54: _small_signed(Int),
    0x55: _small_signed(int),
    0x56: _boolean,
    0x60: _number(_U16, 2, UShort),
    0x61: _number(_I16, 2, Short),
    0x70: _number(_U32, 4, UInt),
    0x71: _number(_I32, 4, Int),
    0x72: _number(_F32, 4, Float),
    0x73: _char,
    0x74: _opaque(Decimal32, 4),
    0x80: _number(_U64, 8, ULong),
    0x81: _number(_I64, 8),
    0x82: _number(_F64, 8),
    0x83: _number(_I64, 8, Timestamp),
    0x84: _opaque(Decimal64, 8),
    0x94: _opaque(Decimal128, 16),
    0x98: _uuid,
    0xA0: _binary8,
    0xA1: _string8,
    0xA3: _symbol8,
    0xB0: _binary32,
    0xB1: _string32,
    0xB3: _symbol32,
    0xC0: _list8,
    0xC1: _map8,
    0xD0: _list32,
    0xD1: _map32,
    0xE0: _array8,
    0xF0: _array32,
}
_READERS: Final[list[_Reader]] = [_KNOWN.get(constructor, _unknown) for constructor in range(256)]

_SIZE8, _SIZE32, _NO_SUCH = -1, -2, -3
_BY_CLASS = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}
# The bytes after each constructor, or how its size is written.
_WIDTHS: Final = [
    _NO_SUCH
    if constructor not in _KNOWN
    else _BY_CLASS.get(constructor >> 4, _SIZE8 if constructor >> 4 in (0xA, 0xC, 0xE) else _SIZE32)
    for constructor in range(256)
]

_TYPES: Final[dict[int, type]] = {
    0x50: UByte,
    0x51: Byte,
    0x52: UInt,
    0x53: ULong,
    0x54: Int,
    0x55: int,
    0x56: bool,
    0x60: UShort,
    0x61: Short,
    0x70: UInt,
    0x71: Int,
    0x72: Float,
    0x73: Char,
    0x74: Decimal32,
    0x80: ULong,
    0x81: int,
    0x82: float,
    0x83: Timestamp,
    0x84: Decimal64,
    0x94: Decimal128,
    0x98: uuid.UUID,
    0xA0: bytes,
    0xA1: str,
    0xA3: Symbol,
    0xB0: bytes,
    0xB1: str,
    0xB3: Symbol,
    0xC0: list,
    0xC1: dict,
    0xD0: list,
    0xD1: dict,
    0xE0: Array,
    0xF0: Array,
}
