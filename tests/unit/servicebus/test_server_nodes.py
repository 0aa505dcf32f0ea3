"""`$cbs` and `$management`: requests in, replies out, and only for those who may ask."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest

from dropforge.servicebus.amqp.decode import decode
from dropforge.servicebus.amqp.encode import described, encode
from dropforge.servicebus.amqp.sections import sections
from dropforge.servicebus.amqp.values import Array, Described, Int, Symbol, Timestamp, UInt, ULong
from dropforge.servicebus.core.sessions import LINGER_MS
from dropforge.servicebus.message import Message
from dropforge.servicebus.sas import AccessKey
from dropforge.servicebus.server.management import PAGE_BYTES
from dropforge.servicebus.server.nodes import MAX_WAITING
from tests.unit.servicebus.amqp_client import Client, World, body_of, in_a_loop, message

ACCEPTED = Described(ULong(0x24), [])
SESSION = Symbol("com.microsoft:session-filter")
KEYS = {
    "Root": AccessKey("root key"),
    "Reader": AccessKey("reader key", frozenset({"Listen"})),
    "Writer": AccessKey("writer key", frozenset({"Send"})),
}
NEVER = 253_402_300_800_000


def _token(resource: str, expires_s: int, name: str = "Root", key: str | None = None) -> str:
    resource = quote(resource, safe="")
    secret = key or KEYS[name].value
    signature = hmac.new(secret.encode(), f"{resource}\n{expires_s}".encode(), hashlib.sha256).digest()
    signed = quote(base64.b64encode(signature), safe="")
    return f"SharedAccessSignature sr={resource}&sig={signed}&se={expires_s}&skn={name}"


def _put(client: Client, token: Any, name: str = "sb://localhost:5672/q") -> dict[str, Any]:
    properties, _ = client.ask("$cbs", "put-token", token, handle=20, type="jwt", name=name)
    return properties


def _manage(
    client: Client, operation: str, body: Any, entity: str = "q", **properties: Any
) -> tuple[dict[str, Any], Any]:
    return client.ask(f"{entity}/$management", f"com.microsoft:{operation}", body, **properties)


# ------------------------------------------------------------------------------------------------------------ $cbs


@in_a_loop
async def test_without_keys_any_token_is_accepted() -> None:
    answered = _put(World().client(), "whatever")
    assert answered == {"status-code": 202, "status-description": "Accepted"}
    assert type(answered["status-code"]) is Int


@in_a_loop
async def test_an_entity_that_does_not_exist_is_not_found_as_the_token_is_put() -> None:
    answered = _put(World().client(), "whatever", "sb://localhost/nowhere")
    assert answered["status-code"] == 404
    assert "error-condition" not in answered


@in_a_loop
async def test_a_signed_token_opens_its_entity_and_no_other() -> None:
    world = World(keys=KEYS)
    client = world.client()
    assert client.attach("q")[1][2].value[0] == "amqp:unauthorized-access"
    client.frame(0x16, [UInt(0), True], channel=1)
    expires = world.clock.ms // 1000 + 60
    assert _put(client, _token("sb://localhost:5672/q", expires))["status-code"] == 202
    assert client.attach("q", handle=1)[0][6] is not None
    assert client.attach("Q/$DeadLetterQueue", handle=2, receives=True)[0][5] is not None
    assert client.attach("other", handle=3)[1][2].value[0] == "amqp:unauthorized-access"
    world.clock.ms += 61_000
    assert client.attach("q", handle=4)[1][2].value[0] == "amqp:unauthorized-access"


@in_a_loop
async def test_a_token_for_the_whole_namespace_opens_the_entity_it_is_put_for() -> None:
    world = World(keys=KEYS)
    client = world.client()
    expires = world.clock.ms // 1000 + 60
    assert _put(client, _token("sb://localhost:5672/", expires))["status-code"] == 202
    assert client.attach("q")[0][6] is not None


@pytest.mark.parametrize(("name", "may", "may_not"), [("Reader", True, False), ("Writer", False, True)])
def test_a_key_with_one_right_opens_one_direction(name: str, may: bool, may_not: bool) -> None:
    @in_a_loop
    async def attempt() -> None:
        world = World(keys=KEYS)
        client = world.client()
        _put(client, _token("sb://localhost:5672/q", world.clock.ms // 1000 + 60, name))
        assert client.attach("q", handle=1, receives=may)[0][5] is not None
        assert client.attach("q", handle=2, receives=may_not)[1][2].value[0] == "amqp:unauthorized-access"

    attempt()


@pytest.mark.parametrize(
    "token",
    [
        _token("sb://localhost:5672/q", 2_000_000_000, key="wrong"),
        _token("sb://localhost:5672/q", 1_600_000_000),
        _token("sb://localhost:5672/other", 2_000_000_000),
        _token("sb://localhost:5672/q", 2_000_000_000).replace("skn=Root", "skn=Nobody"),
        "SharedAccessSignature sr=x&sig=%%%&se=never&skn=Root",
        "SharedAccessSignature ",
        "a.b.c",
        "",
    ],
)
def test_a_token_that_proves_nothing_is_refused(token: str) -> None:
    @in_a_loop
    async def attempt() -> None:
        client = World(keys=KEYS).client()
        answered = _put(client, token)
        assert (answered["status-code"], answered["error-condition"]) == (401, "amqp:unauthorized-access")
        assert client.attach("q")[1][2].value[0] == "amqp:unauthorized-access"

    attempt()


@in_a_loop
async def test_a_put_without_audience_or_with_another_operation_is_refused() -> None:
    client = World().client()
    assert client.ask("$cbs", "put-token", "x")[0]["status-code"] == 400
    assert client.ask("$cbs", "delete-token", "x", name="q")[0]["status-code"] == 501
    assert client.ask("$cbs", "put-token", {"a": 1}, name="q")[0]["status-code"] == 400


# ----------------------------------------------------------------------------------------------------- $management


def _filled(*bodies: str, entity: str = "q", session: str | None = None) -> tuple[World, Client]:
    world = World()
    client = world.client()
    client.attach(entity)
    for text in bodies:
        client.transfer(message(text, session_id=session))
    client.heard()
    return world, client


def _peeked(body: Any) -> list[str]:
    found = []
    for entry in body["messages"]:
        raw = entry["message"]
        at = next(value_at for code, _, value_at, _ in sections(raw) if code == 0x75)
        found.append(str(decode(raw, at)[0], "utf-8"))
    return found


@in_a_loop
async def test_messages_are_peeked_page_by_page() -> None:
    _, client = _filled("0", "1", "2")
    status, body = _manage(client, "peek-message", {"from-sequence-number": 1, "message-count": Int(2)})
    assert (status["statusCode"], _peeked(body)) == (200, ["0", "1"])
    assert _peeked(_manage(client, "peek-message", {"from-sequence-number": 3, "message-count": Int(9)})[1]) == ["2"]
    status, body = _manage(client, "peek-message", {"from-sequence-number": 4, "message-count": Int(9)})
    assert (status["statusCode"], body) == (204, {})
    asked = {"from-sequence-number": -(1 << 63), "message-count": Int(-1)}
    assert _manage(client, "peek-message", asked)[0]["statusCode"] == 204


@in_a_loop
async def test_a_page_is_bounded_in_bytes_and_never_empty() -> None:
    _, client = _filled(*["x" * 60_000] * 20)
    _, body = _manage(client, "peek-message", {"from-sequence-number": 1, "message-count": Int(100)})
    assert len(body["messages"]) == PAGE_BYTES // 60_000


@in_a_loop
async def test_scheduled_messages_get_numbers_come_when_due_and_can_be_cancelled() -> None:
    world = World()
    client = world.client()
    due = world.clock.ms + 10_000
    annotation = described(0x72, encode({Symbol("x-opt-scheduled-enqueue-time"): Timestamp(due)}))
    entries = [{"message-id": text, "message": annotation + message(text)} for text in ("a", "b")]
    status, body = _manage(client, "schedule-message", {"messages": entries})
    numbers = body["sequence-numbers"]
    assert (status["statusCode"], len(numbers), numbers.of) == (200, 2, int)
    assert (
        _manage(client, "cancel-scheduled-message", {"sequence-numbers": Array(int, numbers[1:])})[0]["statusCode"]
        == 200
    )
    status, _ = _manage(client, "cancel-scheduled-message", {"sequence-numbers": Array(int, numbers[1:])})
    assert (status["statusCode"], status["errorCondition"]) == (404, "com.microsoft:message-not-found")
    client.attach("q", receives=True)
    client.flow(0, 5)
    assert client.heard(0x14) == []
    world.later(10_001)
    assert [body_of(each) for each in client.heard(0x14)] == ["a"]


@in_a_loop
async def test_a_lock_is_renewed_and_its_message_settled_over_management() -> None:
    world, client = _filled("0", "1", "2")
    client.attach("q", handle=1, receives=True)
    client.flow(1, 3)
    tokens = [UUID(bytes_le=each[2]) for each in client.heard(0x14)]
    world.clock.ms += 20_000
    status, body = _manage(client, "renew-lock", {"lock-tokens": Array(UUID, tokens[:1])})
    assert (status["statusCode"], body["expirations"]) == (200, [world.clock.ms + 30_000])
    assert body["expirations"].of is Timestamp
    for token, asked in zip(tokens, ("completed", "abandoned", "suspended"), strict=True):
        fields = {"disposition-status": asked, "lock-tokens": Array(UUID, [token]), "deadletter-reason": "why"}
        assert _manage(client, "update-disposition", fields)[0]["statusCode"] == 200
    client.frame(0x16, [UInt(1), True], channel=1)
    _, body = _manage(client, "peek-message", {"from-sequence-number": 1, "message-count": Int(9)})
    assert _peeked(body) == ["1"]
    assert _manage(client, "peek-message", {"message-count": Int(9)}, "q/$DeadLetterQueue")[0]["statusCode"] == 200
    status, _ = _manage(client, "renew-lock", {"lock-tokens": Array(UUID, [uuid4()])})
    assert (status["statusCode"], status["errorCondition"]) == (410, "com.microsoft:message-lock-lost")


@in_a_loop
async def test_a_deferred_message_is_received_by_its_number() -> None:
    _, client = _filled("0", "1")
    client.attach("q", handle=1, receives=True)
    client.flow(1, 2)
    transfers = client.heard(0x14)
    numbers = [_sequence(each.payload) for each in transfers]
    for each in transfers:
        client.dispose(each[1], Described(ULong(0x27), [True, True, None]))
    asked = {"sequence-numbers": Array(int, numbers[:1]), "receiver-settle-mode": UInt(1)}
    status, body = _manage(client, "receive-by-sequence-number", asked)
    (entry,) = body["messages"]
    assert (status["statusCode"], _peeked(body)) == (200, ["0"])
    settled = {"disposition-status": "completed", "lock-tokens": Array(UUID, [entry["lock-token"]])}
    assert _manage(client, "update-disposition", settled)[0]["statusCode"] == 200
    asked = {"sequence-numbers": Array(int, numbers[1:]), "receiver-settle-mode": UInt(0)}
    status, body = _manage(client, "receive-by-sequence-number", asked)
    assert (_peeked(body), "lock-token" in body["messages"][0]) == (["1"], False)
    assert _manage(client, "receive-by-sequence-number", asked)[0]["statusCode"] == 404


def _sequence(raw: bytes) -> int:
    annotations = next(decode(raw, value_at)[0] for code, _, value_at, _ in sections(raw) if code == 0x72)
    return int(annotations["x-opt-sequence-number"])


@in_a_loop
async def test_a_session_s_state_and_lock_are_managed_by_who_holds_it() -> None:
    world, client = _filled("0", entity="s", session="A")
    status, _ = _manage(client, "get-session-state", {"session-id": "A"}, "s")
    assert (status["statusCode"], status["errorCondition"]) == (410, "com.microsoft:session-lock-lost")
    client.attach("s", handle=1, receives=True, filters={SESSION: "A"})
    assert _manage(client, "get-session-state", {"session-id": "A"}, "s")[1] == {"session-state": None}
    assert (
        _manage(client, "set-session-state", {"session-id": "A", "session-state": b"st"}, "s")[0]["statusCode"] == 200
    )
    assert _manage(client, "get-session-state", {"session-id": "A"}, "s")[1] == {"session-state": b"st"}
    world.clock.ms += 1_000
    _, body = _manage(client, "renew-session-lock", {"session-id": "A"}, "s")
    assert body == {"expiration": world.clock.ms + 30_000}
    assert type(body["expiration"]) is Timestamp


@in_a_loop
async def test_who_lost_a_session_cannot_manage_it_though_another_has_it() -> None:
    world, first = _filled("0", entity="s", session="A")
    second = world.client()
    first.attach("s", handle=1, receives=True, filters={SESSION: "A"}, name="first")
    world.later(30_000)
    second.attach("s", handle=1, receives=True, filters={SESSION: "A"}, name="second")
    asked = {"session-id": "A", "session-state": b"st", "sequence-numbers": Array(int, [1])}
    operations = ("renew-session-lock", "get-session-state", "set-session-state", "receive-by-sequence-number")
    # At first its link lingers, and then it is gone.
    for _ in range(2):
        for operation in operations:
            status, _ = _manage(first, operation, asked, "s", **{"associated-link-name": "first"})
            assert (operation, status["errorCondition"]) == (operation, "com.microsoft:session-lock-lost")
        world.later(LINGER_MS)
    for operation in operations[:3]:
        assert _manage(second, operation, asked, "s", **{"associated-link-name": "second"})[0]["statusCode"] == 200
        assert _manage(second, operation, asked, "s")[0]["statusCode"] == 200


@in_a_loop
async def test_sessions_with_messages_are_listed() -> None:
    _, client = _filled("0", entity="s", session="A")
    client.transfer(message(session_id="B"))
    client.heard()
    asked = {"last-updated-time": Timestamp(NEVER), "skip": Int(0), "top": Int(1)}
    status, body = _manage(client, "get-message-sessions", asked, "s")
    assert (status["statusCode"], body) == (200, {"skip": 1, "sessions-ids": ["A"]})
    asked["skip"] = Int(2)
    assert _manage(client, "get-message-sessions", asked, "s")[0]["statusCode"] == 204


@pytest.mark.parametrize(
    ("operation", "body", "status"),
    [
        ("fly", {}, 501),
        ("renew-lock", {}, 400),
        ("renew-lock", {"lock-tokens": "all"}, 400),
        ("renew-lock", None, 400),
        ("peek-message", {"message-count": "many"}, 400),
        ("schedule-message", {"messages": [{}]}, 400),
        ("schedule-message", {"messages": [{"message": b"no message"}]}, 400),
        ("update-disposition", {"disposition-status": "lost", "lock-tokens": []}, 400),
        ("set-session-state", {"session-id": "A", "session-state": 5}, 400),
        ("get-session-state", {"session-id": "A"}, 400),
        ("receive-by-sequence-number", {"sequence-numbers": Array(int, [99])}, 404),
    ],
)
def test_a_request_that_cannot_be_done_says_why(operation: str, body: Any, status: int) -> None:
    @in_a_loop
    async def attempt() -> None:
        answered, _ = _manage(World().client(), operation, body)
        assert answered["statusCode"] == status
        assert answered["statusDescription"]
        assert type(answered["errorCondition"]) is Symbol

    attempt()


@in_a_loop
async def test_a_topic_has_nothing_to_receive() -> None:
    answered, _ = _manage(World().client(), "renew-lock", {"lock-tokens": Array(UUID, [])}, "t")
    assert answered["errorCondition"] == "amqp:not-allowed"


@in_a_loop
async def test_what_may_be_asked_depends_on_the_key() -> None:
    world = World(keys=KEYS)
    client = world.client()
    _put(client, _token("sb://localhost:5672/q", world.clock.ms // 1000 + 60, "Writer"))
    assert _manage(client, "peek-message", {})[0]["errorCondition"] == "amqp:unauthorized-access"
    assert _manage(client, "schedule-message", {"messages": []})[0]["statusCode"] == 200
    assert client.attach("other/$management", handle=5)[1][2].value[0] == "amqp:unauthorized-access"


@in_a_loop
async def test_a_reply_finds_the_link_that_the_request_names() -> None:
    client = World().client()
    client.attach("q/$management", handle=0)
    for handle in (1, 2):
        client.attach("q/$management", handle=handle, receives=True, reply_to=f"me-{handle}")
        client.flow(handle, 5)
    client.heard()
    request = described(0x73, encode([uuid4(), None, None, None, "me-1"])) + described(0x77, encode({}))
    client.transfer(request)
    assert [each[0] for each in client.heard(0x14)] == [1]


@in_a_loop
async def test_replies_wait_for_credit_and_too_many_of_them_end_the_link() -> None:
    client = World().client()
    client.attach("$cbs", handle=0)
    client.attach("$cbs", handle=1, receives=True)
    request = described(0x73, encode([uuid4(), None, None, None, "$cbs"])) + described(0x77, encode("x"))
    for _ in range(3):
        client.transfer(request)
    assert client.heard(0x14) == []
    client.flow(1, 2)
    assert len(client.heard(0x14)) == 2
    for _ in range(MAX_WAITING):
        client.transfer(request)
    (detached,) = client.heard(0x16)
    assert (detached[0], detached[2].value[0]) == (1, "amqp:resource-limit-exceeded")


@in_a_loop
async def test_large_replies_wait_too_and_end_the_link_when_they_are_too_many() -> None:
    _, client = _filled(*["x" * 60_000] * 20)
    client.attach("q/$management", handle=8)
    client.attach("q/$management", handle=9, receives=True)
    properties = described(0x74, encode({"operation": "com.microsoft:peek-message"}))
    request = described(0x73, encode([uuid4(), None, None, None, "q/$management"])) + properties
    request += described(0x77, encode({"message-count": Int(100)}))
    asked = 0
    while not (detached := client.heard(0x16)):
        client.transfer(request, handle=8)
        asked += 1
        assert asked < MAX_WAITING
    assert detached[0][2].value[0] == "amqp:resource-limit-exceeded"
    assert asked > 10


@in_a_loop
async def test_a_request_that_is_no_message_is_refused() -> None:
    client = World().client()
    client.attach("$cbs", handle=0)
    client.heard()
    client.transfer(b"nonsense")
    (refused,) = client.heard()
    assert refused[4].descriptor == 0x25


def test_messages_are_stored_as_they_were_scheduled() -> None:
    # The scheduled time travels with the message, so that a restart knows it.
    annotation = described(0x72, encode({Symbol("x-opt-scheduled-enqueue-time"): Timestamp(5)}))
    assert Message.parse(Message.parse(annotation + message()).stored()).scheduled_at == 5
