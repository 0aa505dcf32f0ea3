"""The aio administration client, pointed at the admin port. Apart from the rest because it loads aiohttp."""

from __future__ import annotations

from typing import Any

from azure.core.pipeline.transport import AioHttpTransport
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from tests.sdk.local import Endpoint, force, plain


class AsyncPlainTransport(AioHttpTransport):
    """Sends what the aio administration client asks for to the admin port, without TLS."""

    def __init__(self, admin: str) -> None:
        super().__init__()
        self._admin = admin

    async def send(self, request: Any, **kwargs: Any) -> Any:
        request.url = plain(self._admin, request.url)
        return await super().send(request, **kwargs)


def redirect(endpoint: Endpoint) -> None:
    """From now on every such client of this process talks to `endpoint`."""
    force(ServiceBusAdministrationClient, transport=lambda: AsyncPlainTransport(endpoint.admin))
