"""One delivery: the function is called, the locks are held meanwhile, and the messages are settled by how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any

from dropforge.host.invocation import Call, FunctionQuit, Invocations
from dropforge.host.service_bus.bindings import BusTrigger
from dropforge.host.service_bus.link import Link, LinkError, LockLost, Received
from dropforge.host.service_bus.messages import batch, loses_bytes, single
from dropforge.host.service_bus.patience import patiently
from dropforge.host.service_bus.settings import BusSettings, Retries

_log = logging.getLogger(__name__)

# The attribute of an exception that sends its message to the dead-letter queue at once.
DEAD_LETTER_ATTRIBUTE = "dead_letter_reason"
# Service Bus takes no more of either.
_LONGEST_TEXT = 4096
_RENEW_AGAIN_SECONDS = 1.0


class Outcome(Enum):
    COMPLETE = "completed"
    ABANDON = "given back"
    DEAD_LETTER = "dead-lettered"
    # Neither: `autoComplete` is off, and Python functions cannot settle themselves.
    LEAVE = "left locked"


class Lease:
    """Keeps locks: says when they should be renewed next, and renews them."""

    def __init__(self, link: Link, messages: Sequence[Received], now: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._messages = messages
        self._now = now
        self._plan()

    def due_in(self) -> float:
        """Seconds until the next renewal."""
        return max(self._due - self._now(), 0.0)

    async def renew(self) -> None:
        """Renew now. Raises `LockLost`; when Service Bus cannot be asked just now, it is asked again in a second."""
        try:
            await self._link.renew(self._messages)
        except LockLost:
            raise
        except LinkError:
            if self._link.lock_seconds(self._messages) <= 0:
                raise LockLost("it ran out while Service Bus could not be reached") from None
            self._due = self._now() + _RENEW_AGAIN_SECONDS
        else:
            self._plan()

    def _plan(self) -> None:
        # Half of it is left for a renewal that is slow, or has to be repeated.
        self._due = self._now() + max(self._link.lock_seconds(self._messages) / 2, 0.05)


class Deliveries:
    """Calls the function of one trigger for what its links receive."""

    def __init__(self, trigger: BusTrigger, invocations: Invocations, settings: BusSettings) -> None:
        self._trigger = trigger
        self._invocations = invocations
        self._settings = settings
        complete = settings.auto_complete if trigger.auto_complete is None else trigger.auto_complete
        self._success = Outcome.COMPLETE if complete else Outcome.LEAVE
        self._patience_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._told_of_bytes = False

    def give_back(self) -> None:
        """From now on, wait for no function any more: its messages go back."""
        if not self._patience_over.done():
            self._patience_over.set_result(None)

    async def run(self, link: Link, calls: Sequence[Sequence[Received]], lease: Lease | None) -> None:
        """Call the function once for each group of messages, all at the same time; returns when all are settled.

        The lease, where there is one, is renewed while functions run. Raises a `LinkError` when the session is lost.
        """
        made = [self.call_for(messages) for messages in calls]
        function = self._trigger.function
        running = [asyncio.create_task(self._invocations.invoke(function, call)) for call in made]
        what = made[0].what if len(made) == 1 else f"{len(made)} messages from {self._trigger.entity}"
        lost = await self._hold(running, what, lease)
        for messages, call, calling in zip(calls, made, running, strict=True):
            if not calling.done():
                await _cancelled(calling)
                _log.warning("%s: given back, because the host stops", call.what)
            # What is lost was told of when it happened, and settling would only fail.
            if lost is None:
                await self._settle(link, messages, *self._judge(calling))
        if lost is not None and link.session is not None:
            raise lost

    async def refuse(self, link: Link, messages: Sequence[Received]) -> None:
        """Give the messages back without a call."""
        await self._settle(link, messages, Outcome.ABANDON)

    def call_for(self, messages: Sequence[Received]) -> Call:
        """The call that the messages make."""
        trigger = self._trigger
        if trigger.many:
            datum, metadata = batch(messages, binary=trigger.binary)
            return Call(datum, f"{len(messages)} messages from {trigger.entity}", metadata)
        message = messages[0]
        if not trigger.binary and not self._told_of_bytes and loses_bytes(message):
            self._told_of_bytes = True
            _log.warning(
                "message %s from %s is no UTF-8 text: %s gets it with replacement characters, as in Azure; "
                "data_type=func.DataType.BINARY gives the bytes",
                message.id, trigger.entity, trigger.function.name,
            )  # fmt: skip
        datum, metadata = single(message, binary=trigger.binary)
        again = f", delivery {message.delivery}" if message.delivery > 1 else ""
        return Call(datum, f"message {message.id} from {trigger.entity}{again}", metadata)

    async def _hold(self, callings: Sequence[asyncio.Task[Any]], what: str, lease: Lease | None) -> LockLost | None:
        """Wait for the functions (or for the order to give back), and keep the locks; returns how they were lost."""
        started = time.monotonic()
        running = set(callings)
        while running and not self._patience_over.done():
            pause = lease.due_in() if lease else None
            await asyncio.wait({*running, self._patience_over}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            running = {calling for calling in running if not calling.done()}
            if not running or lease is None or lease.due_in() > 0:
                continue
            ran = time.monotonic() - started
            if ran >= self._settings.renewal_seconds:
                _log.warning(
                    "%s: its lock is no longer renewed after %.0f s (maxAutoLockRenewalDuration); unless %s ends soon, "
                    "it comes again",
                    what, ran, self._trigger.function.name,
                )  # fmt: skip
                lease = None
                continue
            try:
                await lease.renew()
            except LockLost as lost:
                told = "%s: its lock was lost after %.1f s, while %s was still running (%s); it comes again"
                _log.warning(told, what, ran, self._trigger.function.name, lost)
                await self._outlive(running)
                return lost
        return None

    async def _outlive(self, running: set[asyncio.Task[Any]]) -> None:
        """Wait for the functions as long as the host does; there is nothing to keep any more."""
        while running and not self._patience_over.done():
            await asyncio.wait({*running, self._patience_over}, return_when=asyncio.FIRST_COMPLETED)
            running = {calling for calling in running if not calling.done()}

    def _judge(self, calling: asyncio.Task[Any]) -> tuple[Outcome, str, str]:
        if calling.cancelled():
            return Outcome.ABANDON, "", ""
        error = calling.exception()
        if error is None:
            return self._success, "", ""
        raised = error.__cause__ if isinstance(error, FunctionQuit) and error.__cause__ else error
        reason = getattr(raised, DEAD_LETTER_ATTRIBUTE, None)
        # One message of a batch may be hopeless and the others not: nobody can tell which.
        if isinstance(reason, str) and reason and not self._trigger.many:
            return Outcome.DEAD_LETTER, reason[:_LONGEST_TEXT], str(raised)[:_LONGEST_TEXT]
        return Outcome.ABANDON, "", ""

    # ------------------------------------------------------------------ settling
    async def _settle(
        self, link: Link, messages: Sequence[Received], outcome: Outcome, reason: str = "", description: str = ""
    ) -> None:
        """Settle all of them in one way; what cannot be settled comes again, which is told."""
        ways: dict[Outcome, Callable[[Received], Awaitable[None]]] = {
            Outcome.COMPLETE: link.complete,
            Outcome.ABANDON: link.abandon,
            Outcome.DEAD_LETTER: lambda message: link.dead_letter(message, reason, description),
        }
        way = ways.get(outcome)
        if way is None:
            return
        failures: list[tuple[Received, LinkError]] = []
        for message in messages:
            try:
                # A broken session cannot be taken up again, and its locks end with it.
                retries = Retries(count=0) if link.session is not None else self._settings.retries
                await patiently(partial(way, message), retries, self._patience_over.done)
            except LinkError as raised:
                failures.append((message, raised))
                if link.session is not None:
                    break
        if outcome is Outcome.DEAD_LETTER and not failures:
            _log.warning("message %s from %s dead-lettered: %s", messages[0].id, self._trigger.entity, reason)
        if failures:
            message, error = failures[0]
            others = f" and {len(failures) - 1} others" if len(failures) > 1 else ""
            _log.warning(
                "message %s%s from %s could not be %s (%s): it comes again",
                message.id, others, self._trigger.entity, outcome.value, error,
            )  # fmt: skip
            if link.session is not None:
                raise error


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
