"""Received messages -> the data and metadata that the converters of azure-functions want.

The names and types are those of the real host, found in
* `ServiceBusTriggerBindingStrategy.cs` of Azure/azure-sdk-for-net (Microsoft.Azure.WebJobs.Extensions.ServiceBus):
  which names there are, each with `Array` at its end for a batch; `UserProperties` and `Label` repeat
  `ApplicationProperties` and `Subject`. Nothing else tells one message from a batch, so both must be there.
* `GrpcMessageConversionExtensions.cs` of Azure/azure-functions-host: text arrives as a `string` datum, numbers, dates
  and objects as `json`, and names without a value not at all.
* `MessageToStringConverter.cs`, `MessageToByteArrayConverter.cs`: what the body becomes. Text unless the binding asks for
  binary; bytes that are no UTF-8 get replacement characters.
* `AmqpMessageConverter.cs` of Azure.Messaging.ServiceBus: the first delivery counts as 1, where AMQP (and the Python SDK)
  count failed deliveries from 0. A message that never expires does so at the end of the year 9999.

Two differences, both where Azure leaves the properties of `func.ServiceBusMessage` empty or wrong: `TimeToLive`, `State`,
`LockedUntil`, `ScheduledEnqueueTimeUtc`, `EnqueuedSequenceNumber`, `DeadLetterReason` and `DeadLetterErrorDescription`
are given too; and the arrays of a batch keep their empty places, which Azure drops, so that values move to other messages.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from azure.functions import meta

from dropforge.host.service_bus.link import Received

_NEVER = "9999-12-31T23:59:59.9999999+00:00"


# ---------------------------------------------------------------------- from the SDK
def received(message: Any) -> Received:
    """The SDK's `ServiceBusReceivedMessage` in our words."""
    expires = message.expires_at_utc
    subject = message.subject
    metadata = {
        "MessageId": _text(message.message_id),
        "DeliveryCount": (message.delivery_count or 0) + 1,
        "SequenceNumber": message.sequence_number,
        "EnqueuedSequenceNumber": message.enqueued_sequence_number,
        "EnqueuedTimeUtc": _time(message.enqueued_time_utc),
        "EnqueuedTime": _time(message.enqueued_time_utc),
        "ExpiresAtUtc": _time(expires) if expires else _NEVER,
        "ExpiresAt": _time(expires) if expires else _NEVER,
        "LockedUntil": _time(message.locked_until_utc),
        "ScheduledEnqueueTimeUtc": _time(message.scheduled_enqueue_time_utc),
        "TimeToLive": _seconds(message.time_to_live),
        "State": int(message.state),
        "LockToken": _text(message.lock_token),
        "SessionId": _text(message.session_id),
        "ReplyToSessionId": _text(message.reply_to_session_id),
        "CorrelationId": _text(message.correlation_id),
        "PartitionKey": _text(message.partition_key),
        "ContentType": _text(message.content_type),
        "Subject": _text(subject),
        "Label": _text(subject),
        "ReplyTo": _text(message.reply_to),
        "To": _text(message.to),
        "DeadLetterSource": _text(message.dead_letter_source),
        "DeadLetterReason": _text(message.dead_letter_reason),
        "DeadLetterErrorDescription": _text(message.dead_letter_error_description),
    }
    properties = {str(_plain(name)): _plain(value) for name, value in (message.application_properties or {}).items()}
    body = _body(message)
    # The extension raises for these bodies, and the message ends in the dead-letter queue.
    fault = "" if body is not None else "its body is an AMQP sequence or object, which functions cannot get"
    return Received(body or b"", metadata, properties, message, fault)


def _body(message: Any) -> bytes | None:
    kind = str(getattr(message.body_type, "value", message.body_type)).lower()
    body = message.body
    if kind == "data":
        return b"".join(body)
    # An AMQP string and AMQP binary are both bytes by now; a message without a body has a value that is null.
    return (body or b"") if kind == "value" and (body is None or isinstance(body, bytes)) else None


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _time(value: datetime | None) -> str | None:
    # With the offset spelled out: the converter tries eleven formats, and these come first.
    return None if value is None else value.isoformat()


def _seconds(value: timedelta | None) -> str | None:
    # The converter reads "hh:mm:ss" for less than a day only, and plain seconds always.
    return None if value is None else str(int(value.total_seconds()))


def _plain(value: Any) -> Any:
    """An AMQP value as JSON; the SDK gives strings as bytes."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return _time(value)
    return str(value) if isinstance(value, UUID) else value


# ---------------------------------------------------------------------- to the function
def single(message: Received, *, binary: bool) -> tuple[meta.Datum, dict[str, meta.Datum]]:
    """Data and metadata of a call for one message."""
    datum = meta.Datum(message.body, "bytes") if binary else meta.Datum(_as_text(message), "string")
    metadata = {name: _datum(value) for name, value in message.metadata.items() if value is not None}
    for name in ("ApplicationProperties", "UserProperties"):
        metadata[name] = _json(message.properties)
    return datum, metadata


def batch(messages: Sequence[Received], *, binary: bool) -> tuple[meta.Datum, dict[str, meta.Datum]]:
    """Data and metadata of a call for several messages."""
    if binary:
        bodies = meta.Datum(SimpleNamespace(bytes=[each.body for each in messages]), "collection_bytes")
    else:
        bodies = meta.Datum(SimpleNamespace(string=[_as_text(each) for each in messages]), "collection_string")
    names = {name: None for each in messages for name in each.metadata}
    metadata = {f"{name}Array": _json([each.metadata.get(name) for each in messages]) for name in names}
    for name in ("ApplicationPropertiesArray", "UserPropertiesArray"):
        metadata[name] = _json([each.properties for each in messages])
    return bodies, metadata


def by_hand(text: str) -> Received:
    """The message that `POST /admin/functions/<name>` makes of its input."""
    return Received(text.encode(), {"DeliveryCount": 1, "ExpiresAtUtc": _NEVER, "ExpiresAt": _NEVER})


def loses_bytes(message: Received) -> bool:
    """Whether the body as text is not what was sent."""
    return _as_text(message).encode() != message.body


def _as_text(message: Received) -> str:
    return message.body.decode("utf-8", "replace")


def _datum(value: Any) -> meta.Datum:
    return meta.Datum(value, "string") if isinstance(value, str) else _json(value)


def _json(value: Any) -> meta.Datum:
    return meta.Datum(json.dumps(value, ensure_ascii=False, default=str), "json")
