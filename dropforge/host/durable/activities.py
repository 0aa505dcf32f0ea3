"""Runs activities on the host's event loop, so many at a time, and reports how each ended."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from dropforge.host.durable import durable_call, messages
from dropforge.host.durable.actions import HTTP_ACTIVITY
from dropforge.host.durable.execution import ActivityOrder
from dropforge.host.durable.messages import Message
from dropforge.host.durable.protocol import Invoker


class ActivityRunner:
    """Takes orders, keeps `limit` of them running, in the order of arrival. Lives in the event loop."""

    def __init__(
        self,
        invoker: Invoker,
        limit: int,
        *,
        log: logging.Logger,
        clock: Callable[[], int],
        report: Callable[[ActivityOrder, Message], None],
    ) -> None:
        self._invoker = invoker
        self._limit = limit
        self._log = log
        self._clock = clock
        self._report = report
        self._waiting: deque[ActivityOrder] = deque()
        self._running: dict[asyncio.Task[None], ActivityOrder] = {}
        self._open = True

    def submit(self, orders: list[ActivityOrder]) -> None:
        self._waiting.extend(orders)
        self._start()

    def drop(self, executions: set[str]) -> None:
        """Forgets orders of executions that are over; what already runs goes on and its result is ignored."""
        if any(order.execution_id in executions for order in self._waiting):
            self._waiting = deque(order for order in self._waiting if order.execution_id not in executions)

    async def stop(self, grace: float) -> None:
        """Starts nothing more, gives what runs `grace` seconds, then cancels it (a restart runs it again)."""
        self._open = False
        if self._running:
            await asyncio.wait(self._running, timeout=max(grace, 0))
        left = list(self._running)
        for task in left:
            order = self._running[task]
            self._log.warning("activity '%s' did not end in time and will run again", order.name, extra=_extra(order))
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _start(self) -> None:
        while self._open and self._waiting and len(self._running) < self._limit:
            order = self._waiting.popleft()
            task = asyncio.create_task(self._run(order), name=f"activity {order.name}")
            self._running[task] = order
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._start()

    async def _run(self, order: ActivityOrder) -> None:
        try:
            if order.name == HTTP_ACTIVITY:
                result: str | None = await durable_call.call(order.input or "null")
            else:
                result = await self._invoker.act(
                    order.name, order.input, instance_id=order.instance_id, task_id=order.task_id
                )
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is the activity's failure
            # An error about a file may quote bytes that are no text.
            what = f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace").decode()
            # The invoker has the traceback and has logged it.
            self._log.debug("activity '%s' failed: %s", order.name, what, extra=_extra(order))
            reason = f"Activity function '{order.name}' failed: {what}"
            details = messages.exception_details(what)
            message = messages.activity_failed(self._clock(), order.execution_id, order.task_id, reason, details)
        else:
            message = messages.activity_completed(self._clock(), order.execution_id, order.task_id, result)
        self._report(order, message)


def _extra(order: ActivityOrder) -> dict[str, str]:
    return {"instance_id": order.instance_id, "function": order.name}
