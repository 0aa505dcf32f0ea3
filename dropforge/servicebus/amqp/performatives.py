"""What a client asks, out of the body of a frame. A performative whose fields have other types than AMQP gives them
is refused as a whole."""

# Named tuples, not dataclasses: one is made for every frame, and a frozen dataclass takes three times as long.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from dropforge.servicebus.amqp.decode import decode, decode_whole, malformed, split_list
from dropforge.servicebus.amqp.encode import described, encode, list_of
from dropforge.servicebus.amqp.values import Described, Raw, Symbol
from dropforge.servicebus.errors import bad_field

OPEN: Final = 0x10
BEGIN: Final = 0x11
ATTACH: Final = 0x12
FLOW: Final = 0x13
TRANSFER: Final = 0x14
DISPOSITION: Final = 0x15
DETACH: Final = 0x16
END: Final = 0x17
CLOSE: Final = 0x18
SASL_INIT: Final = 0x41

RECEIVED: Final = 0x23
ACCEPTED: Final = 0x24
REJECTED: Final = 0x25
RELEASED: Final = 0x26
MODIFIED: Final = 0x27

SOURCE: Final = 0x28
TARGET: Final = 0x29
COORDINATOR: Final = 0x30

# Descriptors may be written as symbols instead of numbers.
_CODES: Final = {
    "amqp:open:list": OPEN,
    "amqp:begin:list": BEGIN,
    "amqp:attach:list": ATTACH,
    "amqp:flow:list": FLOW,
    "amqp:transfer:list": TRANSFER,
    "amqp:disposition:list": DISPOSITION,
    "amqp:detach:list": DETACH,
    "amqp:end:list": END,
    "amqp:close:list": CLOSE,
    "amqp:sasl-init:list": SASL_INIT,
    "amqp:received:list": RECEIVED,
    "amqp:accepted:list": ACCEPTED,
    "amqp:rejected:list": REJECTED,
    "amqp:released:list": RELEASED,
    "amqp:modified:list": MODIFIED,
    "amqp:source:list": SOURCE,
    "amqp:target:list": TARGET,
    "amqp:coordinator:list": COORDINATOR,
}

SESSION_FILTER: Final = "com.microsoft:session-filter"
_FILTER_PLACE: Final = 7

_T = TypeVar("_T")


class Open(NamedTuple):
    container: str
    max_frame: int
    idle_ms: int


class Begin(NamedTuple):
    next_outgoing_id: int
    incoming_window: int


class Term(NamedTuple):
    """A source or a target: one end of a link."""

    code: int
    fields: list[Any]
    raw: bytes

    @property
    def address(self) -> str:
        address = self.fields[0] if self.fields else None
        return address if isinstance(address, str) else ""

    @property
    def filters(self) -> Mapping[Any, Any]:
        found = self.fields[_FILTER_PLACE] if len(self.fields) > _FILTER_PLACE else None
        return found if isinstance(found, dict) else {}

    def with_session(self, session_id: str) -> bytes:
        """The same source, with the session that was granted as its filter. All else is echoed as it came."""
        start = decode(self.raw, 1)[1]
        fields: list[bytes] = [*split_list(self.raw, start)]
        fields += [b"\x40"] * (_FILTER_PLACE + 1 - len(fields))
        fields[_FILTER_PLACE] = encode({Symbol(SESSION_FILTER): session_id})
        return described(SOURCE, list_of(fields))


class Attach(NamedTuple):
    name: str
    handle: int
    # The client's role on the link.
    receives: bool
    sender_settle_mode: int
    receiver_settle_mode: int
    source: Term | None
    target: Term | None
    initial_delivery_count: int
    properties: Mapping[Any, Any]


class Flow(NamedTuple):
    next_incoming_id: int
    incoming_window: int
    handle: int | None
    delivery_count: int
    credit: int
    drain: bool
    echo: bool


class Transfer(NamedTuple):
    handle: int
    delivery_id: int | None
    message_format: int
    settled: bool
    more: bool
    aborted: bool


class Disposition(NamedTuple):
    # Whether the client speaks as the receiver of the deliveries.
    receives: bool
    first: int
    last: int
    settled: bool
    state: Described | None


class Detach(NamedTuple):
    handle: int
    closed: bool


def performative(body: bytes) -> tuple[int, int]:
    """The code of the performative in a frame's body, and where its fields start."""
    if body[:2] == b"\x00\x53" and len(body) > 3:
        return body[2], 3
    if body[:1] != b"\x00":
        raise malformed("expected a performative at the start of the frame")
    descriptor, at = decode(body, 1)
    return code_of(descriptor), at


def code_of(descriptor: Any) -> int:
    """The number of a descriptor, 0 for one that AMQP does not know."""
    if isinstance(descriptor, str):
        return _CODES.get(descriptor, 0)
    return int(descriptor) if isinstance(descriptor, int) else 0


def read_open(body: bytes, at: int) -> Open:
    fields = _fields(body, at, 5)
    return Open(
        container=_of(str, fields[0], "container-id", ""),
        max_frame=_uint(fields[2], "max-frame-size", 0xFFFFFFFF),
        idle_ms=_uint(fields[4], "idle-time-out", 0),
    )


def read_begin(body: bytes, at: int) -> Begin:
    fields = _fields(body, at, 3)
    return Begin(
        next_outgoing_id=_uint(fields[1], "next-outgoing-id"),
        incoming_window=_uint(fields[2], "incoming-window"),
    )


def read_attach(body: bytes, at: int) -> Attach:
    parts = split_list(body, at)
    parts += [Raw(b"\x40")] * (14 - len(parts))
    source, target = parts[5], parts[6]
    fields = [None if place in (5, 6) else decode(part)[0] for place, part in enumerate(parts)]
    return Attach(
        name=_of(str, fields[0], "name"),
        handle=_uint(fields[1], "handle"),
        receives=_of(bool, fields[2], "role"),
        sender_settle_mode=_uint(fields[3], "snd-settle-mode", 2, most=2),
        receiver_settle_mode=_uint(fields[4], "rcv-settle-mode", 0, most=1),
        source=_term(source),
        target=_term(target),
        initial_delivery_count=_uint(fields[9], "initial-delivery-count", 0),
        properties=_of(dict, fields[13], "properties", {}),
    )


def read_flow(body: bytes, at: int) -> Flow:
    fields = _fields(body, at, 11)
    return Flow(
        next_incoming_id=_uint(fields[0], "next-incoming-id", 0),
        incoming_window=_uint(fields[1], "incoming-window"),
        handle=None if fields[4] is None else _uint(fields[4], "handle"),
        delivery_count=_uint(fields[5], "delivery-count", 0),
        credit=_uint(fields[6], "link-credit", 0),
        drain=_of(bool, fields[8], "drain", False),
        echo=_of(bool, fields[9], "echo", False),
    )


def read_transfer(body: bytes, at: int) -> tuple[Transfer, int]:
    """The transfer, and where its payload starts."""
    fields, end = decode(body, at)
    if not isinstance(fields, list):
        raise malformed("expected the fields of a transfer as a list")
    fields += [None] * (11 - len(fields))
    transfer = Transfer(
        handle=_uint(fields[0], "handle"),
        delivery_id=None if fields[1] is None else _uint(fields[1], "delivery-id"),
        message_format=_uint(fields[3], "message-format", 0),
        settled=_of(bool, fields[4], "settled", False),
        more=_of(bool, fields[5], "more", False),
        aborted=_of(bool, fields[9], "aborted", False),
    )
    return transfer, end


def read_disposition(body: bytes, at: int) -> Disposition:
    fields = _fields(body, at, 6)
    first = _uint(fields[1], "first")
    state = fields[4]
    return Disposition(
        receives=_of(bool, fields[0], "role"),
        first=first,
        last=_uint(fields[2], "last", first),
        settled=_of(bool, fields[3], "settled", False),
        state=state if isinstance(state, Described) else None,
    )


def read_detach(body: bytes, at: int) -> Detach:
    fields = _fields(body, at, 2)
    return Detach(handle=_uint(fields[0], "handle"), closed=_of(bool, fields[1], "closed", False))


def read_sasl_init(body: bytes, at: int) -> tuple[str, bytes]:
    """The mechanism that the client chose, and its first response."""
    fields = _fields(body, at, 2)
    return _of(str, fields[0], "mechanism"), _of(bytes, fields[1], "initial-response", b"")


def _term(raw: bytes) -> Term | None:
    value = decode_whole(raw)
    if value is None:
        return None
    if not isinstance(value, Described) or not isinstance(value.value, list):
        raise bad_field("expected the source or target of a link as a described list")
    return Term(code_of(value.descriptor), value.value, raw)


def _fields(body: bytes, at: int, wanted: int) -> list[Any]:
    fields = decode(body, at)[0]
    if not isinstance(fields, list):
        raise malformed("expected the fields of a performative as a list")
    # Trailing fields that are null may be left out.
    return fields + [None] * (wanted - len(fields))


def _uint(value: Any, name: str, default: int | None = None, *, most: int = 0xFFFFFFFF) -> int:
    if isinstance(value, int) and value is not True and value is not False and 0 <= value <= most:
        return value
    if value is None and default is not None:
        return default
    raise bad_field(f"expected the field {name} as a number up to {most}, found {_shown(value)}")


def _of(kind: type[_T], value: Any, name: str, default: _T | None = None) -> _T:
    if isinstance(value, kind):
        return value
    if value is None and default is not None:
        return default
    raise bad_field(f"expected the field {name} as {kind.__name__}, found {_shown(value)}")


def _shown(value: Any) -> str:
    return str(int(value)) if isinstance(value, int) else type(value).__name__
