"""JSON at the edges: dataclasses out, dataclasses in, with errors that name the place."""

from __future__ import annotations

from threading import Lock
from typing import Any, TypeVar

import msgspec

from dropforge.domain.errors import BadInput

T = TypeVar("T")

# msgspec learns a type when it is first asked for it, and a second thread that comes meanwhile crashes the process.
_learnt: set[object] = set()
_learning = Lock()


def _learn(kind: object) -> None:
    if kind not in _learnt:
        with _learning:
            msgspec.json.Decoder(kind)
            _learnt.add(kind)


def to_builtins(value: object) -> Any:
    """A dataclass (or a list of them) as JSON-ready dicts and lists; times become ISO 8601 text."""
    return msgspec.to_builtins(value)


def from_builtins(kind: type[T], value: object) -> T:
    """The reverse of `to_builtins`. Raises `BadInput` naming the place, what was wanted and what was found."""
    _learn(kind)
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise BadInput(f"not a {getattr(kind, '__name__', kind)}: {error}") from error


def to_json(value: object) -> bytes:
    """Canonical JSON: keys sorted, so equal values are equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def from_json(kind: type[T], text: bytes | str) -> T:
    """The value a JSON text holds. Raises `BadInput` as `from_builtins` does, also for what is no text or nested too deep."""
    _learn(kind)
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadInput(f"not a {getattr(kind, '__name__', kind)}: {error}") from error
