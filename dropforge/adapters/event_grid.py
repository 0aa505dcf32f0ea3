"""Events to an Event Grid topic that takes the CloudEvents schema."""

from __future__ import annotations

from threading import Lock
from typing import Any

import msgspec

from dropforge.adapters.azure.identity import credential
from dropforge.adapters.patience import Patience
from dropforge.domain.errors import BadInput, Refused, Unavailable
from dropforge.domain.events import DomainEvent, cloud_type

TIMEOUT_SECONDS = 10.0
# The outbox tries again; the step that publishes must not wait for it. (The SDK's client takes no options of this kind for
# a topic and drops them without a word; each call does take them.)
_OPTIONS = {
    "retry_total": 0,
    "permit_redirects": False,
    "connection_timeout": TIMEOUT_SECONDS,
    "read_timeout": TIMEOUT_SECONDS,
}
# What the topic will say of this event ever again. Who may not publish, or finds no topic, has a setting to mend: the
# events wait for that.
_NEVER = {400, 413, 415, 422}


class EventGridTopic:
    """`Events` published with azure-eventgrid, which is loaded on first use. Without a key: as the app's identity."""

    def __init__(self, endpoint: str, key: str | None = None, source: str = "/dropforge/local") -> None:
        self._endpoint = endpoint
        self._key = key
        self._source = source
        self._lock = Lock()
        self._client: Any = None
        self._patience = Patience()

    def publish(self, event: DomainEvent) -> None:
        from azure.core.exceptions import AzureError, HttpResponseError
        from azure.core.messaging import CloudEvent

        _check_json(event)
        told = CloudEvent(
            source=self._source,
            type=cloud_type(event),
            id=event.id,
            time=event.at,
            subject=event.subject,
            datacontenttype="application/json",
            data=event.data,
            extensions=dict(event.extensions),
        )
        with self._patience.asking():
            try:
                self._open().send(told, **_OPTIONS)
            except HttpResponseError as error:
                # Of some answers the SDK keeps a sentence and not the number.
                number = f" {error.status_code}" if error.status_code else ""
                message = f"topic {self._endpoint} answered{number} to event {event.id}: {error.message}"
                if error.status_code in _NEVER:
                    raise Refused(message, id=event.id) from error
                raise Unavailable(message, id=event.id) from error
            except AzureError as error:
                raise Unavailable(f"topic {self._endpoint} does not answer: {error}", id=event.id) from error

    def close(self) -> None:
        """Let go of the connection; the next event opens another."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open(self) -> Any:
        """The client of this process; any number of threads may use it."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        from azure.core.credentials import AzureKeyCredential
        from azure.eventgrid import EventGridPublisherClient

        shown: Any = AzureKeyCredential(self._key) if self._key else credential()
        return EventGridPublisherClient(self._endpoint, shown)


def _check_json(event: DomainEvent) -> None:
    """The SDK writes what is no JSON in a way of its own."""
    try:
        msgspec.json.encode(event.data)
    except (TypeError, ValueError) as error:
        raise BadInput(f"event {event.id!r} holds data that is not JSON: {error}", id=event.id) from error
