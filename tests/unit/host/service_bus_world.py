"""A Service Bus in memory, as the listeners see it: links that deliver, lock, renew and settle, and break when told to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dropforge.host.app import AppFunction, Binding, Direction
from dropforge.host.invocation import Call
from dropforge.host.service_bus.bindings import BusTrigger, Connection, Entity
from dropforge.host.service_bus.delivery import Deliveries
from dropforge.host.service_bus.health import Reach
from dropforge.host.service_bus.link import LinkError, LockLost, NoSession, Received
from dropforge.host.service_bus.listener import Listener
from dropforge.host.service_bus.settings import BusSettings


def message(name: str, delivery: int = 1, **about: Any) -> Received:
    return Received(name.encode(), {"MessageId": name, "DeliveryCount": delivery}, **about)


def function(name: str = "on_message") -> AppFunction:
    trigger = Binding("serviceBusTrigger", "message", Direction.IN, {})
    return AppFunction(
        name, lambda **_: None, trigger, (), (), None, True, False, frozenset(), retry=None, folder=Path()
    )


def trigger(**about: Any) -> BusTrigger:
    given = {"sessions": False, "many": False, "binary": False, "auto_complete": None, **about}
    return BusTrigger(function(), Entity("q"), Connection("BUS", string="x"), **given)


@dataclass
class World:
    """One entity: what waits in it, and what became of what was delivered."""

    # Session id -> messages; None for an entity without sessions.
    waiting: dict[str | None, deque[Received]] = field(default_factory=lambda: {None: deque()})
    settled: list[tuple[str, str]] = field(default_factory=list)
    links: list[FakeLink] = field(default_factory=list)
    opened: int = 0
    lock_seconds: float = 60.0
    renewed: int = 0
    renewal: LinkError | None = None
    # Raised, one after another, when a link is opened or something is settled.
    opening_errors: list[LinkError] = field(default_factory=list)
    settling_errors: list[LinkError] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, *messages: Received, session: str | None = None) -> None:
        self.waiting.setdefault(session, deque()).extend(messages)
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def outcomes(self, name: str) -> list[str]:
        return [outcome for settled, outcome in self.settled if settled == name]


class FakeLink:
    def __init__(self, world: World, session: str | None) -> None:
        self._world = world
        self._session = session
        self.broken: LinkError | None = None
        self.closed = False

    @property
    def session(self) -> str | None:
        return self._session

    async def receive(self, count: int, wait_seconds: float) -> Sequence[Received]:
        queue = self._world.waiting.setdefault(self._session, deque())
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        while not queue:
            if self.broken:
                raise self.broken
            left = deadline - loop.time()
            if left <= 0:
                return []
            changed = asyncio.ensure_future(self._world.changed.wait())
            await asyncio.wait({changed}, timeout=left)
            changed.cancel()
        return [queue.popleft() for _ in range(min(count, len(queue)))]

    def lock_seconds(self, messages: Sequence[Received]) -> float:
        return self._world.lock_seconds

    async def renew(self, messages: Sequence[Received]) -> None:
        self._world.renewed += 1
        if self._world.renewal:
            raise self._world.renewal

    async def complete(self, message: Received) -> None:
        self._settle(message, "completed")

    async def abandon(self, message: Received) -> None:
        self._settle(message, "abandoned")

    async def dead_letter(self, message: Received, reason: str, description: str) -> None:
        self._settle(message, f"dead: {reason}: {description}")

    async def close(self) -> None:
        self.closed = True
        if self in self._world.links:
            self._world.links.remove(self)

    def _settle(self, message: Received, how: str) -> None:
        if self._world.settling_errors:
            raise self._world.settling_errors.pop(0)
        self._world.settled.append((message.id, how))


class FakeDialler:
    """Opens links; with sessions, for a session that has messages and that nobody holds."""

    def __init__(self, world: World, *, sessions: bool) -> None:
        self._world = world
        self._sessions = sessions

    async def open(self) -> FakeLink:
        self._world.opened += 1
        if self._world.opening_errors:
            raise self._world.opening_errors.pop(0)
        link = FakeLink(self._world, await self._session() if self._sessions else None)
        self._world.links.append(link)
        return link

    async def _session(self) -> str:
        for _ in range(100):
            held = {link.session for link in self._world.links}
            for session, messages in self._world.waiting.items():
                if session is not None and messages and session not in held:
                    return session
            await asyncio.sleep(0.01)
        raise NoSession("no session has messages")


class Calls:
    """Stands for the invocations: what was called, and how each call ends."""

    def __init__(self, body: Callable[[Call], Awaitable[None]] | None = None) -> None:
        self._body = body
        self.made: list[Call] = []
        self.running = 0
        self.most = 0

    async def invoke(self, function: AppFunction, call: Call) -> None:
        self.made.append(call)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self._body:
                await self._body(call)
        finally:
            self.running -= 1


def deliveries(calls: Calls, settings: BusSettings | None = None, **about: Any) -> Deliveries:
    return Deliveries(trigger(**about), calls, settings or BusSettings())  # type: ignore[arg-type]


def listener(world: World, calls: Calls, settings: BusSettings | None = None, **about: Any) -> Listener:
    settings = settings or BusSettings()
    made = trigger(**about)
    return Listener(
        made, FakeDialler(world, sessions=made.sessions), deliveries(calls, settings, **about), settings, Reach("bus")
    )


async def until(find: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(seconds):
        while not find():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


LOST = LockLost("the lock is gone")
