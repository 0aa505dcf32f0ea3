"""Service Bus through the azure-servicebus SDK. Only this file knows it, and loading it costs 150 ms: load it late.

A receiver of the SDK must not be shared between tasks: reading a frame holds the lock that writing one needs, so a task
that waits for a message delays every settlement of another one by up to 0.2 s. Hence one receiver, with a connection of
its own, for each task; one that waits costs a fifth of a percent of a core.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from azure.core.exceptions import ClientAuthenticationError
from azure.servicebus import NEXT_AVAILABLE_SESSION, ServiceBusMessage, TransportType
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import (
    MessageAlreadySettled,
    MessageLockLostError,
    MessageSizeExceededError,
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusError,
    SessionLockLostError,
)

from dropforge.host.service_bus.bindings import Connection, Entity
from dropforge.host.service_bus.link import LockLost, NoSession, Received, Refused, Unreachable
from dropforge.host.service_bus.messages import received
from dropforge.host.service_bus.patience import patiently
from dropforge.host.service_bus.settings import BusSettings, Retries

# The SDK tells of every frame and state at INFO, and of each lost connection several times. An app that has chosen a
# level for itself keeps it.
for _name, _level in (("azure.servicebus", logging.CRITICAL), ("azure.identity", logging.WARNING)):
    if logging.getLogger(_name).level == logging.NOTSET:
        logging.getLogger(_name).setLevel(_level)

_NOT_ALLOWED = "amqp:not-allowed"
_CONDITION = re.compile(r"Error condition: \S+\.(?=\s|$)")
_TOKEN_REFUSED = re.compile(r"Status code: (\d+)\s+Description: (.*)")
_SESSION_WAIT_SECONDS = 60.0
# A service that accepts connections and then says nothing.
_ANSWER_SECONDS = 30.0
_CLOSE_SECONDS = 5.0


class Clients:
    """One client for each connection; made when first asked for."""

    def __init__(self, settings: BusSettings) -> None:
        self._settings = settings
        self._clients: dict[Connection, Any] = {}
        self._credentials: dict[str | None, Any] = {}

    def dialler(self, connection: Connection, entity: Entity, *, sessions: bool) -> SdkDialler:
        return SdkDialler(self._client(connection), entity, sessions, self._settings)

    def sender(self, connection: Connection, entity: Entity) -> SdkSender:
        return SdkSender(self._client(connection), entity, self._settings.retries)

    async def close(self) -> None:
        """Close what is still open; never raises."""
        for client in self._clients.values():
            await _closed(client)
        for credential in self._credentials.values():
            await _closed(credential)

    def _client(self, connection: Connection) -> Any:
        if connection not in self._clients:
            self._clients[connection] = self._make(connection)
        return self._clients[connection]

    def _make(self, connection: Connection) -> Any:
        # What may be tried again is tried again here: the SDK would keep silent about it for six seconds, and also
        # insist on what is hopeless, such as an entity that does not exist.
        options: dict[str, Any] = {"retry_total": 0}
        if self._settings.web_sockets:
            options["transport_type"] = TransportType.AmqpOverWebsocket
        if connection.string is not None:
            return ServiceBusClient.from_connection_string(connection.string, **options)
        return ServiceBusClient(connection.namespace, self._credential(connection.client_id), **options)

    def _credential(self, client_id: str | None) -> Any:
        if client_id not in self._credentials:
            # Only who has a namespace without a key needs azure-identity.
            from azure.identity.aio import DefaultAzureCredential

            chosen = {"managed_identity_client_id": client_id} if client_id else {}
            self._credentials[client_id] = DefaultAzureCredential(**chosen)
        return self._credentials[client_id]


class SdkDialler:
    """Opens receivers on one queue or subscription."""

    def __init__(self, client: Any, entity: Entity, sessions: bool, settings: BusSettings) -> None:
        self._client = client
        self._entity = entity
        self._sessions = sessions
        self._settings = settings

    async def open(self) -> SdkLink:
        patience = _ANSWER_SECONDS
        options: dict[str, Any] = {"prefetch_count": self._settings.prefetch}
        if self._sessions:
            options |= {"session_id": NEXT_AVAILABLE_SESSION, "max_wait_time": _SESSION_WAIT_SECONDS}
            patience += _SESSION_WAIT_SECONDS
        with _translated(opening_session=self._sessions):
            if self._entity.subscription:
                receiver = self._client.get_subscription_receiver(
                    self._entity.name, self._entity.subscription, **options
                )
            else:
                receiver = self._client.get_queue_receiver(self._entity.name, **options)
        try:
            with _translated(opening_session=self._sessions):
                async with asyncio.timeout(patience):
                    await receiver.__aenter__()
        except BaseException:
            await _closed(receiver)
            raise
        return SdkLink(receiver, self._sessions)


class SdkLink:
    """One open receiver; see `link.Link`."""

    def __init__(self, receiver: Any, sessions: bool) -> None:
        self._receiver = receiver
        self._sessions = sessions
        # Whether the last thing that was tried failed.
        self._broke = False

    @property
    def session(self) -> str | None:
        return str(self._receiver.session.session_id) if self._sessions else None

    async def receive(self, count: int, wait_seconds: float) -> Sequence[Received]:
        with _translated():
            async with asyncio.timeout(wait_seconds + _ANSWER_SECONDS):
                found = await self._receiver.receive_messages(count, max_wait_time=wait_seconds)
        return [received(message) for message in found]

    def lock_seconds(self, messages: Sequence[Received]) -> float:
        if self._sessions:
            ends = [self._receiver.session.locked_until_utc]
        else:
            ends = [message.handle.locked_until_utc for message in messages]
        now = datetime.now(UTC)
        return min((float((end - now).total_seconds()) for end in ends if end is not None), default=float("inf"))

    async def renew(self, messages: Sequence[Received]) -> None:
        if self._sessions:
            await self._through(partial(self._receiver.session.renew_lock, timeout=_ANSWER_SECONDS))
            return
        for message in messages:
            await self._through(partial(self._receiver.renew_message_lock, message.handle, timeout=_ANSWER_SECONDS))

    async def complete(self, message: Received) -> None:
        await self._through(partial(self._receiver.complete_message, message.handle))

    async def abandon(self, message: Received) -> None:
        await self._through(partial(self._receiver.abandon_message, message.handle))

    async def dead_letter(self, message: Received, reason: str, description: str) -> None:
        work = partial(self._receiver.dead_letter_message, message.handle, reason=reason, error_description=description)
        await self._through(work)

    async def _through(self, work: Callable[[], Awaitable[object]]) -> None:
        """Settle or renew, also when the connection has broken since the message came: locks outlive connections."""
        with _translated():
            if self._broke and not self._sessions:
                # The SDK works on open receivers only, and looking into the queue opens this one again.
                await self._receiver.peek_messages(1, timeout=_ANSWER_SECONDS)
            self._broke = True
            await work()
            self._broke = False

    async def close(self) -> None:
        await _closed(self._receiver)


class SdkSender:
    """Sends to one queue or topic."""

    def __init__(self, client: Any, entity: Entity, retries: Retries) -> None:
        self._entity = entity
        self._retries = retries
        make = client.get_topic_sender if entity.is_topic else client.get_queue_sender
        self._sender = make(entity.name)
        # As receivers, senders are for one task at a time.
        self._turn = asyncio.Lock()

    async def send(self, bodies: Sequence[bytes], content_type: str, properties: dict[str, str]) -> None:
        """Send each as a message of its own, in this order; returns when Service Bus has stored them all.

        Raises `LinkError`, or `ValueError` for a message that is too large.
        """
        messages = [
            ServiceBusMessage(body, content_type=content_type, application_properties=dict(properties))
            for body in bodies
        ]
        async with self._turn:
            if len(messages) == 1:
                await patiently(partial(self._send, messages[0]), self._retries)
                return
            for filled in await patiently(partial(self._batches, messages), self._retries):
                await patiently(partial(self._send, filled), self._retries)

    async def _send(self, sent: Any) -> None:
        with _translated():
            await self._sender.send_messages(sent, timeout=self._retries.try_seconds)

    async def _batches(self, messages: Sequence[Any]) -> list[Any]:
        """The messages in as few batches as they fit into. Raises `ValueError` for one that fits into none."""
        with _translated():
            batches = [await self._sender.create_message_batch()]
            for message in messages:
                try:
                    batches[-1].add_message(message)
                except ValueError:
                    # Full, or too large even for an empty one: then this raises again.
                    batches.append(await self._sender.create_message_batch())
                    batches[-1].add_message(message)
        return [filled for filled in batches if len(filled)]

    async def close(self) -> None:
        await _closed(self._sender)


async def _closed(thing: Any) -> None:
    """Close a client, receiver, sender or credential, whatever state it is in."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await thing.close()


@contextlib.contextmanager
def _translated(*, opening_session: bool = False) -> Iterator[None]:
    """The SDK's errors as ours."""
    try:
        yield
    except (MessageLockLostError, SessionLockLostError, MessageAlreadySettled) as error:
        raise LockLost(_said(error)) from error
    except (MessagingEntityNotFoundError, MessagingEntityDisabledError, ServiceBusAuthorizationError) as error:
        raise Refused(_said(error)) from error
    except ServiceBusAuthenticationError as error:
        raise Refused(_refusal(error)) from error
    except OperationTimeoutError as error:
        raise (NoSession("no session has messages") if opening_session else Unreachable(_said(error))) from error
    except MessageSizeExceededError as error:
        raise ValueError(_said(error)) from error
    except ServiceBusError as error:
        # Such as a session queue that is listened to without sessions; all the rest may pass.
        raise (Refused if _NOT_ALLOWED in str(error) else Unreachable)(_said(error)) from error
    except ClientAuthenticationError as error:
        # Of azure-identity: there is nobody to be.
        raise Refused(f"no credential: {_said(error)}") from error
    except TimeoutError as error:
        raise Unreachable("no answer in time") from error
    except Exception as error:
        # A connection that breaks at the wrong moment shows in many ways, AttributeError among them.
        raise Unreachable(f"{type(error).__name__}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    """The text of the service, without the conditions that the SDK adds for programs."""
    text = _CONDITION.sub("", " ".join(str(error).split())).strip()
    return text or type(error).__name__


def _refusal(error: BaseException) -> str:
    """Why the token was refused: an entity that does not exist is found out first here."""
    found = _TOKEN_REFUSED.search(str(getattr(error, "inner_exception", None)))
    if found is None:
        return f"the credential is refused: {_said(error)}"
    code, description = found[1], found[2].strip()
    return description if code == "404" else f"the credential is refused: {description} ({code})"
