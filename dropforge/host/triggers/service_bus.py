"""Service Bus triggers: queues and subscriptions, with and without sessions, one message or a batch at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from dropforge.host.app import AppFunction
from dropforge.host.invocation import Call
from dropforge.host.service_bus.bindings import BusTrigger, Connection, trigger_of
from dropforge.host.service_bus.delivery import Deliveries
from dropforge.host.service_bus.health import Reach
from dropforge.host.service_bus.listener import Listener
from dropforge.host.service_bus.messages import by_hand
from dropforge.host.service_bus.settings import BusSettings
from dropforge.host.triggers.service import Surroundings

if TYPE_CHECKING:
    from dropforge.host.service_bus.clients import Clients

_log = logging.getLogger(__name__)


class ServiceBusTrigger:
    """Calls functions for the messages of their entity, as the Service Bus extension 5.x of Azure Functions does."""

    def __init__(self, around: Surroundings) -> None:
        self.problems: list[str] = []
        self._around = around
        self._triggers: dict[str, BusTrigger] = {}
        self._listeners: list[Listener] = []
        self._clients: Clients | None = None
        for function in around.functions:
            try:
                self._triggers[function.name] = trigger_of(function, around.environment)
            except ValueError as error:
                self.problems.append(f"function {function.name!r} cannot run: {error}")

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return ()

    async def start(self) -> None:
        if not self._triggers:
            return
        # The SDK takes a while to load, and most apps have no Service Bus.
        from dropforge.host.service_bus.clients import Clients

        settings = BusSettings.from_host_json(self._around.host_json.service_bus)
        self._clients = Clients(settings)
        reaches: dict[Connection, Reach] = {}
        for trigger in self._triggers.values():
            _warn(trigger, settings)
            dialler = self._clients.dialler(trigger.connection, trigger.entity, sessions=trigger.sessions)
            deliveries = Deliveries(trigger, self._around.invocations, settings)
            reach = reaches.setdefault(trigger.connection, Reach(f"Service Bus ({trigger.connection.setting})"))
            listener = Listener(trigger, dialler, deliveries, settings, reach)
            listener.start()
            self._listeners.append(listener)

    async def stop(self) -> None:
        for listener in self._listeners:
            listener.stop()

    async def close(self) -> None:
        await asyncio.gather(*(listener.close() for listener in self._listeners))
        if self._clients is not None:
            await self._clients.close()

    def by_hand(self, function: AppFunction, text: str) -> Call:
        trigger = self._triggers.get(function.name)
        if trigger is None:
            raise ValueError(f"{function.name!r} has no Service Bus connection")
        return Deliveries(trigger, self._around.invocations, BusSettings()).call_for([by_hand(text)])


def _warn(trigger: BusTrigger, settings: BusSettings) -> None:
    complete = settings.auto_complete if trigger.auto_complete is None else trigger.auto_complete
    if not complete:
        _log.warning(
            "autoComplete is off for %r, and Python functions cannot settle messages themselves: every message comes "
            "again until it ends in the dead-letter queue, here as in Azure",
            trigger.function.name,
        )
