"""Events out to their subscribers: delivered at least once, across restarts, each subscriber at its own pace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from dropforge.host.errors import HostError
from dropforge.host.keys import EVENT_GRID_KEY, Keys
from dropforge.host.tasks import Tasks
from dropforge.host.triggers.event_grid import PATH

_log = logging.getLogger(__name__)

Event = dict[str, Any]
# (subscriber, event, how many times it was tried before) -> taken?
Post = Callable[[str, Event, int], Awaitable[bool]]

# The schedule of Event Grid.
RETRY_SECONDS = (10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)
# Event Grid gives a subscriber so long before it tries again.
_PATIENCE = aiohttp.ClientTimeout(total=30)
_PARALLEL = 8
# How long an answer that is on its way may take when the host stops.
_LAST_CALL_SECONDS = 1.0


class Delivered:
    """What each subscriber has taken: subscriber and key -> mark. Kept in SQLite; a crash loses nothing it returned.

    Raises `HostError` for a file that cannot be used.
    """

    def __init__(self, database: Path) -> None:
        database.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = sqlite3.connect(database, isolation_level=None)
            self._marks = self._opened()
        except sqlite3.Error as error:
            raise HostError(
                f"{database} cannot be used as the memory of what was delivered: {error}; repair it, or delete it, and "
                "everything that is still there is delivered once more"
            ) from error

    def _opened(self) -> dict[tuple[str, str], str]:
        self._connection.execute("PRAGMA journal_mode = WAL")
        # Losing the last commits to a power cut means delivering once more, which is allowed.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS delivered ("
            " subscriber TEXT NOT NULL, key TEXT NOT NULL, mark TEXT NOT NULL,"
            " PRIMARY KEY (subscriber, key)) WITHOUT ROWID"
        )
        rows = self._connection.execute("SELECT subscriber, key, mark FROM delivered")
        return {(subscriber, key): mark for subscriber, key, mark in rows}

    def mark(self, subscriber: str, key: str) -> str | None:
        return self._marks.get((subscriber, key))

    def keys(self, subscriber: str) -> set[str]:
        return {key for who, key in self._marks if who == subscriber}

    def remember(self, subscriber: str, key: str, mark: str | None) -> None:
        """The subscriber has taken the event with this mark; None: it has taken that the key is gone."""
        if mark is None:
            self._connection.execute("DELETE FROM delivered WHERE subscriber = ? AND key = ?", (subscriber, key))
            self._marks.pop((subscriber, key), None)
        else:
            self._connection.execute("INSERT OR REPLACE INTO delivered VALUES (?, ?, ?)", (subscriber, key, mark))
            self._marks[subscriber, key] = mark

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class _Wanted:
    mark: str | None
    event: Event


class Announcer:
    """Brings every subscriber to the newest mark of every key, trying again until it answers yes."""

    def __init__(
        self,
        subscribers: Iterable[str],
        delivered: Delivered,
        post: Post,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
    ) -> None:
        self._subscribers = tuple(subscribers)
        self._delivered = delivered
        self._post = post
        self._retry_seconds = retry_seconds
        self._wanted: dict[tuple[str, str], _Wanted] = {}
        self._changed: dict[tuple[str, str], asyncio.Event] = {}
        self._slots = asyncio.Semaphore(_PARALLEL)
        self._pursuits = Tasks()
        self._stopping = False
        self._posting = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    def known(self) -> set[str]:
        """Keys that some subscriber has heard of, or is about to."""
        keys = {key for _, key in self._wanted}
        return keys.union(*(self._delivered.keys(subscriber) for subscriber in self._subscribers))

    def is_delivered(self, key: str, mark: str) -> bool:
        """Whether every subscriber has taken this mark."""
        return all(self._delivered.mark(subscriber, key) == mark for subscriber in self._subscribers)

    def offer(self, key: str, mark: str | None, event: Event) -> None:
        """Deliver the event to every subscriber that has not taken this mark; a newer offer replaces an older one.

        The mark None says that the key is gone: only those that have heard of it are told.
        """
        for subscriber in self._subscribers:
            aim = (subscriber, key)
            self._wanted[aim] = _Wanted(mark, event)
            if aim in self._changed:
                self._changed[aim].set()
            elif not self._stopping:
                self._changed[aim] = asyncio.Event()
                self._pursuits.start(self._pursue(subscriber, key))

    def stop(self) -> None:
        """Begin no further delivery."""
        self._stopping = True

    async def close(self) -> None:
        """End what is under way; what was not answered is delivered again after the next start."""
        self.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_CALL_SECONDS):
                await self._quiet.wait()
        await self._pursuits.cancel()
        self._delivered.close()

    async def _pursue(self, subscriber: str, key: str) -> None:
        aim, attempt = (subscriber, key), 0
        try:
            while (wanted := self._wanted[aim]).mark != self._delivered.mark(subscriber, key):
                self._changed[aim].clear()
                if await self._deliver(subscriber, key, wanted, attempt):
                    attempt = 0
                else:
                    attempt = (
                        0 if await self._replaced_within(aim, self._pause(subscriber, wanted, attempt)) else attempt + 1
                    )
        finally:
            del self._changed[aim], self._wanted[aim]

    async def _deliver(self, subscriber: str, key: str, wanted: _Wanted, attempt: int) -> bool:
        try:
            taken = await self._try(subscriber, wanted.event, attempt)
            if taken:
                self._delivered.remember(subscriber, key, wanted.mark)
        except Exception:  # noqa: BLE001 - logged, and tried again
            # A full disk, say: deliver it again rather than never.
            _log.exception("the delivery of %s to %r failed", wanted.event.get("subject"), subscriber)
            return False
        return taken

    async def _try(self, subscriber: str, event: Event, attempt: int) -> bool:
        async with self._slots:
            if self._stopping:
                # Until the task is cancelled.
                await asyncio.Event().wait()
            self._posting += 1
            self._quiet.clear()
            try:
                return await self._post(subscriber, event, attempt)
            finally:
                self._posting -= 1
                if not self._posting:
                    self._quiet.set()

    def _pause(self, subscriber: str, wanted: _Wanted, attempt: int) -> float:
        seconds = self._retry_seconds[min(attempt, len(self._retry_seconds) - 1)]
        _log.warning(
            "%r did not take %s %s; again in %g s",
            subscriber, wanted.event.get("eventType"), wanted.event.get("subject"), seconds,
        )  # fmt: skip
        return seconds

    async def _replaced_within(self, aim: tuple[str, str], seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._changed[aim].wait()
        except TimeoutError:
            return False
        return True


class Webhook:
    """Posts events to the Event Grid webhook of this host, as Event Grid itself would. Use as a context manager."""

    def __init__(self, base_url: str, keys: Keys) -> None:
        self._url = base_url + PATH
        self._code = keys.system[EVENT_GRID_KEY]
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=_PATIENCE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, subscriber: str, event: Event, attempt: int) -> bool:
        """Whether the function has taken the event (any 2xx)."""
        assert self._session is not None, "use the webhook as a context manager"
        headers = {
            "aeg-event-type": "Notification",
            "aeg-subscription-name": subscriber.upper(),
            "aeg-delivery-count": str(attempt),
            "aeg-data-version": str(event.get("dataVersion", "")),
            "aeg-metadata-version": str(event.get("metadataVersion", "1")),
        }
        query = {"functionName": subscriber, "code": self._code}
        try:
            async with self._session.post(self._url, params=query, headers=headers, json=[event]) as response:
                return 200 <= response.status < 300
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.debug("the webhook did not answer: %s", type(error).__name__)
            return False
