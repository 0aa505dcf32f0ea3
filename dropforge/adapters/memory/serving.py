"""Serving in memory: for tests and rehearsals, where the test plays the replicas."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Lock

from dropforge.domain.endpoints import Desired, ReplicaState
from dropforge.domain.names import checked_name

ALIVE = timedelta(seconds=10)


class MemoryServing:
    """`Serving` that lives as long as the object. `report` is what a replica does."""

    def __init__(self, alive: timedelta = ALIVE, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._alive = alive
        self._clock = clock
        self._lock = Lock()
        self._desired: dict[str, Desired] = {}
        self._reports: dict[tuple[str, str], ReplicaState] = {}

    def publish(self, desired: Desired) -> None:
        checked_name(desired.endpoint, "endpoint")
        with self._lock:
            published = self._desired.get(desired.endpoint)
            if published is None or desired.revision > published.revision:
                self._desired[desired.endpoint] = desired

    def desired(self, endpoint: str) -> Desired | None:
        return self._desired.get(checked_name(endpoint, "endpoint"))

    def observe(self, endpoint: str) -> list[ReplicaState]:
        checked_name(endpoint, "endpoint")
        since = self._clock() - self._alive
        with self._lock:
            found = [
                state for state in self._reports.values() if state.endpoint == endpoint and state.reported_at > since
            ]
        return sorted(found, key=lambda state: state.replica)

    def report(self, state: ReplicaState) -> None:
        """A replica says what it serves, in place of what it said before."""
        with self._lock:
            self._reports[state.replica, state.endpoint] = state
