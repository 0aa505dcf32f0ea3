"""The azure-servicebus SDK, pointed at a local endpoint: what Microsoft's tests and samples assume of the cloud.

They write for a namespace with TLS, a token credential and, here and there, WebSockets. The local endpoint has plain TCP
and shared keys, as Microsoft's own emulator has, so the clients are told so from outside; nothing else is changed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from azure.core.pipeline.transport import RequestsTransport
from azure.servicebus import ServiceBusClient, TransportType
from azure.servicebus._base_handler import BaseHandler, ServiceBusSharedKeyCredential
from azure.servicebus.aio import ServiceBusClient as AsyncServiceBusClient
from azure.servicebus.aio._base_handler_async import BaseHandler as AsyncBaseHandler
from azure.servicebus.aio._base_handler_async import ServiceBusSharedKeyCredential as AsyncServiceBusSharedKeyCredential
from azure.servicebus.management import ServiceBusAdministrationClient


@dataclass(frozen=True)
class Endpoint:
    """Where the endpoint listens (`host:port`) and the keys it was started with: name, key, rights."""

    amqp: str
    admin: str

    def environment(self) -> dict[str, str]:
        return {"DROPFORGE_TEST_AMQP": self.amqp, "DROPFORGE_TEST_ADMIN": self.admin}

    @classmethod
    def from_environment(cls) -> Endpoint:
        return cls(os.environ["DROPFORGE_TEST_AMQP"], os.environ["DROPFORGE_TEST_ADMIN"])


@dataclass(frozen=True)
class Key:
    """A shared access key as the endpoint is told of it."""

    name: str
    value: str
    rights: tuple[str, ...] = ()

    @property
    def argument(self) -> str:
        return ":".join((self.name, self.value, *([",".join(self.rights)] if self.rights else [])))

    def connection_string(self, endpoint: Endpoint, entity: str = "") -> str:
        path = f";EntityPath={entity}" if entity else ""
        return (
            f"Endpoint=sb://{endpoint.amqp}/;SharedAccessKeyName={self.name};SharedAccessKey={self.value}"
            f"{path};UseDevelopmentEmulator=true"
        )


ROOT_KEY = Key("RootManageSharedAccessKey", "SAS_KEY_VALUE")
LISTEN_KEY = Key("listen-only", "listen_key", ("Listen",))
SEND_KEY = Key("send-only", "send_key", ("Send",))
KEYS = (ROOT_KEY, LISTEN_KEY, SEND_KEY)


class Credential(ServiceBusSharedKeyCredential):
    """What stands for a token credential: the endpoint knows keys only. Token credentials are also entered and closed."""

    def __init__(self, **_: Any) -> None:
        super().__init__(ROOT_KEY.name, ROOT_KEY.value)

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Credential:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""


class AsyncCredential(AsyncServiceBusSharedKeyCredential):
    """The same for the aio clients."""

    def __init__(self, **_: Any) -> None:
        super().__init__(ROOT_KEY.name, ROOT_KEY.value)

    async def close(self) -> None:
        """Nothing is held."""

    async def __aenter__(self) -> AsyncCredential:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held."""


def plain(admin: str, url: str) -> str:
    # The administration client writes https:// and the namespace's name into every URL.
    parts = urlsplit(url)
    return parts._replace(scheme="http", netloc=admin).geturl()


class PlainTransport(RequestsTransport):
    """Sends what the administration client asks for to the admin port, without TLS."""

    def __init__(self, admin: str) -> None:
        super().__init__()
        self._admin = admin

    def send(self, request: Any, **kwargs: Any) -> Any:
        request.url = plain(self._admin, request.url)
        return super().send(request, **kwargs)


def administration(endpoint: Endpoint) -> ServiceBusAdministrationClient:
    """The unmodified administration client on the endpoint's admin port."""
    return ServiceBusAdministrationClient(endpoint.admin, Credential(), transport=PlainTransport(endpoint.admin))


def force(cls: Any, **forced: Callable[[], Any]) -> None:
    """From now on every instance is made with these keywords, whatever the caller says."""
    original = cls.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, **{name: make() for name, make in forced.items()}})

    cls.__init__ = init


def redirect(endpoint: Endpoint) -> None:
    """From now on every client of this process talks to `endpoint`: plain TCP, plain HTTP."""
    for client in (ServiceBusClient, AsyncServiceBusClient, BaseHandler, AsyncBaseHandler):
        force(client, use_tls=lambda: False, transport_type=lambda: TransportType.Amqp)
    force(ServiceBusAdministrationClient, transport=lambda: PlainTransport(endpoint.admin))
