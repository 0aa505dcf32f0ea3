"""The AMQP 1.0 types that Python has no type for. A plain `int` is a long, a plain `float` a double."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Symbol(str):
    """A name out of a fixed set, in ASCII. Equal to the `str` of the same text."""

    __slots__ = ()


class UByte(int):
    __slots__ = ()


class UShort(int):
    __slots__ = ()


class UInt(int):
    __slots__ = ()


class ULong(int):
    __slots__ = ()


class Byte(int):
    __slots__ = ()


class Short(int):
    __slots__ = ()


class Int(int):
    __slots__ = ()


class Timestamp(int):
    """Milliseconds since 1970 (UTC)."""

    __slots__ = ()


class Float(float):
    """A float of 32 bits."""

    __slots__ = ()


class Char(str):
    """One Unicode character."""

    __slots__ = ()


class Decimal32(bytes):
    """A decimal as it came, 4 bytes; nobody here computes with one."""

    __slots__ = ()


class Decimal64(bytes):
    __slots__ = ()


class Decimal128(bytes):
    __slots__ = ()


class Raw(bytes):
    """A value that is encoded already, constructor included; `encode` passes it through."""

    __slots__ = ()


class Described:
    """A value with the descriptor that says what it means."""

    __slots__ = ("descriptor", "value")

    def __init__(self, descriptor: Any, value: Any) -> None:
        self.descriptor = descriptor
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Described):
            return NotImplemented
        return bool(self.descriptor == other.descriptor and self.value == other.value)

    def __hash__(self) -> int:
        return hash((self.descriptor, self.value))

    def __repr__(self) -> str:
        return f"Described({self.descriptor!r}, {self.value!r})"


class Array(list[Any]):
    """Values of one type. `of` is that type, which an empty array has too."""

    __slots__ = ("of",)

    def __init__(self, of: type, values: Iterable[Any] = ()) -> None:
        super().__init__(values)
        self.of = of

    def __repr__(self) -> str:
        return f"Array({self.of.__name__}, {list.__repr__(self)})"
