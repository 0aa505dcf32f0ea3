"""Frames are put together from any pieces; performatives are read with their types, and written in full."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.servicebus.amqp import answers, frames, performatives
from dropforge.servicebus.amqp.decode import decode, decode_whole
from dropforge.servicebus.amqp.encode import described, encode
from dropforge.servicebus.amqp.performatives import performative
from dropforge.servicebus.amqp.values import Array, Described, Symbol, UByte, UInt, ULong
from dropforge.servicebus.errors import BrokerError, not_found


def _fields(body: bytes) -> tuple[int, list[Any], bytes]:
    code, at = performative(body)
    fields, end = decode(body, at)
    return code, fields, body[end:]


def _read(data: bytes) -> list[tuple[int, int, bytes]]:
    return list(frames.FrameReader(65_536).feed(data))


@given(st.lists(st.tuples(st.integers(0, 65_535), st.binary(max_size=30)), max_size=5), st.integers(1, 40))
def test_frames_come_out_whole_however_the_bytes_were_cut(sent: list[tuple[int, bytes]], piece: int) -> None:
    data = frames.AMQP_HEADER + b"".join(frames.frame(channel, body) for channel, body in sent)
    reader = frames.FrameReader(65_536)
    found = [each for start in range(0, len(data), piece) for each in reader.feed(data[start : start + piece])]
    assert found == [(frames.HEADER, 0, frames.AMQP_HEADER), *((frames.AMQP, channel, body) for channel, body in sent)]


def test_an_extended_frame_header_is_skipped() -> None:
    assert _read(b"\x00\x00\x00\x0d\x03\x00\x00\x01WXYZ!") == [(frames.AMQP, 1, b"!")]


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x00\x01\x02\x00\x00\x00", b"\x00\x00\x00\x07\x02\x00\x00\x00", b"GET / HTTP/1.1\r\n"]
)
def test_a_frame_of_an_impossible_size_is_refused_before_it_comes(data: bytes) -> None:
    with pytest.raises(BrokerError) as refused:
        _read(data)
    assert refused.value.condition == "amqp:connection:framing-error"


def test_an_offset_that_points_nowhere_is_refused() -> None:
    for offset in (0, 1, 3, 255):
        with pytest.raises(BrokerError):
            _read(b"\x00\x00\x00\x0a" + bytes((offset, 0, 0, 0)) + b"xx")


def test_fields_that_are_left_out_have_their_defaults() -> None:
    attach = performatives.read_attach(encode(["name", UInt(3), True]), 0)
    assert attach == ("name", 3, True, 2, 0, None, None, 0, {})
    assert performatives.read_disposition(encode([True, UInt(4)]), 0) == (True, 4, 4, False, None)
    assert performatives.read_detach(encode([UInt(4)]), 0) == (4, False)
    assert performatives.read_open(encode(["c"]), 0) == ("c", 0xFFFFFFFF, 0)


@pytest.mark.parametrize(
    ("read", "fields"),
    [
        (performatives.read_attach, ["name", "three", True]),
        (performatives.read_attach, ["name", UInt(3), 1]),
        (performatives.read_attach, ["name", UInt(3), True, None, None, "a source"]),
        (performatives.read_attach, ["name", UInt(3), True, None, None, Described(ULong(0x28), "a list")]),
        (performatives.read_begin, [None, None, None]),
        (performatives.read_begin, [None, ULong(1 << 32), UInt(1)]),
        (performatives.read_attach, ["name", -1, True]),
        (performatives.read_attach, ["name", UInt(3), True, UByte(9)]),
        (performatives.read_disposition, [True, ULong(1 << 40)]),
        (performatives.read_disposition, [True, True]),
        (performatives.read_flow, [UInt(0), UInt(1), UInt(0), UInt(1), True]),
        (performatives.read_transfer, [None]),
        (performatives.read_disposition, [True, "first"]),
        (performatives.read_sasl_init, [None]),
    ],
)
def test_a_field_of_another_type_is_refused(read: Any, fields: list[Any]) -> None:
    with pytest.raises(BrokerError):
        read(encode(fields), 0)


@pytest.mark.parametrize("fields", [{"a": 1}, None, 5, "text"])
def test_fields_that_are_no_list_are_refused(fields: Any) -> None:
    for read in (performatives.read_flow, performatives.read_transfer, performatives.read_open):
        with pytest.raises(BrokerError):
            read(encode(fields), 0)


def test_descriptors_are_read_as_numbers_and_as_symbols() -> None:
    assert performative(b"\x00\x53\x14\x45") == (performatives.TRANSFER, 3)
    assert performative(b"\x00\x80" + bytes(7) + b"\x14\x45")[0] == performatives.TRANSFER
    assert performative(b"\x00" + encode(Symbol("amqp:transfer:list")) + b"\x45")[0] == performatives.TRANSFER
    assert performative(b"\x00" + encode(Symbol("amqp:nonsense:list")) + b"\x45")[0] == 0
    for none in (b"\x45", b"", b"\x53\x14"):
        with pytest.raises(BrokerError):
            performative(none)


def test_a_granted_session_takes_the_filter_s_place_and_nothing_else() -> None:
    wanted = {Symbol("com.microsoft:session-filter"): Described(ULong(0x137000000C), None)}
    sent = ["amqps://host:5672/q", UByte(2), Symbol("never"), UInt(0), False, None, None, wanted, None, Array(Symbol)]
    source = described(0x28, encode(sent))
    attach = performatives.read_attach(encode(["n", UInt(0), True, None, None, Described(ULong(0x28), sent)]), 0)
    assert attach.source is not None
    assert attach.source.raw == source
    assert list(attach.source.filters) == ["com.microsoft:session-filter"]
    granted = decode_whole(attach.source.with_session("A"))
    assert granted.value == [*sent[:7], {"com.microsoft:session-filter": "A"}, *sent[8:]]


def test_a_message_goes_out_in_frames_that_fit() -> None:
    payload = bytes(range(250))
    sent = _read(b"".join(answers.transfer(7, 300, 0xFFFFFFFF, b"tag", settled=True, payload=payload, room=100)))
    parts = [_fields(body) for _, _, body in sent]
    assert {channel for _, channel, _ in sent} == {7}
    assert [fields[:6] for _, fields, _ in parts] == [
        [300, 0xFFFFFFFF, b"tag", 0, True, True],
        [300, None, None, None, True, True],
        [300, None, None, None, True, False],
    ]
    assert all(code == performatives.TRANSFER and len(fields) == 11 for code, fields, _ in parts)
    assert b"".join(piece for _, _, piece in parts) == payload


@given(st.integers(0, 65_535), st.integers(0, 0xFFFFFFFF), st.booleans())
def test_a_disposition_says_what_became_of_one_delivery(channel: int, delivery_id: int, receives: bool) -> None:
    state = answers.rejected(not_found("q"))
    ((_, on, body),) = _read(answers.disposition(channel, receives=receives, delivery_id=delivery_id, state=state))
    code, fields, rest = _fields(body)
    assert (on, code, rest) == (channel, performatives.DISPOSITION, b"")
    assert fields[:4] == [receives, delivery_id, delivery_id, True]
    assert fields[4].value[0].value == ["amqp:not-found", "The messaging entity 'q' could not be found.", {}]
    assert len(fields) == 6


def test_every_performative_is_written_with_all_its_fields() -> None:
    error = not_found("q")
    attached = answers.attached(
        "n", 1, receives=True, settle_modes=(0, 1), source=b"\x40", target=b"\x40", max_message_bytes=5, properties={}
    )
    lengths = [
        (answers.opened("c", 1, 2, 3), 10),
        (answers.begun(1, 2, 3), 8),
        (attached, 14),
        (answers.flow(1, 2, 3), 11),
        (answers.flow(1, 2, 3, (4, 5, 6), drain=True), 11),
        (answers.detached(1, error), 3),
        (answers.ended(None), 1),
        (answers.closed(error), 1),
    ]
    for body, count in lengths:
        assert len(_fields(body)[1]) == count


def test_a_fuzzed_performative_is_read_or_refused_and_nothing_else() -> None:
    chance = random.Random(11)
    readers: list[Any] = [
        performatives.read_open,
        performatives.read_begin,
        performatives.read_attach,
        performatives.read_flow,
        performatives.read_transfer,
        performatives.read_disposition,
        performatives.read_detach,
        performatives.read_sasl_init,
    ]
    source = Described(ULong(0x28), ["q", None, None, None, None, None, None, {Symbol("f"): "x"}])
    whole = encode(
        ["name", UInt(1), True, UByte(0), UByte(1), source, None, None, True, UInt(3), False, None, None, {}]
    )
    refused = 0
    for _ in range(1_000):
        mutant = bytearray(whole[: chance.randrange(1, len(whole) + 1)] if chance.random() < 0.3 else whole)
        for _ in range(chance.randrange(1, 4)):
            mutant[chance.randrange(len(mutant))] = chance.choice((0, 0x40, 0x43, 0x45, 0xFF, chance.randrange(256)))
        for read in readers:
            try:
                read(bytes(mutant), 0)
            except BrokerError:
                refused += 1
    assert 4_000 < refused < 8_000
