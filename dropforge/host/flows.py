"""The durable engine inside this host: its doors, its keys, and the client that functions get."""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiohttp import web
from azure.functions import meta

from dropforge.host.admin import ByHand
from dropforge.host.app import AppFunction, Binding
from dropforge.host.durable import links
from dropforge.host.durable.engine import DurableEngine
from dropforge.host.durable.errors import EngineStopped
from dropforge.host.durable.http import durable_routes
from dropforge.host.durable.settings import DurableSettings
from dropforge.host.errors import HostError, SettingsError
from dropforge.host.host_json import HostJson
from dropforge.host.invocation import Call, Invocations
from dropforge.host.keys import DURABLE_KEY, Keys
from dropforge.host.requests import key_of

# In Azure the SDK's client talks to a port that only the worker can reach. Here it is a path that only it can know.
RPC_PREFIX = "/runtime/durabletask-rpc/"


class Flows:
    """Everything durable of one host."""

    def __init__(
        self, invocations: Invocations, host_json: HostJson, keys: Keys, url: str, state: Path, record: Path | None
    ) -> None:
        """Raises `SettingsError` for a `durableTask` section of host.json that cannot be used."""
        try:
            settings = DurableSettings.from_host_json(host_json.durable)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        self._url = url
        self._keys = keys
        self._hub = settings.hub_name
        self.rpc_secret = secrets.token_urlsafe(32)
        self._engine = DurableEngine(
            state / "durable.db",
            invocations,
            settings=settings,
            log=logging.getLogger("dropforge.host.durable"),
            record=record,
        )
        self.by_hand: Mapping[str, ByHand] = {
            "activityTrigger": _activity_by_hand,
            "orchestrationTrigger": _not_by_hand,
            "entityTrigger": _not_by_hand,
        }

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        query = links.required_query(self._hub, self._keys.system[DURABLE_KEY])
        return [
            *durable_routes(self._engine, authorize=self._has_system_key, query=query),
            *durable_routes(
                self._engine,
                base=f"{RPC_PREFIX}{{secret}}",
                authorize=self._has_rpc_secret,
                query=query,
                public_base=links.ROUTE,
            ),
        ]

    def client(self, binding: Binding) -> meta.Datum:
        """The value of a `durableClient` input."""
        return meta.Datum(
            links.client_binding_json(
                f"{self._url}{links.ROUTE}",
                f"{self._url}{RPC_PREFIX}{self.rpc_secret}/",
                str(binding.properties.get("taskHub") or self._hub),
                self._keys.system[DURABLE_KEY],
                str(binding.properties.get("connectionName") or "Storage"),
            ),
            "string",
        )

    async def start(self) -> None:
        """Take up what was left. Raises `HostError` when the history cannot be opened."""
        try:
            await self._engine.start()
        except (EngineStopped, sqlite3.Error) as error:
            raise HostError(f"{self._engine.database} cannot be opened: {error}") from error

    async def failed(self) -> str:
        """Returns, with the reason, when the engine has ended."""
        await self._engine.ended()
        return self._engine.failure

    async def stop(self, grace: float) -> None:
        """Start no further activity, give those that run so many seconds, and close. A second call does nothing."""
        await self._engine.stop(grace)

    def _has_system_key(self, request: web.Request) -> bool:
        return self._keys.opens_webhook(DURABLE_KEY, key_of(request))

    def _has_rpc_secret(self, request: web.Request) -> bool:
        return hmac.compare_digest(request.match_info["secret"].encode(), self.rpc_secret.encode())


def _activity_by_hand(function: AppFunction, text: str) -> Call:
    try:
        json.loads(text or "null")
    except ValueError as error:
        raise ValueError(f"the input of {function.name!r} must be JSON text: {error}") from error
    return Call(datum=meta.Datum(text or "null", "json"), what="activity by hand")


def _not_by_hand(function: AppFunction, text: str) -> Call:
    raise ValueError(f"{function.name!r} is durable; use the API below {links.ROUTE} to start or to signal it")
