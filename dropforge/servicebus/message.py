"""One message: the bytes its sender wrote, and what the broker notes about it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final
from uuid import UUID

from dropforge.servicebus.amqp.decode import decode, malformed, skip, split_list, split_map
from dropforge.servicebus.amqp.encode import described, encode, list_of, map_of, raw_map
from dropforge.servicebus.amqp.sections import (
    APPLICATION_PROPERTIES,
    DELIVERY_ANNOTATIONS,
    HEADER,
    MESSAGE_ANNOTATIONS,
    PROPERTIES,
    in_order,
    sections,
)
from dropforge.servicebus.amqp.values import Int, Raw, Symbol, Timestamp, ULong
from dropforge.servicebus.errors import bad_field

MAX_TTL_MS: Final = 0xFFFFFFFF
# 9999-12-31T23:59:59.999Z: what the service calls "never".
NEVER: Final = 253_402_300_799_999


class MessageState(IntEnum):
    """What peeking shows as `x-opt-message-state`."""

    ACTIVE = 0
    DEFERRED = 1
    SCHEDULED = 2


# Where Service Bus names of system properties stand in AMQP's properties section.
_PLACES: Final = {
    "messageid": 0,
    "to": 2,
    "label": 3,
    "subject": 3,
    "replyto": 4,
    "correlationid": 5,
    "contenttype": 6,
    "sessionid": 10,
    "replytosessionid": 12,
}
# ... and the ones that stand elsewhere, by the attribute that holds them.
_ATTRIBUTES: Final = {
    "partitionkey": "partition_key",
    "timetolive": "ttl_ms",
    "scheduledenqueuetimeutc": "scheduled_at",
    "sequencenumber": "sequence",
    "enqueuedsequencenumber": "enqueued_sequence",
    "enqueuedtimeutc": "enqueued_at",
    "expiresatutc": "expires_at",
    "lockeduntilutc": "locked_until",
    "deliverycount": "delivery_count",
    "deadlettersource": "dead_letter_source",
    "state": "state",
    "size": "size",
}
# Every system property that `Message.property` answers, and those that `Message.set_property` takes; lower case.
READABLE: Final = frozenset(_PLACES) | frozenset(_ATTRIBUTES)
SETTABLE: Final = frozenset(_PLACES)

# Durable, priority, ttl and first-acquirer of a message that came without a header.
_NO_HEADER: Final = b"\x42\x40\x40\x40"
_NO_HEADER_FIELDS: Final = (b"\x42", b"\x40")
_NO_ENTRIES: Final = (0, b"")
_MESSAGE_ID: Final = (str, ULong, UUID, bytes)

_LOCK_TOKEN: Final = encode(Symbol("x-opt-lock-token")) + b"\x98"
_ENQUEUED_AT: Final = encode(Symbol("x-opt-enqueued-time")) + b"\x83"
_SEQUENCE: Final = encode(Symbol("x-opt-sequence-number")) + b"\x81"
_LOCKED_UNTIL: Final = encode(Symbol("x-opt-locked-until")) + b"\x83"
_ENQUEUED_SEQUENCE: Final = encode(Symbol("x-opt-enqueue-sequence-number")) + b"\x81"
_DEAD_LETTER_SOURCE: Final = encode(Symbol("x-opt-deadletter-source"))
_STATE: Final = encode(Symbol("x-opt-message-state"))
# The annotations that the broker alone writes. A sender's own are kept, but not these.
_OURS: Final = frozenset(
    {
        "x-opt-enqueued-time",
        "x-opt-sequence-number",
        "x-opt-locked-until",
        "x-opt-enqueue-sequence-number",
        "x-opt-deadletter-source",
        "x-opt-message-state",
        "x-opt-lock-token",
    }
)
_U32 = struct.Struct(">I").pack
_I64 = struct.Struct(">q").pack


class Message:
    """Sections stay the bytes that came, so no type is lost between sender and receiver; what the broker asks for is
    read out of them. Cheap to copy: copies share the bytes until one of them is changed."""

    __slots__ = (
        "_after_header",
        "_annotations",
        "_application",
        "_application_at",
        "_body_at",
        "_delivery",
        "_header",
        "_known",
        "_properties_at",
        "_raw",
        "dead_letter_source",
        "delivery_count",
        "due_at",
        "enqueued_at",
        "enqueued_sequence",
        "expires_at",
        "lock_token",
        "locked_until",
        "message_id",
        "partition_key",
        "scheduled_at",
        "sequence",
        "session_id",
        "state",
        "ttl_ms",
    )

    # The message as sent, and where its parts lie: [header][annotations][properties][application properties][body].
    _raw: bytes
    _after_header: int
    _properties_at: int
    _application_at: int
    _body_at: int
    _header: bytes
    _delivery: tuple[int, bytes]
    _annotations: tuple[int, bytes]
    # Decoded when first asked for.
    _known: list[Any] | None
    _application: dict[str, Any] | None

    message_id: Any
    session_id: str | None
    ttl_ms: int | None
    scheduled_at: int | None
    partition_key: str | None

    sequence: int
    enqueued_sequence: int
    enqueued_at: int
    expires_at: int | None
    due_at: int | None
    state: MessageState
    delivery_count: int
    lock_token: bytes | None
    locked_until: int
    dead_letter_source: str | None

    def __init__(self) -> None:
        self._header = _NO_HEADER
        self._delivery = self._annotations = _NO_ENTRIES
        self._known = self._application = None
        self.message_id = self.session_id = self.ttl_ms = self.scheduled_at = self.partition_key = None
        self.sequence = self.enqueued_sequence = self.enqueued_at = self.delivery_count = self.locked_until = 0
        self.expires_at = self.due_at = self.lock_token = self.dead_letter_source = None
        self.state = MessageState.ACTIVE

    # ------------------------------------------------------------------------------------------------ reading

    @classmethod
    def parse(cls, raw: bytes | memoryview) -> Message:
        """The message that the bytes are. Raises `BrokerError` when they are none; only the body is not looked into."""
        message = cls()
        raw = message._raw = bytes(raw)
        after_header = properties_at = application_at = body_at = last = 0
        for code, _, value_at, end in sections(raw):
            if code < last:
                return cls.parse(in_order(raw))
            last = code
            if code > APPLICATION_PROPERTIES:
                continue
            body_at = end
            if code == PROPERTIES:
                application_at = end
                message._take_properties(decode(raw, value_at)[0])
                continue
            if code == APPLICATION_PROPERTIES:
                _expect_application_properties(raw, value_at)
                continue
            properties_at = end
            if code == HEADER:
                after_header = end
                message._take_header(raw, value_at)
            elif code == MESSAGE_ANNOTATIONS:
                message._take_annotations(raw, value_at)
            elif code == DELIVERY_ANNOTATIONS:
                message._delivery = _foreign(split_map(raw, value_at))
        message._after_header = after_header
        message._properties_at = max(after_header, properties_at)
        message._application_at = max(message._properties_at, application_at)
        message._body_at = max(message._application_at, body_at)
        return message

    def _take_header(self, raw: bytes, at: int) -> None:
        fields = split_list(raw, at)
        if max(map(len, fields), default=0) > 9:
            raise bad_field("expected numbers and booleans in the header of a message, found something longer")
        ttl = [decode(field)[0] for field in fields][2] if len(fields) > 2 else None
        if ttl is not None and (not isinstance(ttl, int) or not 0 <= ttl <= MAX_TTL_MS):
            raise bad_field(f"expected the header's ttl as 0 to {MAX_TTL_MS} milliseconds, found {ttl!r}")
        self.ttl_ms = None if ttl is None else int(ttl)
        self._header = _delivered_header(fields)

    def _take_annotations(self, raw: bytes, at: int) -> None:
        entries = list(split_map(raw, at))
        self._annotations = _foreign(entries)
        for key, value in entries:
            if key == "x-opt-scheduled-enqueue-time":
                due = decode(value)[0]
                # A time that has passed is none; one that no calendar has could not be stored.
                if due is not None and (not isinstance(due, int) or due > NEVER):
                    raise bad_field(
                        f"expected x-opt-scheduled-enqueue-time as a timestamp of {NEVER} at most, found {due!r:.80}"
                    )
                self.scheduled_at = None if due is None else int(due)
            elif key == "x-opt-partition-key":
                partition = decode(value)[0]
                # A message that the Python SDK received and sends again has its texts as binary.
                if isinstance(partition, bytes):
                    partition = partition.decode("utf-8", "replace")
                if partition is not None and not isinstance(partition, str):
                    raise bad_field(f"expected x-opt-partition-key as a string, found {partition!r:.80}")
                self.partition_key = partition

    def _take_properties(self, values: Any) -> None:
        if values is None:
            return
        if not isinstance(values, list) or len(values) > 13:
            raise malformed("expected the properties of a message as a list of at most 13 fields")
        if values:
            self.message_id = values[0]
            if values[0] is not None and not isinstance(values[0], _MESSAGE_ID):
                raise bad_field(f"expected the message-id as text, a number, a uuid or binary, found {values[0]!r:.80}")
        if len(values) > 10 and values[10] is not None:
            if not isinstance(values[10], str):
                raise bad_field(f"expected the session id as a string, found {type(values[10]).__name__}")
            self.session_id = values[10]

    @property
    def size(self) -> int:
        """The bytes that its sender wrote, with what the broker changed in them."""
        return len(self._raw)

    @property
    def correlation_id(self) -> Any:
        return self._field(5)

    @property
    def to(self) -> str | None:
        return _text(self._field(2))

    @property
    def subject(self) -> str | None:
        return _text(self._field(3))

    @property
    def reply_to(self) -> str | None:
        return _text(self._field(4))

    @property
    def content_type(self) -> str | None:
        return _text(self._field(6))

    @property
    def reply_to_session_id(self) -> str | None:
        return _text(self._field(12))

    def property(self, name: str) -> Any:
        """A system property by the name that Service Bus gives it (`MessageId`, `Label`, ...; any case), None when the
        message has none. Raises `BrokerError` for a name that is not in `READABLE`."""
        key = name.lower()
        place = _PLACES.get(key)
        if place is not None:
            return self._field(place)
        attribute = _ATTRIBUTES.get(key)
        if attribute is None:
            raise bad_field(f"unknown system property '{name}'; choose one of {sorted(READABLE)}")
        value = getattr(self, attribute)
        if attribute.endswith(("_at", "_until")) and value is not None:
            return Timestamp(value)
        # To an action that copies it the state is a number, as it is to who peeks.
        return int(value) if isinstance(value, IntEnum) else value

    def application_property(self, name: str) -> Any:
        """The value under `name`, None when there is none."""
        if self._application is None:
            self._application = {key: decode(value)[0] for key, value in self.application_properties().items()}
        return self._application.get(name)

    def application_properties(self) -> Mapping[str, Raw]:
        """All application properties, each value as it was encoded."""
        if self._application_at == self._body_at:
            return {}
        return dict(split_map(self._raw, skip(self._raw, self._application_at + 1)))

    def _field(self, place: int) -> Any:
        if self._known is None:
            self._known = []
            if self._properties_at < self._application_at:
                self._known = decode(self._raw, skip(self._raw, self._properties_at + 1))[0] or []
        return self._known[place] if place < len(self._known) else None

    # ------------------------------------------------------------------------------------------------ changing

    def set_property(self, name: str, value: Any) -> None:
        """Sets a system property out of `SETTABLE`; None takes it away. Raises `BrokerError` for any other name and
        for a value of the wrong type."""
        place = _PLACES.get(name.lower())
        if place is None:
            raise bad_field(f"the system property '{name}' cannot be set; choose one of {sorted(SETTABLE)}")
        if place not in (0, 5) and value is not None and not isinstance(value, str):
            raise bad_field(f"expected the system property '{name}' as text, found {value!r}")
        raw = self._raw
        fields: list[bytes] = []
        if self._properties_at < self._application_at:
            fields += split_list(raw, skip(raw, self._properties_at + 1))
        fields += [b"\x40"] * (place + 1 - len(fields))
        fields[place] = encode(value)
        self._replace(self._properties_at, self._application_at, described(PROPERTIES, list_of(fields)))
        self._known = None
        if place == 0:
            self.message_id = value
        elif place == 10:
            self.session_id = value

    def set_application_property(self, name: str, value: Any) -> None:
        """Puts the value (a `Raw` as it is) under `name`, in place of what was there."""
        self._write_application({**self.application_properties(), name: Raw(encode(value))})

    def remove_application_property(self, name: str) -> None:
        """Takes the property away; a name that is not there is no error."""
        properties = dict(self.application_properties())
        if properties.pop(name, None) is not None:
            self._write_application(properties)

    def set_ttl(self, ttl_ms: int) -> None:
        """Sets the time to live that receivers see; more than AMQP can write counts as the most it can."""
        self.ttl_ms = min(ttl_ms, MAX_TTL_MS)
        ttl = b"\x70" + _U32(self.ttl_ms)
        before = self._after_header
        # Most messages come without a header, and most queues limit their messages' time to live.
        sent = split_list(self._raw, skip(self._raw, 1)) if before else []
        fields = [*sent[:2], *_NO_HEADER_FIELDS[len(sent) :], ttl, *sent[3:]]
        self._header = _delivered_header(fields)
        header = described(HEADER, list_of(fields))
        self._raw = header + self._raw[before:]
        moved = len(header) - before
        self._after_header += moved
        self._properties_at += moved
        self._application_at += moved
        self._body_at += moved

    def _write_application(self, properties: Mapping[str, bytes]) -> None:
        section = described(APPLICATION_PROPERTIES, map_of(properties)) if properties else b""
        moved = len(section) - (self._body_at - self._application_at)
        self._raw = self._raw[: self._application_at] + section + self._raw[self._body_at :]
        self._body_at += moved
        self._application = None

    def _replace(self, start: int, end: int, section: bytes) -> None:
        moved = len(section) - (end - start)
        self._raw = self._raw[:start] + section + self._raw[end:]
        self._application_at += moved
        self._body_at += moved

    def copy(self) -> Message:
        """The same message for another entity: what was sent and when it arrived, without lock."""
        other = Message.__new__(Message)
        for name in Message.__slots__:
            setattr(other, name, getattr(self, name))
        other.lock_token = None
        other.locked_until = 0
        return other

    # ------------------------------------------------------------------------------------------------ writing

    def stored(self) -> bytes:
        """What the sender wrote and the broker changed, as one message without the broker's annotations; `parse` of it
        gives an equal message."""
        return self._raw

    def encode(self, *, peek: bool = False) -> bytes:
        """The message as a receiver gets it; a peeked one shows its state and no lock."""
        token = None if peek else self.lock_token
        count = self.delivery_count
        delivered = b"\x43" if count == 0 else b"\x70" + count.to_bytes(4, "big")
        header = self._header + delivered
        head = b"\x00\x53\x70\xc0" + bytes((len(header) + 1, 5)) + header
        entries, body = self._annotations
        body += _ENQUEUED_AT + _I64(self.enqueued_at) + _SEQUENCE + _I64(self.sequence)
        entries += 4
        given, delivery = self._delivery
        if token is not None:
            body += _LOCKED_UNTIL + _I64(self.locked_until)
            entries += 2
            # The token is a uuid in Microsoft's byte order; AMQP writes a uuid in the network's.
            delivery += _LOCK_TOKEN + token[3::-1] + token[5:3:-1] + token[7:5:-1] + token[8:]
            given += 2
        if self.enqueued_sequence or self.dead_letter_source is not None or self.state or peek:
            more, extra = self._rare_annotations(peek)
            entries += more
            body += extra
        if given:
            head += b"\x00\x53\x71" + raw_map(given, delivery)
        return head + b"\x00\x53\x72" + raw_map(entries, body) + self._raw[self._properties_at :]

    def _rare_annotations(self, peek: bool) -> tuple[int, bytes]:
        found = []
        if self.enqueued_sequence:
            found.append(_ENQUEUED_SEQUENCE + _I64(self.enqueued_sequence))
        if self.dead_letter_source is not None:
            found.append(_DEAD_LETTER_SOURCE + encode(self.dead_letter_source))
        if self.state or peek:
            found.append(_STATE + encode(Int(self.state)))
        return 2 * len(found), b"".join(found)


def _delivered_header(fields: Sequence[bytes]) -> bytes:
    """The first four of a header's five fields; the fifth, the delivery count, is the broker's."""
    return b"".join(fields[:4]) + _NO_HEADER[len(fields) :]


def _foreign(entries: Iterable[tuple[Any, Raw]]) -> tuple[int, bytes]:
    """The annotations that are not the broker's to write: how many items, and their bytes."""
    kept = []
    for key, value in entries:
        decode(value)
        if key not in _OURS:
            kept.append(encode(key) + value)
    return 2 * len(kept), b"".join(kept)


def _expect_application_properties(raw: bytes, at: int) -> None:
    for key, value in split_map(raw, at):
        if not isinstance(key, str):
            raise bad_field(f"expected the name of an application property as a string, found {key!r}")
        decode(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
