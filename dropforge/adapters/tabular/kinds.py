"""The six kinds of column a table has, and how values become one of them without losing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dropforge.domain.errors import BadInput

# A kind is what `Column.type` says; the Arrow type is how a table holds it. Times are kept in UTC.
ARROW: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "date32": pa.date32(),
}
# What pipeline.yaml calls them.
DECLARED = {
    "string": "string",
    "int": "int64",
    "float": "double",
    "bool": "bool",
    "timestamp": "timestamp",
    "date": "date32",
}
NUMBERS = ("int64", "double")
# Text that stands for "no value" where a number, a time or a truth value is wanted. In a text column only the empty
# cell does: "NA" may be Namibia.
NULL_WORDS = ("", "NA", "N/A", "n/a", "#N/A", "NULL", "Null", "null", "NaN", "nan", "-nan", "-NaN", "None")

# Natural kinds of a file's columns that are not kinds of a table.
TEXT = "text"  # CSV: nothing but characters
EMPTY = "empty"  # no value at all

# What the text of a column may turn out to be, narrowest first, given what it was so far.
_WIDER: dict[str | None, tuple[str, ...]] = {
    None: ("int64", "double", "bool", "date32", "timestamp"),
    "int64": ("int64", "double"),
    "double": ("double",),
    "bool": ("bool",),
    "date32": ("date32", "timestamp"),
    "timestamp": ("timestamp",),
    "string": (),
}
# Numbers only by looks: a leading zero (postal codes) or, once it is no int64, more digits than a double keeps (ids).
_NOT_A_NUMBER = {"int64": r"^[+-]?0[0-9xX]", "double": r"^[+-]?(?:0[0-9xX]|[0-9]{18})"}
_ZONE = r"\d[T ]\d{2}.*(?:Z|[+-]\d{2}(?::?\d{2})?)$"
_EXACT_IN_DOUBLE = 2**53
# Values looked at one by one when a block does not convert as a whole; beyond that, bad slices are dropped uncounted.
SALVAGE_LIMIT = 1000
_DECIMAL = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# What text must look like, at the least, to be read as that kind; a look costs far less than a try.
_LOOKS = {
    "int64": rf"^(?:{_DECIMAL}|[+-]?0[xX][0-9a-fA-F]+)$",
    "double": rf"^(?:{_DECIMAL}|[+-]?(?i:inf(?:inity)?|nan.*))$",
    "bool": r"^(?i:true|false|0|1)$",
}

_CAST_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)


@dataclass(frozen=True)
class Converted:
    """An array of the wanted kind; values that do not fit are null in it and their positions are in `bad`."""

    values: pa.Array
    bad: tuple[int, ...] = ()


def kind_of(name: str) -> str:
    """The kind that a type name means, whether from pipeline.yaml or from a table. Raises `BadInput`."""
    kind = name if name in ARROW else DECLARED.get(name)
    if kind is None:
        raise BadInput(f"unknown column type {name!r}; choose one of {sorted(DECLARED)}")
    return kind


def natural_kind(arrow: pa.DataType) -> str | None:
    """The kind that an Arrow type naturally is; None when tables have no such columns (lists, structs, bytes)."""
    types = pa.types
    if types.is_dictionary(arrow):
        return natural_kind(arrow.value_type)
    checks: Sequence[tuple[Any, str]] = (
        (types.is_null, EMPTY),
        (types.is_boolean, "bool"),
        (types.is_integer, "int64"),
        (types.is_floating, "double"),
        (types.is_decimal, "double"),
        (types.is_string, "string"),
        (types.is_large_string, "string"),
        (types.is_string_view, "string"),
        (types.is_timestamp, "timestamp"),
        (types.is_date, "date32"),
    )
    return next((kind for check, kind in checks if check(arrow)), None)


def convert(values: pa.Array, kind: str, limit: int | None = SALVAGE_LIMIT) -> Converted:
    """The values as that kind. Nothing is rounded, cut or guessed: what does not fit exactly is bad.

    Naive times are UTC; not-a-number is null; integral floats fit integers; numbers fit text. Past `limit` bad values, good
    ones beside them are lost too, and not in `bad`; None: never.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    try:
        return Converted(_cast(values, kind))
    except _CAST_ERRORS:
        pass
    hopeless: list[int] = []
    if limit is None and kind in _LOOKS and natural_kind(values.type) == "string":
        values, hopeless = _without_hopeless(values.cast(pa.string()), kind)
    parts: list[pa.Array] = []
    bad: list[int] = []
    _salvage(values, kind, 0, parts, bad, limit)
    return Converted(pa.concat_arrays(parts), tuple(sorted(hopeless + bad)))


def infer_text(kind: str | None, values: pa.Array) -> str | None:
    """The kind of a text column after these values, when it was `kind` after the ones before; None: no value yet."""
    values = _words_to_null(pc.utf8_trim_whitespace(values))
    if values.null_count == len(values):
        return kind
    for candidate in _WIDER[kind]:
        if _reads_as(values, candidate):
            return candidate
    return "string"


def _reads_as(values: pa.Array, kind: str) -> bool:
    if kind in NUMBERS and pc.any(pc.match_substring_regex(values, _NOT_A_NUMBER[kind])).as_py():
        return False
    try:
        _text_to_timestamp(values) if kind == "timestamp" else values.cast(ARROW[kind])
    except _CAST_ERRORS:
        return False
    return True


def _without_hopeless(values: pa.Array, kind: str) -> tuple[pa.Array, list[int]]:
    """The text with null for what plainly is not of that kind, and where that was: to halve for each takes minutes."""
    nothing = pa.scalar(None, pa.string())
    text = _words_to_null(pc.utf8_trim_whitespace(values))
    wrong = pc.invert(pc.match_substring_regex(text, _LOOKS[kind]))
    if kind == "int64":
        plain = pc.match_substring_regex(text, r"^-?[0-9]+$")
        decimal = pc.match_substring_regex(text, f"^{_DECIMAL}$")
        numbers = pc.if_else(decimal, text, nothing).cast(pa.float64())
        # As `_integral` has it; a double also tells which plain ones are certainly too large.
        most = pc.if_else(plain, 2.0**63, _EXACT_IN_DOUBLE - 1.0)
        broken = pc.or_(pc.not_equal(pc.floor(numbers), numbers), pc.greater(pc.abs(numbers), most))
        wrong = pc.or_(wrong, pc.fill_null(broken, False))
        # "3.0" and 17 digits do not convert together; 3 and 17 digits do.
        written = pc.and_(decimal, pc.invert(pc.or_(plain, wrong)))
        text = pc.if_else(written, pc.if_else(written, numbers, None).cast(pa.int64()).cast(pa.string()), text)
    wrong = pc.fill_null(wrong, False)
    return pc.if_else(wrong, nothing, text), pc.indices_nonzero(wrong).to_pylist()


def _salvage(
    values: pa.Array, kind: str, offset: int, parts: list[pa.Array], bad: list[int], limit: int | None
) -> None:
    """Halve until what does not convert stands alone."""
    try:
        parts.append(_cast(values, kind))
        return
    except _CAST_ERRORS:
        pass
    if len(values) == 1 or (limit is not None and len(bad) >= limit):
        parts.append(pa.nulls(len(values), ARROW[kind]))
        bad.append(offset)
        return
    middle = len(values) // 2
    _salvage(values[:middle], kind, offset, parts, bad, limit)
    _salvage(values[middle:], kind, offset + middle, parts, bad, limit)


def _cast(values: pa.Array, kind: str) -> pa.Array:
    source, target = values.type, ARROW[kind]
    if pa.types.is_null(source):
        return pa.nulls(len(values), target)
    if pa.types.is_large_string(source) or pa.types.is_string_view(source):
        values, source = values.cast(pa.string()), pa.string()
    if pa.types.is_floating(source):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, source), values)
    if source == target:
        return values
    if pa.types.is_string(source):
        return _from_text(values, kind)
    if kind == "timestamp":
        return _to_timestamp(values)
    if kind == "date32":
        return _to_date(values)
    if kind == "bool":
        return _to_bool(values)
    if pa.types.is_temporal(source) and kind != "string":
        raise pa.ArrowInvalid(f"{source} is not {kind}")
    return values.cast(target)


def _from_text(values: pa.Array, kind: str) -> pa.Array:
    try:
        return _read_text(values, kind)
    except _CAST_ERRORS:
        pass
    values = _words_to_null(pc.utf8_trim_whitespace(values))
    try:
        return _read_text(values, kind)
    except _CAST_ERRORS:
        if kind == "int64":
            return _integral(values.cast(pa.float64()))
        if kind == "date32":
            return _to_date(_text_to_timestamp(values))
        raise


def _read_text(values: pa.Array, kind: str) -> pa.Array:
    if kind == "timestamp":
        return _text_to_timestamp(values)
    result = values.cast(ARROW[kind])
    return pc.if_else(pc.is_nan(result), pa.scalar(None, result.type), result) if kind == "double" else result


def _integral(values: pa.Array) -> pa.Array:
    """Whole numbers written as floats ("3.0"), as pandas writes integers beside missing values."""
    if pc.any(pc.greater_equal(pc.abs(values), _EXACT_IN_DOUBLE)).as_py():
        raise pa.ArrowInvalid("too large to be exact")
    return values.cast(pa.int64())


def _words_to_null(values: pa.Array) -> pa.Array:
    words = pc.is_in(values, value_set=pa.array(NULL_WORDS))
    return pc.if_else(words, pa.scalar(None, pa.string()), values) if pc.any(words).as_py() else values


def _text_to_timestamp(values: pa.Array) -> pa.Array:
    try:
        return _parse_times(values)
    except _CAST_ERRORS:
        # Finer than microseconds is cut; "UTC" and a blank before the zone are as good as "Z".
        plain = pc.replace_substring_regex(values, r"(\.\d{6})\d+", r"\1")
        return _parse_times(pc.replace_substring_regex(plain, r"\s*(?:UTC|GMT|z|Z)$", "Z"))


def _parse_times(values: pa.Array) -> pa.Array:
    zoned = pc.match_substring_regex(values, _ZONE)
    if not pc.any(zoned).as_py():
        return pc.assume_timezone(values.cast(pa.timestamp("us")), "UTC")
    nothing = pa.scalar(None, pa.string())
    with_zone = pc.if_else(zoned, values, nothing).cast(ARROW["timestamp"])
    naive = pc.if_else(zoned, nothing, values).cast(pa.timestamp("us"))
    return pc.coalesce(with_zone, pc.assume_timezone(naive, "UTC"))


def _to_timestamp(values: pa.Array) -> pa.Array:
    source = values.type
    if pa.types.is_timestamp(source) and source.tz is not None:
        return values.cast(ARROW["timestamp"], safe=source.unit == "s")
    if pa.types.is_timestamp(source) or pa.types.is_date(source):
        # Nanoseconds are cut to microseconds, on purpose; seconds could overflow, and may not.
        fine = pa.types.is_timestamp(source) and source.unit == "ns"
        return pc.assume_timezone(values.cast(pa.timestamp("us"), safe=not fine), "UTC")
    raise pa.ArrowInvalid(f"{source} is not a time")


def _to_date(values: pa.Array) -> pa.Array:
    if pa.types.is_date(values.type):
        return values.cast(pa.date32())
    times = _to_timestamp(values)
    dates = times.cast(pa.date32(), safe=False)
    if not pc.all(pc.equal(_to_timestamp(dates), times)).as_py():
        raise pa.ArrowInvalid("a time of day is not a date")
    return dates


def _to_bool(values: pa.Array) -> pa.Array:
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise pa.ArrowInvalid(f"{values.type} is not a truth value")
    if not pc.all(pc.is_in(values, value_set=pa.array([0, 1, None], values.type))).as_py():
        raise pa.ArrowInvalid("a truth value is 0 or 1")
    return values.cast(pa.bool_())
