"""What the operators of SQL expressions do to values; None is unknown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4

from dropforge.servicebus.amqp.values import Timestamp

_SMALLEST, _LARGEST = -(1 << 63), (1 << 63) - 1
# What one `_` of a pattern stands for, in a pattern cut into pieces.
_ANY = ""


class FilterError(Exception):
    """A filter or action that cannot be evaluated for a message."""


def truth(value: Any) -> bool | None:
    """A value as a condition: only booleans are, anything else is unknown."""
    return value if isinstance(value, bool) else None


def equal(left: Any, right: Any) -> bool | None:
    """Values of different kinds are not equal; they are no error."""
    if left is None or right is None:
        return None
    if (isinstance(left, UUID) and isinstance(right, str)) or (isinstance(left, str) and isinstance(right, UUID)):
        return str(left).lower() == str(right).lower()
    return _kind(left) == _kind(right) and bool(left == right)


def compare(left: Any, sign: str, right: Any) -> bool | None:
    """Larger and smaller exist between values of one kind; otherwise it is unknown."""
    if left is None or right is None or _kind(left) != _kind(right) or isinstance(left, bool):
        return None
    try:
        if sign == "<":
            return bool(left < right)
        if sign == "<=":
            return bool(left <= right)
        if sign == ">":
            return bool(left > right)
        return bool(left >= right)
    except TypeError:
        return None


def member(value: Any, choices: Sequence[Any]) -> bool | None:
    if value is None:
        return None
    unknown = False
    for choice in choices:
        same = equal(value, choice)
        if same:
            return True
        unknown = unknown or same is None
    return None if unknown else False


def like(value: Any, pattern: Any, escape: Any) -> bool | None:
    """`%` stands for any text, `_` for any character. Takes time in proportion to value times pattern at most."""
    if value is None or pattern is None or escape is None:
        return None
    if not isinstance(pattern, str):
        raise FilterError(f"LIKE wants a pattern in text, not {pattern!r}")
    if not isinstance(escape, str) or len(escape) > 1:
        raise FilterError(f"ESCAPE wants one character, not {escape!r}")
    if not isinstance(value, str):
        return None
    return _matches(value, _pieces(pattern, escape))


def negate(value: Any, minus: bool) -> Any:
    if value is None:
        return None
    number = _as_number(value)
    return _within(-number if minus else number)


def add(left: Any, right: Any) -> Any:
    if isinstance(left, str) or isinstance(right, str):
        return f"{_text(left)}{_text(right)}"
    return _within(_as_number(left) + _as_number(right))


def subtract(left: Any, right: Any) -> Any:
    return _within(_as_number(left) - _as_number(right))


def multiply(left: Any, right: Any) -> Any:
    return _within(_as_number(left) * _as_number(right))


def divide(left: Any, right: Any) -> Any:
    dividend, divisor = _as_number(left), _as_number(right)
    if isinstance(dividend, int) and isinstance(divisor, int):
        if divisor == 0:
            raise FilterError(f"{dividend} divided by zero")
        quotient = abs(dividend) // abs(divisor)
        return _within(quotient if (dividend < 0) == (divisor < 0) else -quotient)
    if divisor == 0:
        return math.nan if dividend == 0 or math.isnan(dividend) else math.copysign(math.inf, dividend)
    return dividend / divisor


def remainder(left: Any, right: Any) -> Any:
    """With the sign of the dividend, as in C#."""
    dividend, divisor = _as_number(left), _as_number(right)
    if isinstance(dividend, int) and isinstance(divisor, int):
        if divisor == 0:
            raise FilterError(f"{dividend} modulo zero")
        rest = abs(dividend) % abs(divisor)
        return rest if dividend >= 0 else -rest
    if divisor == 0 or math.isinf(dividend):
        return math.nan
    return math.fmod(dividend, divisor)


def new_id(_: object) -> UUID:
    return uuid4()


def _kind(value: Any) -> type:
    if isinstance(value, bool):
        return bool
    if isinstance(value, Timestamp):
        return Timestamp
    for kind in (float, str, bytes):
        if isinstance(value, kind):
            return kind
    return float if isinstance(value, int) else type(value)


def _as_number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FilterError(f"a number was wanted to compute with, {value!r} was found")
    return float(value) if isinstance(value, float) else int(value)


def _within(value: int | float) -> int | float:
    if isinstance(value, int) and not _SMALLEST <= value <= _LARGEST:
        raise FilterError(f"{value} is beyond 64 bits")
    return value


def _text(value: Any) -> str:
    return str(value) if not isinstance(value, bool) else "True" if value else "False"


@lru_cache(maxsize=256)
def _pieces(pattern: str, escape: str) -> tuple[tuple[str, ...], ...]:
    """The pattern cut at each `%`; in a piece each entry is one character, or `_ANY`."""
    pieces: list[list[str]] = [[]]
    escaped = False
    for character in pattern:
        if escaped or (character not in ("%", "_") and character != escape):
            pieces[-1].append(character)
            escaped = False
        elif character == escape:
            escaped = True
        elif character == "%":
            pieces.append([])
        else:
            pieces[-1].append(_ANY)
    return tuple(tuple(piece) for piece in pieces)


def _matches(value: str, pieces: tuple[tuple[str, ...], ...]) -> bool:
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return len(value) == len(first) and _fits(value, 0, first)
    at, end = len(first), len(value) - len(last)
    if at > end or not _fits(value, 0, first) or not _fits(value, end, last):
        return False
    # Each piece at the first place where it fits: a later one would leave less room for the others.
    for piece in pieces[1:-1]:
        while at + len(piece) <= end and not _fits(value, at, piece):
            at += 1
        at += len(piece)
        if at > end:
            return False
    return True


def _fits(value: str, at: int, piece: tuple[str, ...]) -> bool:
    return all(wanted == _ANY or value[at + index] == wanted for index, wanted in enumerate(piece))
