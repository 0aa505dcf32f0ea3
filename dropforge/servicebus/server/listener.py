"""The listening socket, and the turns of the loop: frames in, deliveries, one commit, frames out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from dropforge.servicebus.core.broker import Broker
from dropforge.servicebus.errors import BrokerError, StoreFailed
from dropforge.servicebus.sas import AccessKey
from dropforge.servicebus.server.connection import IDLE_MS, Connection

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 5_000
# A client that has not shown by then that it may be here is closed.
TRUST_S: Final = 60.0

_SWEEP_S: Final = 5.0
_LONGEST_TIMER_S: Final = 3_600.0
_GOODBYE_S: Final = 1.0


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Listener:
    """Serves a broker to AMQP clients.

    Nothing that a turn did is written to any client before the store has committed it. All connections that have
    something to say at the same time share one turn, and so one commit.
    """

    def __init__(
        self, broker: Broker, keys: Mapping[str, AccessKey] | None = None, *, clock: Callable[[], int] = wall_ms
    ) -> None:
        """`keys` are the shared access keys by name that clients must sign with; without any, everybody may do
        everything. `clock` is the one that the broker was made with."""
        self.broker = broker
        self.keys = None if keys is None else dict(keys)
        self._clock = clock
        self._connections: set[Connection] = set()
        self._closing: set[Connection] = set()
        self._writing: list[Connection] = []
        self._after_pump: list[Callable[[], None]] = []
        self._scheduled: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: int | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        self._ended: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        # No connection is left.
        self._deserted = asyncio.Event()

    # ----------------------------------------------------------------------------------------------------- life

    async def start(self, host: str = "127.0.0.1", port: int = 5672) -> int:
        """Listen, and give the port; 0 picks a free one. Raises `OSError` when the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port)
        self._ended = loop.create_future()
        self._sweeper = loop.call_later(_SWEEP_S, self.sweep)
        self._turn()
        return int(self._server.sockets[0].getsockname()[1])

    async def wait(self) -> None:
        """Returns when the listener was stopped. Raises what made it stop by itself: the store that failed."""
        if self._ended is not None:
            await asyncio.shield(self._ended)

    async def stop(self) -> None:
        """Close every connection with a reason and stop listening. A second call does nothing."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        goodbye = BrokerError("amqp:connection:forced", "The service is stopping.", 503)
        for connection in list(self._connections):
            connection.close(goodbye)
        self._turn()
        await self._last_connections()
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def _last_connections(self) -> None:
        # First they have time to read why; then they are cut, which takes a turn of the loop.
        for patience_s in (_GOODBYE_S, _GOODBYE_S):
            self._deserted.clear()
            if self._connections:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._deserted.wait(), patience_s)
            for connection in list(self._connections):
                connection.abort()

    # ---------------------------------------------------------------------------------------------------- turns

    def turn(self) -> None:
        """End a turn: deliver, commit, and only then write. Whoever changes the broker from outside calls it before
        it tells anybody. Raises what the store raised when the change is not durable; all is over then."""
        self._turn()
        if self._failure is not None:
            raise self._failure

    def _turn(self) -> None:
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        if self._failure is not None:
            return
        try:
            self.broker.pump()
            if self._after_pump:
                calls, self._after_pump = self._after_pump, []
                for call in calls:
                    call()
            self.broker.commit()
        except Exception as error:  # noqa: BLE001 - not durable, or half done: nobody may hear of it
            self._fail(error)
            return
        writing, self._writing = self._writing, []
        for connection in writing:
            connection.flush()
        self._set_timer()

    def turn_soon(self) -> None:
        """Have a turn ended when all that can be read now was read."""
        if self._scheduled is None:
            self._scheduled = asyncio.get_running_loop().call_soon(self._turn)

    def after_pump(self, call: Callable[[], None]) -> None:
        self._after_pump.append(call)
        self.turn_soon()

    def _fail(self, error: Exception) -> None:
        _log.critical("the broker stops: %s", error, exc_info=not isinstance(error, StoreFailed))
        self._failure = error
        self._writing.clear()
        for connection in list(self._connections):
            connection.abort()
        if self._server is not None:
            self._server.close()
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)

    # --------------------------------------------------------------------------------------------------- timers

    def _set_timer(self) -> None:
        due = self.broker.next_due()
        # A timer that is early finds nothing to do and is set again; that is cheaper than to move it every turn.
        if due is None or (self._timer_at is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        delay_s = min(max(0.0, (due - self._clock()) / 1000), _LONGEST_TIMER_S)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._run_due)
        self._timer_at = due

    def _run_due(self) -> None:
        self._timer = self._timer_at = None
        try:
            self.broker.run_due(self._clock())
        except Exception as error:  # noqa: BLE001 - as in a turn
            self._fail(error)
            return
        self._turn()

    def sweep(self) -> None:
        """Close who never said who it is, and who has gone silent."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        # Those that were closed by the last sweep at the latest, and do not read what is left for them.
        for connection in list(self._closing):
            connection.abort()
        self._closing = {connection for connection in self._connections if connection.closing}
        for connection in list(self._connections):
            silent_s = now - connection.heard_at
            if not connection.trusted and now - connection.since > TRUST_S:
                text = f"The connection was not authenticated within {TRUST_S:.0f} s."
                connection.close(BrokerError("amqp:connection:forced", text, 401))
            elif silent_s > 2 * IDLE_MS / 1000:
                text = f"The connection was silent for {silent_s:.0f} s."
                connection.close(BrokerError("amqp:connection:forced", text, 408))
        self._sweeper = loop.call_later(_SWEEP_S, self.sweep)
        self._turn()

    # ---------------------------------------------------------------------------------------- for the connections

    def now_s(self) -> float:
        return self._clock() / 1000

    def joined(self, connection: Connection) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            connection.abort()
        self._connections.add(connection)

    def left(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._closing.discard(connection)
        if not self._connections:
            self._deserted.set()

    def wrote(self, connection: Connection) -> None:
        self._writing.append(connection)
