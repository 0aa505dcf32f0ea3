"""Single values of a pipeline.yaml: durations, sizes, names, commands; each says itself what it wants to be."""

from __future__ import annotations

import math
import re
import shlex
from datetime import timedelta
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, Strict, WithJsonSchema
from pydantic_core import PydanticCustomError

from dropforge.domain.gate import Action
from dropforge.domain.names import NAME

# What editors hold durations and sizes against.
DURATION_PATTERN = "^[0-9]+(s|m|h|d)$"
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(B|KB|MB|GB|TB)$"
_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1), "s": timedelta(seconds=1)}
_LONGEST = timedelta(days=366)
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(B|KB|MB|GB|TB)")
_BYTES = {"TB": 1024**4, "GB": 1024**3, "MB": 1024**2, "KB": 1024, "B": 1}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_BLOCK = re.compile(r"hour|day|week|month|rows:[1-9][0-9]{0,8}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# The two columns that every table gets from the platform.
PLATFORM_COLUMNS = ("_source", "_arrived_at")


def unfit(wanted: str) -> PydanticCustomError:
    """The error of a value that is not what was wanted."""
    # Braces are formatted by pydantic; none of the messages needs any.
    return PydanticCustomError("unfit", "wanted {wanted}", {"wanted": wanted})


def _duration(value: object) -> timedelta:
    wanted = 'a whole number with a unit, as in "30s", "15m", "1h" or "2d"'
    if isinstance(value, timedelta):
        found = value
    else:
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise unfit(wanted)
        found = int(match[1]) * _UNITS[match[2]] if int(match[1]) <= 366 * 86400 else _LONGEST * 2
    if not timedelta(seconds=1) <= found <= _LONGEST:
        raise unfit("at least 1s and at most 366d")
    return found


def duration_text(value: timedelta) -> str:
    """The shortest way to write a duration in a pipeline.yaml."""
    for unit, length in _UNITS.items():
        if value % length == timedelta(0):
            return f"{value // length}{unit}"
    return f"{math.ceil(value.total_seconds())}s"


def _size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        found = value
    else:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise unfit('a number of bytes, or a number with a unit, as in "500KB" or "2GB" (1KB is 1024 bytes)')
        found = int(float(match[1]) * _BYTES[match[2]])
    if not 1 <= found <= 2**63 - 1:
        raise unfit("at least 1 byte and at most 8388607TB")
    return found


def size_text(value: int) -> str:
    """The shortest way to write a size in a pipeline.yaml."""
    for unit, length in _BYTES.items():
        if value % length == 0:
            return f"{value // length}{unit}"
    return str(value)


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise unfit(
            "1 to 40 lower-case letters, digits and hyphens, starting with a letter and not ending with a hyphen"
        )
    return value


def _plain(value: str) -> str:
    if _CONTROL.search(value):
        raise unfit("text without line breaks and control characters")
    return value


def _column_name(value: str) -> str:
    if value in PLATFORM_COLUMNS:
        raise unfit("another name; _source and _arrived_at are columns that the platform adds")
    return value


def _drop_prefix(value: str) -> str:
    parts = value.split("/")
    if not value.endswith("/") or "\\" in value or any(part in ("", ".", "..") for part in parts[:-1]):
        raise unfit('a folder that ends in "/", without "..", "\\" or a leading "/", as in "flights/"')
    return value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise unfit(f"a regular expression; this one does not compile: {error}") from error
    return value


def _block(value: str) -> str:
    if not _BLOCK.fullmatch(value):
        raise unfit('hour, day, week, month, or "rows:N" with a whole number N, as in "rows:500"')
    return value


def _command(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(value)
    except ValueError as error:
        raise unfit(f"a command line; {str(error)[:1].lower()}{str(error)[1:]} in this one") from error


def _words(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not value[0]:
        raise unfit("a command with at least one word")
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise unfit("text without NUL characters")
    return value


def _scalar(value: object) -> str | int | float | bool:
    if isinstance(value, float) and not math.isfinite(value):
        raise unfit("a finite number")
    if isinstance(value, str):
        return _no_nul(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise unfit("a whole number of at most 64 bits")
    if isinstance(value, int | float):
        return value
    raise unfit("text, a number, true or false")


def _some(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise unfit("at least one value")
    return value


def _growing(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or any(not 1 <= each <= 99 for each in value) or sorted(set(value)) != list(value):
        raise unfit("percents from 1 to 99, each larger than the one before, as in [5, 25]")
    return value


def careful_action(value: Action) -> Action:
    """The action itself, when it may follow from a *worse* verdict."""
    if value is Action.PROMOTE:
        raise unfit("ask or keep; a worse model is never promoted by itself")
    return value


def _variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        raise unfit("a name of letters, digits and underscores that does not start with a digit")
    return value


def _own_variable(value: str) -> str:
    if _variable(value).upper().startswith("DROPFORGE_"):
        raise unfit("another name; DROPFORGE_... is what the platform sets")
    return value


_AnyText: TypeAlias = Annotated[str, Strict()]
_Line: TypeAlias = Annotated[str, Strict(), Field(min_length=1, max_length=500), AfterValidator(_plain)]

Whole: TypeAlias = Annotated[int, Strict()]
Number: TypeAlias = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag: TypeAlias = Annotated[bool, Strict()]
Text: TypeAlias = Annotated[str, Strict(), Field(max_length=10_000)]
Name: TypeAlias = Annotated[
    str, Strict(), AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^({NAME.pattern})$"})
]
# A column as others refer to it, and as it is declared.
Column: TypeAlias = _Line
ColumnName: TypeAlias = Annotated[_Line, AfterValidator(_column_name)]
DropPrefix: TypeAlias = Annotated[
    _Line, AfterValidator(_drop_prefix), WithJsonSchema({"type": "string", "pattern": "^[^/].*/$", "maxLength": 500})
]
Glob: TypeAlias = _Line
DimensionName: TypeAlias = _Line
Pattern: TypeAlias = Annotated[
    str, Strict(), Field(max_length=1000), AfterValidator(_pattern), WithJsonSchema({"type": "string"})
]
Block: TypeAlias = Annotated[
    str, Strict(), AfterValidator(_block), WithJsonSchema({"type": "string", "pattern": f"^({_BLOCK.pattern})$"})
]
Duration: TypeAlias = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(duration_text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]
Size: TypeAlias = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": SIZE_PATTERN}]}),
]
Word: TypeAlias = Annotated[str, Strict(), AfterValidator(_no_nul)]
Command: TypeAlias = Annotated[
    tuple[Word, ...],
    BeforeValidator(_command),
    AfterValidator(_words),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]
Scalar: TypeAlias = Annotated[Any, PlainValidator(_scalar), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Scalars: TypeAlias = Annotated[tuple[Scalar, ...], AfterValidator(_some)]
Percents: TypeAlias = Annotated[
    tuple[Whole, ...],
    AfterValidator(_growing),
    WithJsonSchema(
        {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 99}, "minItems": 1, "uniqueItems": True}
    ),
]
Parameter: TypeAlias = Annotated[_AnyText, AfterValidator(_variable)]
Variable: TypeAlias = Annotated[_AnyText, AfterValidator(_own_variable)]
