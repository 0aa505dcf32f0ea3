"""The codec: what goes in comes out, and nothing but a clean refusal for bytes that are no AMQP."""

from __future__ import annotations

import math
import random
import struct
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.servicebus.amqp.decode import MAX_DEPTH, decode, decode_whole, skip, split_list, split_map
from dropforge.servicebus.amqp.encode import encode, list_of, map_of
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


def _numbers(kind: type, bits: int, *, signed: bool) -> st.SearchStrategy[Any]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    # Half of them around the places where the encoding changes its width.
    edges = st.sampled_from([n for n in (-129, -128, -1, 0, 1, 127, 128, 255, 256) if low <= n <= high] + [low, high])
    return (edges | st.integers(low, high)).map(kind)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_SIMPLE: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    UByte: _numbers(UByte, 8, signed=False),
    UShort: _numbers(UShort, 16, signed=False),
    UInt: _numbers(UInt, 32, signed=False),
    ULong: _numbers(ULong, 64, signed=False),
    Byte: _numbers(Byte, 8, signed=True),
    Short: _numbers(Short, 16, signed=True),
    Int: _numbers(Int, 32, signed=True),
    int: _numbers(int, 64, signed=True),
    Timestamp: _numbers(Timestamp, 64, signed=True),
    Float: st.floats(width=32, allow_nan=False).map(Float),
    float: st.floats(allow_nan=False),
    Char: st.characters(exclude_categories=["Cs"]).map(Char),
    Decimal32: st.binary(min_size=4, max_size=4).map(Decimal32),
    Decimal64: st.binary(min_size=8, max_size=8).map(Decimal64),
    Decimal128: st.binary(min_size=16, max_size=16).map(Decimal128),
    uuid.UUID: st.uuids(),
    bytes: st.binary(max_size=20) | st.binary(min_size=254, max_size=258),
    str: _TEXT | st.text("é", min_size=126, max_size=130),
    Symbol: st.text(st.characters(max_codepoint=127), max_size=20).map(Symbol),
}


@st.composite
def _arrays(draw: st.DrawFn) -> Array:
    kind = draw(st.sampled_from(list(_SIMPLE)))
    return Array(kind, draw(st.lists(_SIMPLE[kind], max_size=5)))


_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.one_of(*_SIMPLE.values()) | _arrays(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(_TEXT | _SIMPLE[Symbol], inner, max_size=5)
        | st.builds(Described, _SIMPLE[ULong] | _SIMPLE[Symbol], inner)
    ),
    max_leaves=15,
)


def _types(value: Any) -> Any:
    """The types of the whole value: equality alone takes an int for a timestamp."""
    if isinstance(value, Array):
        return Array, value.of, [_types(item) for item in value]
    if isinstance(value, list):
        return [_types(item) for item in value]
    if isinstance(value, dict):
        return {key: (type(key), _types(item)) for key, item in value.items()}
    if isinstance(value, Described):
        return _types(value.descriptor), _types(value.value)
    return type(value)


@given(_VALUES)
def test_what_is_encoded_decodes_to_the_same_value_of_the_same_type(value: Any) -> None:
    encoded = encode(value)
    decoded, end = decode(b"??" + encoded + b"??", 2)
    assert decoded == value
    assert _types(decoded) == _types(value)
    assert end == skip(b"??" + encoded + b"??", 2) == 2 + len(encoded)


@pytest.mark.parametrize(
    "value",
    [
        Array(list, [[1, "a"], []]),
        Array(dict, [{"a": 1}, {}]),
        Array(Array, [Array(int, [1, 2]), Array(Symbol, [Symbol("x")])]),
        Array(Described, [Described(ULong(1), "a"), Described(ULong(1), "b")]),
        Array(type(None), []),
    ],
)
def test_arrays_of_compounds_come_back(value: Array) -> None:
    decoded = decode_whole(encode(value))
    assert decoded == value
    assert decoded.of is value.of


def test_not_a_number_stays_one() -> None:
    assert math.isnan(decode_whole(encode(float("nan"))))


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        (b"\x70\x00\x00\x00\x05", UInt(5)),
        (b"\x80" + bytes(7) + b"\x05", ULong(5)),
        (b"\x71\xff\xff\xff\xff", Int(-1)),
        (b"\x81" + b"\xff" * 8, -1),
        (b"\x56\x01", True),
        (b"\xb1\x00\x00\x00\x01a", "a"),
        (b"\xb3\x00\x00\x00\x01a", Symbol("a")),
        (b"\xb0\x00\x00\x00\x01a", b"a"),
        (b"\xd0\x00\x00\x00\x05\x00\x00\x00\x01\x40", [None]),
        (b"\xd1\x00\x00\x00\x04\x00\x00\x00\x00", {}),
        (b"\xe0\x04\x02\x55\x01\x02", [1, 2]),
        (b"\xe0\x06\x02\xa3\x01a\x01b", [Symbol("a"), Symbol("b")]),
        (b"\xc0\x01\x00", []),
    ],
)
def test_long_and_short_forms_of_other_encoders_are_read(encoded: bytes, value: Any) -> None:
    assert decode_whole(encoded) == value
    assert type(decode_whole(encoded)) is type(value) or isinstance(value, list)


@given(st.lists(_VALUES, max_size=4), st.dictionaries(_SIMPLE[Symbol], _VALUES, max_size=4))
def test_split_parts_put_together_are_the_same_bytes(items: list[Any], entries: dict[Symbol, Any]) -> None:
    assert list_of(split_list(encode(items))) == encode(items)
    assert map_of(dict(split_map(encode(entries)))) == encode(entries)


def test_a_raw_value_is_passed_through() -> None:
    assert encode([Raw(encode(UInt(7)))]) == encode([UInt(7)])


@pytest.mark.parametrize("value", [UByte(256), UInt(-1), 1 << 63, Symbol("é"), Char("ab"), Decimal32(b"x")])
def test_a_value_its_type_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(BrokerError) as refused:
        encode(value)
    assert refused.value.condition == "amqp:invalid-field"


def test_a_python_type_that_amqp_lacks_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="found set"):
        encode({1, 2}.union())


# ------------------------------------------------------------------------------------------------ hostile bytes


def _nested_lists(depth: int) -> bytes:
    value = b"\x45"
    for _ in range(depth):
        value = list_of([value])
    return value


def test_nesting_is_read_to_the_limit_and_refused_beyond() -> None:
    assert decode_whole(_nested_lists(MAX_DEPTH - 1))
    for deep in (_nested_lists(MAX_DEPTH + 1), b"\x00" * 5_000 + b"\x40", b"\x00\x40" * 5_000 + b"\x40"):
        with pytest.raises(BrokerError) as refused:
            decode(deep)
        assert refused.value.condition == "amqp:decode-error"
    with pytest.raises(BrokerError, match="nested"):
        skip(b"\x00" * 5_000 + b"\x40", 0)


@pytest.mark.parametrize(
    "hostile",
    [
        b"\xd0\xff\xff\xff\xff\xff\xff\xff\xff\x40",
        b"\xd0\x00\x00\x00\x05\xff\xff\xff\xff\x40",
        b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x41",
        b"\xf0\xff\xff\xff\xff\xff\xff\xff\xff\x41",
        b"\xf0\x00\x00\x00\x05\x00\x00\x00\x02\x45",
        b"\xc0\x02\xff\x40",
        b"\xc1\x02\x01\x40",
        b"\xc1\x04\x02\xc0\x01\x00",
        b"\xb1\xff\xff\xff\xffabc",
        b"\xa1\x05abc",
        b"\xa1\x02\xff\xff",
        b"\xa3\x01\xe9",
        b"\x73\x00\x00\xd8\x00",
        b"\x98abc",
        b"\x81\x00",
        b"\x56\x02",
        b"\x57",
        b"\x3f",
        b"",
        b"\x00",
        b"\x00\x53",
    ],
)
def test_lengths_and_counts_that_lie_are_refused(hostile: bytes) -> None:
    with pytest.raises(BrokerError) as refused:
        decode_whole(hostile)
    assert refused.value.condition == "amqp:decode-error"


def _mutants(seed: int, rounds: int) -> list[bytes]:
    """Valid values, cut short, with bytes changed and with counts blown up; the same ones every time."""
    chance = random.Random(seed)
    whole = encode(
        Described(
            ULong(0x14),
            [
                UInt(1),
                "text" * 9,
                Symbol("s"),
                {"a": [1, 2.5, None]},
                Array(UInt, [UInt(1)]),
                b"x" * 300,
                uuid.UUID(int=1),
            ],
        )
    )
    found = []
    for _ in range(rounds):
        mutant = bytearray(whole[: chance.randrange(1, len(whole) + 1)])
        for _ in range(chance.randrange(4)):
            mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        if chance.random() < 0.3:
            at = chance.randrange(len(mutant))
            mutant[at : at + 4] = struct.pack(">I", chance.randrange(1 << 32))
        found.append(bytes(mutant))
    return found


def test_a_fuzzed_value_is_decoded_or_refused_and_nothing_else() -> None:
    refused = 0
    for mutant in _mutants(seed=7, rounds=3_000):
        for read in (lambda data: decode(data)[0], lambda data: skip(data, 0), lambda data: split_list(data, 3)):
            try:
                value = read(mutant)
            except BrokerError:
                refused += 1
                continue
            # What came in can go out again.
            encode(value)
    assert refused > 1_000


@given(st.binary(max_size=60))
def test_random_bytes_are_decoded_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        value, end = decode(data)
    except BrokerError:
        return
    assert end <= len(data)
    assert decode_whole(encode(value)) == value or value != value or "nan" in repr(value)
