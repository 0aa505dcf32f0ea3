"""A message keeps what its sender wrote, byte for byte, and shows receivers what the broker noted."""

from __future__ import annotations

import random
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.servicebus.amqp.decode import decode
from dropforge.servicebus.amqp.encode import described, encode
from dropforge.servicebus.amqp.sections import sections
from dropforge.servicebus.amqp.values import Described, Int, Raw, Symbol, Timestamp, UByte, UInt, ULong
from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.message import NEVER, SETTABLE, Message, MessageState

BODY = described(0x75, encode(b"the body"))
PROPERTIES = described(
    0x73, encode(["id", b"user", "to", "subject", "reply", ULong(7), Symbol("text/plain"), None, None, None, "session"])
)
APPLICATION = described(0x74, encode({"color": "red", "n": UInt(3), "at": Timestamp(5)}))
HEADER = described(0x70, encode([True, UByte(9), UInt(5_000), False, UInt(2)]))
ANNOTATIONS = described(
    0x72,
    encode(
        {
            Symbol("x-opt-scheduled-enqueue-time"): Timestamp(99),
            Symbol("x-opt-partition-key"): "session",
            Symbol("x-opt-sequence-number"): 12345,
            Symbol("own"): "kept",
        }
    ),
)
DELIVERY = described(0x71, encode({Symbol("own-delivery"): 1, Symbol("x-opt-lock-token"): uuid.UUID(int=1)}))
FOOTER = described(0x78, encode({Symbol("foot"): 1}))
WHOLE = HEADER + DELIVERY + ANNOTATIONS + PROPERTIES + APPLICATION + BODY + FOOTER


def _shown(raw: bytes) -> dict[int, Any]:
    return {code: decode(raw, value_at)[0] for code, _, value_at, _ in sections(raw)}


def test_what_the_sender_wrote_is_read() -> None:
    message = Message.parse(memoryview(WHOLE))
    assert (message.message_id, message.session_id, message.correlation_id) == ("id", "session", 7)
    assert (message.to, message.subject, message.reply_to, message.content_type) == (
        "to",
        "subject",
        "reply",
        "text/plain",
    )
    assert (message.ttl_ms, message.scheduled_at, message.partition_key) == (5_000, 99, "session")
    assert message.reply_to_session_id is None
    assert message.application_property("color") == "red"
    assert message.application_property("missing") is None
    assert message.application_properties()["n"] == encode(UInt(3))
    assert message.size == len(WHOLE)


def test_a_bare_body_is_a_message() -> None:
    message = Message.parse(BODY)
    assert (message.message_id, message.session_id, message.ttl_ms, message.application_properties()) == (
        None,
        None,
        None,
        {},
    )
    assert message.encode().endswith(BODY)


@given(st.permutations([HEADER, DELIVERY, ANNOTATIONS, PROPERTIES, APPLICATION, BODY, FOOTER]))
def test_sections_may_come_in_any_order_and_are_put_in_the_right_one(parts: list[bytes]) -> None:
    # The Python SDK writes the delivery annotations last.
    assert Message.parse(b"".join(parts)).stored() == WHOLE


def test_data_sections_keep_their_order_when_others_stand_between_them() -> None:
    more = described(0x75, encode(b"more"))
    assert Message.parse(BODY + PROPERTIES + more).stored() == PROPERTIES + BODY + more


def test_a_partition_key_as_binary_is_text() -> None:
    sent = described(0x72, encode({Symbol("x-opt-partition-key"): b"key"}))
    assert Message.parse(sent + BODY).partition_key == "key"


def test_what_is_stored_is_what_came() -> None:
    assert Message.parse(WHOLE).stored() == WHOLE


def test_a_delivered_message_carries_the_lock_and_the_broker_s_notes() -> None:
    message = Message.parse(WHOLE)
    token = uuid.UUID("01020304-0506-0708-090a-0b0c0d0e0f10")
    message.sequence, message.enqueued_at, message.delivery_count = 41, 1_000, 3
    message.lock_token, message.locked_until = token.bytes_le, 61_000
    shown = _shown(message.encode())
    assert shown[0x70] == [True, 9, 5_000, False, 3]
    assert shown[0x71] == {"own-delivery": 1, "x-opt-lock-token": token}
    assert shown[0x72] == {
        "x-opt-scheduled-enqueue-time": 99,
        "x-opt-partition-key": "session",
        "own": "kept",
        "x-opt-enqueued-time": 1_000,
        "x-opt-sequence-number": 41,
        "x-opt-locked-until": 61_000,
    }
    assert all(type(key) is Symbol for key in shown[0x72])
    assert message.encode().endswith(PROPERTIES + APPLICATION + BODY + FOOTER)


def test_a_peeked_message_shows_its_state_and_no_lock() -> None:
    message = Message.parse(BODY)
    message.state = MessageState.DEFERRED
    message.lock_token, message.locked_until = bytes(16), 5
    message.dead_letter_source, message.enqueued_sequence = "q", 17
    shown = _shown(message.encode(peek=True))
    assert 0x71 not in shown
    assert shown[0x72] == {
        "x-opt-enqueued-time": 0,
        "x-opt-sequence-number": 0,
        "x-opt-enqueue-sequence-number": 17,
        "x-opt-deadletter-source": "q",
        "x-opt-message-state": 1,
    }
    assert type(shown[0x72]["x-opt-message-state"]) is Int


def test_filters_see_properties_by_the_service_s_names() -> None:
    message = Message.parse(WHOLE)
    message.sequence, message.enqueued_at = 5, 1_234
    assert message.property("Label") == message.property("subject") == "subject"
    assert message.property("CorrelationId") == 7
    assert message.property("ReplyToSessionId") is None
    assert message.property("SequenceNumber") == 5
    assert message.property("EnqueuedTimeUtc") == Timestamp(1_234)
    assert type(message.property("EnqueuedTimeUtc")) is Timestamp
    assert message.property("ExpiresAtUtc") is None
    with pytest.raises(BrokerError, match="unknown system property 'Colour'"):
        message.property("Colour")


@pytest.mark.parametrize("raw", [WHOLE, BODY, HEADER + BODY, PROPERTIES + BODY, APPLICATION + BODY, ANNOTATIONS + BODY])
def test_a_changed_message_is_the_same_after_it_was_stored(raw: bytes) -> None:
    message = Message.parse(raw)
    message.set_property("MessageId", "new")
    message.set_application_property("DeadLetterReason", "why")
    message.set_ttl(7_000)
    message.set_application_property("as it came", Raw(encode(Timestamp(3))))
    message.set_property("replyToSessionId", "back")
    message.remove_application_property("color")
    message.remove_application_property("color")
    again = Message.parse(message.stored())
    for one in (message, again):
        assert (one.message_id, one.property("ReplyToSessionId"), one.ttl_ms) == ("new", "back", 7_000)
        assert one.application_property("DeadLetterReason") == "why"
        assert type(one.application_property("as it came")) is Timestamp
        assert one.application_property("color") is None
    assert again.encode() == message.encode()
    assert message.session_id == Message.parse(raw).session_id
    assert message.stored().endswith(BODY) or message.stored().endswith(BODY + FOOTER)


def test_only_settable_properties_are_set_and_only_to_text() -> None:
    message = Message.parse(BODY)
    for name, value in (("SequenceNumber", 1), ("Nonsense", "x"), ("To", 5)):
        with pytest.raises(BrokerError):
            message.set_property(name, value)
    for name in SETTABLE:
        message.set_property(name, "x")
        assert message.property(name) == "x"
        message.set_property(name, None)
        assert message.property(name) is None
    assert message.session_id is None


def test_a_time_to_live_beyond_what_amqp_writes_is_the_longest() -> None:
    message = Message.parse(BODY)
    message.set_ttl(1 << 40)
    assert message.ttl_ms == 0xFFFFFFFF
    assert _shown(message.encode())[0x70] == [False, None, 0xFFFFFFFF, None, 0]


def test_a_copy_changes_alone_and_has_no_lock() -> None:
    message = Message.parse(WHOLE)
    message.lock_token, message.sequence = bytes(16), 9
    copy = message.copy()
    copy.set_application_property("color", "blue")
    copy.set_property("To", "elsewhere")
    assert (message.application_property("color"), message.to, message.stored()) == ("red", "to", WHOLE)
    assert (copy.application_property("color"), copy.to, copy.lock_token, copy.sequence) == (
        "blue",
        "elsewhere",
        None,
        9,
    )


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(-(1 << 63), (1 << 63) - 1)))
def test_application_properties_that_are_set_are_there_after_a_restart(entries: dict[str, int]) -> None:
    message = Message.parse(PROPERTIES + BODY)
    for name, value in entries.items():
        message.set_application_property(name, value)
    again = Message.parse(message.stored())
    assert {name: again.application_property(name) for name in again.application_properties()} == entries


@pytest.mark.parametrize(
    "raw",
    [
        b"not amqp",
        b"\x00\x53\x10\x45",
        BODY[:-1],
        PROPERTIES + PROPERTIES,
        BODY + described(0x77, encode(1)),
        described(0x77, encode(1)) * 2,
        described(0x73, encode({"a": 1})),
        described(0x73, encode([None] * 14)),
        described(0x73, encode([None] * 10 + [5])),
        described(0x73, encode([["a list"]])),
        described(0x70, encode([None, None, "soon"])),
        described(0x70, encode(["x" * 300, None, UInt(1)])),
        described(0x70, encode([None, None, ULong(1 << 32)])),
        described(0x70, encode([None, None, ULong(1 << 63)])),
        described(0x72, encode({Symbol("x-opt-scheduled-enqueue-time"): "tomorrow"})),
        described(0x72, encode({Symbol("x-opt-scheduled-enqueue-time"): Timestamp(NEVER + 1)})),
        described(0x72, encode({Symbol("x-opt-scheduled-enqueue-time"): ULong(1 << 63)})),
        described(0x72, encode({Symbol("x-opt-partition-key"): 5})),
        described(0x72, b"\xc1\x03\x02\x45\x40"),
        described(0x74, b"\xc1\x03\x02\x45\x40"),
        described(0x73, encode([True])),
        described(0x73, encode([Described(ULong(1), 1)])),
        described(0x74, encode({5: 1})),
        described(0x74, encode([1])),
        described(0x74, b"\xc1\x05\x02\xa1\x01a\x57"),
        described(0x74, b"\xc1\x03\x01\xa1\x00"),
    ],
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(BrokerError) as refused:
        Message.parse(raw)
    assert refused.value.condition in ("amqp:decode-error", "amqp:invalid-field")


def test_sections_named_by_symbols_or_long_numbers_are_read() -> None:
    properties = b"\x00" + encode(Symbol("amqp:properties:list")) + encode(["id"])
    body = b"\x00\x80" + (0x75).to_bytes(8, "big") + encode(b"x")
    message = Message.parse(properties + body)
    assert message.message_id == "id"
    message.set_property("To", "there")
    assert Message.parse(message.stored()).to == "there"


def test_a_fuzzed_message_is_taken_whole_or_refused() -> None:
    chance = random.Random(3)
    taken = 0
    for _ in range(3_000):
        mutant = bytearray(WHOLE[: chance.randrange(1, len(WHOLE) + 1)] if chance.random() < 0.2 else WHOLE)
        for _ in range(chance.randrange(1, 4)):
            mutant[chance.randrange(len(mutant))] = chance.choice(
                (0, 0x40, 0x45, 0xC1, 0xD0, 0xFF, chance.randrange(256))
            )
        try:
            message = Message.parse(bytes(mutant))
        except BrokerError:
            continue
        taken += 1
        # What was taken must not fail later, when nobody could be told.
        message.lock_token = bytes(16)
        message.set_property("MessageId", "x")
        message.set_ttl(1)
        for name in message.application_properties():
            message.application_property(name)
        message.set_application_property("DeadLetterReason", "why")
        assert (
            Message.parse(message.stored()).encode() == Message.parse(message.encode()[:0] + message.stored()).encode()
        )
        assert Message.parse(message.encode()).message_id == "x"
    assert taken > 100
