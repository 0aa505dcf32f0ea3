"""What functions get of a message: the converters of azure-functions must find every property."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from azure.functions import meta

from dropforge.host.service_bus.link import Received
from dropforge.host.service_bus.messages import batch, by_hand, loses_bytes, received, single

TOKEN = uuid.UUID("12345678-1234-5678-1234-567812345678")
AT = datetime(2026, 11, 22, 12, 0, 0, 123000, UTC)


def sdk(**about: Any) -> SimpleNamespace:
    """A received message of the SDK with everything set that there is."""
    given: dict[str, Any] = {
        "message_id": "m-1", "delivery_count": 0, "sequence_number": 7, "enqueued_sequence_number": 5,
        "enqueued_time_utc": AT, "expires_at_utc": AT + timedelta(days=2), "locked_until_utc": AT + timedelta(minutes=1),
        "scheduled_enqueue_time_utc": None, "time_to_live": timedelta(days=2), "state": 0, "lock_token": TOKEN,
        "session_id": "s", "reply_to_session_id": "rs", "correlation_id": "c", "partition_key": "s",
        "content_type": "application/json", "subject": "train", "reply_to": "replies", "to": "t",
        "dead_letter_source": "q0", "dead_letter_reason": "why", "dead_letter_error_description": "what",
        "application_properties": {b"text": b"a", b"number": 1, b"flag": True, b"bytes": b"\xff", b"id": TOKEN},
        "body_type": SimpleNamespace(value="data"), "body": iter([b'{"a": ', b"1}"]),
    }  # fmt: skip
    return SimpleNamespace(**{**given, **about})


def decoded(datum: meta.Datum, metadata: dict[str, meta.Datum]) -> Any:
    return meta.get_binding_registry().get("serviceBusTrigger").decode(datum, trigger_metadata=metadata)


PROPERTIES = {
    "message_id": "m-1",
    # The first delivery counts as 1, as in .NET.
    "delivery_count": 1,
    "sequence_number": 7,
    "enqueued_sequence_number": 5,
    "enqueued_time_utc": AT,
    "expires_at_utc": AT + timedelta(days=2),
    "locked_until": AT + timedelta(minutes=1),
    "scheduled_enqueue_time_utc": None,
    "time_to_live": timedelta(days=2),
    "state": 0,
    "lock_token": str(TOKEN),
    "session_id": "s",
    "reply_to_session_id": "rs",
    "correlation_id": "c",
    "partition_key": "s",
    "content_type": "application/json",
    "subject": "train",
    "label": "train",
    "reply_to": "replies",
    "to": "t",
    "dead_letter_source": "q0",
    "dead_letter_reason": "why",
    "dead_letter_error_description": "what",
    "application_properties": {"text": "a", "number": 1, "flag": True, "bytes": "/w==", "id": str(TOKEN)},
    "user_properties": {"text": "a", "number": 1, "flag": True, "bytes": "/w==", "id": str(TOKEN)},
}


def test_a_single_message_has_every_property() -> None:
    found = decoded(*single(received(sdk()), binary=False))
    assert found.get_body() == b'{"a": 1}'
    assert {name: getattr(found, name) for name in PROPERTIES} == PROPERTIES
    assert found.metadata["DeliveryCount"] == 1
    assert found.metadata["MessageId"] == "m-1"


def test_each_message_of_a_batch_has_its_own_properties() -> None:
    bare = sdk(message_id="m-2", correlation_id=None, subject=None, application_properties=None, body=iter([b""]))
    first, second = decoded(*batch([received(bare), received(sdk())], binary=False))
    assert (first.message_id, first.correlation_id, first.subject, first.get_body()) == ("m-2", None, None, b"")
    assert first.application_properties == {}
    assert {name: getattr(second, name) for name in PROPERTIES} == PROPERTIES
    assert second.get_body() == b'{"a": 1}'


def test_a_message_without_anything_is_one_too() -> None:
    nothing = dict.fromkeys(vars(sdk()))
    message = SimpleNamespace(
        **{**nothing, "state": 0, "sequence_number": 1, "body_type": SimpleNamespace(value="value")}
    )
    found = decoded(*single(received(message), binary=False))
    assert (found.get_body(), found.message_id, found.user_properties) == (b"", None, {})
    # As .NET says that it never expires.
    assert found.expires_at_utc.year == 9999
    assert "CorrelationId" not in found.metadata


@pytest.mark.parametrize("binary", [False, True])
def test_a_text_body_comes_as_text_and_a_binary_one_as_bytes(binary: bool) -> None:
    message = received(sdk(body=iter(["é".encode()])))
    datum, _ = single(message, binary=binary)
    assert (datum.type, datum.value) == (("bytes", "é".encode()) if binary else ("string", "é"))
    datum, _ = batch([message], binary=binary)
    assert datum.type == ("collection_bytes" if binary else "collection_string")
    assert not loses_bytes(message)


def test_bytes_that_are_no_text_are_replaced_as_in_azure_unless_binary_is_asked_for() -> None:
    message = received(sdk(body=iter([b"\xff\x00"])))
    assert loses_bytes(message)
    assert single(message, binary=False)[0].value == "\ufffd\x00"
    assert single(message, binary=True)[0].value == b"\xff\x00"


@pytest.mark.parametrize(
    ("kind", "body", "expected", "fault"),
    [("value", b"text", b"text", False), ("value", 7, b"", True), ("sequence", [[1]], b"", True)],
)
def test_an_amqp_value_is_text_and_other_kinds_are_faults(kind: str, body: Any, expected: bytes, fault: bool) -> None:
    found = received(sdk(body_type=SimpleNamespace(value=kind), body=body))
    assert (found.body, bool(found.fault)) == (expected, fault)


def test_nested_properties_become_json() -> None:
    found = received(sdk(application_properties={b"map": {b"k": [b"v", AT]}}))
    assert found.properties == {"map": {"k": ["v", "2026-11-22T12:00:00.123000+00:00"]}}
    assert json.loads(single(found, binary=False)[1]["UserProperties"].value) == found.properties


def test_a_call_by_hand_has_a_body_and_nothing_else() -> None:
    found = decoded(*single(by_hand("hello"), binary=False))
    assert (found.get_body(), found.message_id, found.delivery_count, found.user_properties) == (b"hello", None, 1, {})


def test_a_message_is_called_by_its_id_or_its_number() -> None:
    assert Received(b"", {"MessageId": "m", "SequenceNumber": 3}).id == "m"
    assert Received(b"", {"MessageId": None, "SequenceNumber": 3}).id == "number 3"
