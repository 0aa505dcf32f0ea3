"""What is due when: one heap for the whole broker."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush
from typing import Any

# Dead entries that may lie in the heap beside as many as there are live ones.
SLACK = 256


class Timers:
    """Calls due by key; setting a key again moves it. A cancelled or moved call leaves a dead entry in the heap, and
    the heap is rebuilt when the dead outnumber the living, so it stays in proportion to what is really waited for."""

    __slots__ = ("_count", "_heap", "_live")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Hashable]] = []
        self._live: dict[Hashable, tuple[int, Callable[[Any], None]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def heap_size(self) -> int:
        return len(self._heap)

    def set(self, key: Hashable, due: int, call: Callable[[Any], None]) -> None:
        """Have `call(key)` made when `due` has come. Replaces what was set for the key."""
        # The count keeps the order of setting among equal times, and keys from being compared.
        self._count = count = self._count + 1
        self._live[key] = (count, call)
        heap = self._heap
        heappush(heap, (due, count, key))
        if len(heap) > 2 * len(self._live) + SLACK:
            self._rebuild()

    def cancel(self, key: Hashable) -> None:
        """Forget the key; a key that is not set is left alone."""
        self._live.pop(key, None)

    def next_due(self) -> int | None:
        """When the first call is due; None when nothing is waited for."""
        heap = self._heap
        while heap:
            due, count, key = heap[0]
            live = self._live.get(key)
            if live is not None and live[0] == count:
                return due
            heappop(heap)
        return None

    def run(self, now: int, limit: int = 1_000) -> None:
        """Make the calls due at `now`, at most `limit`, so that a crowd of them does not hold up everything else. A call
        that sets a timer for now or earlier has it made the next time, so that one run always ends."""
        due_calls: list[tuple[Hashable, int, Callable[[Any], None]]] = []
        while len(due_calls) < limit and (due := self.next_due()) is not None and due <= now:
            _, count, key = heappop(self._heap)
            due_calls.append((key, count, self._live[key][1]))
            # Still live until its turn: an earlier call of this run may cancel it.
        for key, count, call in due_calls:
            live = self._live.get(key)
            if live is not None and live[0] == count:
                del self._live[key]
                call(key)

    def _rebuild(self) -> None:
        live = self._live
        self._heap = [entry for entry in self._heap if (found := live.get(entry[2])) and found[0] == entry[1]]
        heapify(self._heap)
