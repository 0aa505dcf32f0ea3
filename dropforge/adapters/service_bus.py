"""Replies through Azure Service Bus, or the local endpoint that speaks as it does."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from threading import Lock
from typing import Any

import msgspec

from dropforge.adapters.azure.identity import credential
from dropforge.adapters.patience import Patience
from dropforge.domain.errors import DropforgeError, NotFound, Refused, Unavailable
from dropforge.domain.events import Reply

TIMEOUT_SECONDS = 10.0
# Each sender is a connection; askers name any queue they like.
MAX_SENDERS = 16
# What Service Bus says of a message that it will never take: no session id on a queue with sessions, for one.
_NEVER = {"amqp:not-allowed", "amqp:invalid-field", "amqp:not-implemented", "com.microsoft:argument-error"}


class ServiceBusReplies:
    """`Replies` sent with azure-servicebus, which is loaded on first use. One client for the process, which its threads
    share; the SDK's are not made for that, so they take turns.

    `connection`: a connection string; else `namespace`: the fully qualified name, reached as the app's identity
    (`client_id`: of a user-assigned one).
    """

    def __init__(
        self,
        connection: str | None = None,
        namespace: str | None = None,
        client_id: str | None = None,
        max_senders: int = MAX_SENDERS,
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._client_id = client_id
        self._max_senders = max_senders
        self._lock = Lock()
        self._client: Any = None
        self._senders: OrderedDict[str, Any] = OrderedDict()
        self._patience = Patience()

    def send(self, reply: Reply) -> None:
        if not self._connection and not self._namespace:
            raise Refused(
                f"there is no Service Bus to answer on {reply.queue!r}: set SERVICE_BUS (a connection string) or "
                "SERVICE_BUS__fullyQualifiedNamespace",
                queue=reply.queue,
            )
        from azure.core.exceptions import AzureError

        with self._lock, self._patience.asking():
            try:
                self._sender(reply.queue).send_messages(_message(reply), timeout=TIMEOUT_SECONDS)
            except (ValueError, TypeError) as error:
                # The SDK's own checks (an id that is too long, a message too large), before anything is sent.
                self._drop(reply.queue)
                raise Refused(f"Service Bus cannot take the reply for {reply.queue!r}: {error}") from error
            except (AzureError, OSError) as error:
                self._drop(reply.queue)
                raise _ours(error, reply.queue) from error

    def close(self) -> None:
        """Let go of every connection; the next reply opens another."""
        with self._lock:
            for queue in list(self._senders):
                self._drop(queue)
            client, self._client = self._client, None
            if client is not None:
                client.close()

    def _sender(self, queue: str) -> Any:
        sender = self._senders.get(queue)
        if sender is None:
            while len(self._senders) >= self._max_senders:
                self._drop(next(iter(self._senders)))
            sender = self._senders[queue] = self._open().get_queue_sender(queue)
        self._senders.move_to_end(queue)
        return sender

    def _drop(self, queue: str) -> None:
        """A sender that failed is not used again: what it waits for may never come."""
        sender = self._senders.pop(queue, None)
        if sender is not None:
            with suppress(Exception):
                sender.close()

    def _open(self) -> Any:
        if self._client is None:
            from azure.servicebus import ServiceBusClient

            # The outbox tries again; the step that sends must not wait for it.
            patience = {"retry_total": 1, "retry_backoff_factor": 0.1, "try_timeout": TIMEOUT_SECONDS}
            if self._connection:
                try:
                    self._client = ServiceBusClient.from_connection_string(self._connection, **patience)
                except ValueError as error:
                    # Its text may hold the connection string, and with it the key.
                    raise Unavailable("setting SERVICE_BUS is not a Service Bus connection string; mend it") from error
            else:
                self._client = ServiceBusClient(self._namespace, credential(self._client_id), **patience)
        return self._client


def _message(reply: Reply) -> Any:
    from azure.servicebus import ServiceBusMessage

    return ServiceBusMessage(
        msgspec.json.encode(reply.body),
        content_type="application/json",
        message_id=reply.id,
        correlation_id=reply.correlation_id,
        session_id=reply.session_id,
        subject="reply",
    )


def _ours(error: Exception, queue: str) -> DropforgeError:
    from azure.servicebus.exceptions import MessageSizeExceededError, MessagingEntityNotFoundError

    # Azure refuses the token for a queue that does not exist with 404, which the SDK calls an authentication error.
    status = getattr(getattr(error, "inner_exception", None), "status_code", None)
    if isinstance(error, MessagingEntityNotFoundError) or status == 404:
        return NotFound(f"Service Bus has no queue {queue!r}; declare it, or name another in `replyTo`", queue=queue)
    condition = str(getattr(error, "_condition", None))
    if isinstance(error, MessageSizeExceededError) or condition in _NEVER:
        return Refused(f"Service Bus will not take the reply for {queue!r}: {_line(error)}", queue=queue)
    return Unavailable(f"Service Bus does not take the reply for {queue!r}: {_line(error)}", queue=queue)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
