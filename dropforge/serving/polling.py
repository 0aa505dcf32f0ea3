"""Look for the next request for a moment before sleeping: to be woken takes several times what a small model takes.

Only while it pays. A look that finds nothing is followed by more and more answers after which the loop sleeps at once, so
that a server with a request now and then spends a few microseconds on it, and one that is idle nothing at all.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from dropforge.serving.workers import quota

# How long a client takes from an answer to its next request, with its own waking up, where it is near.
SECONDS = 200e-6
# Answers without a look behind them, at most.
MOST_SKIPPED = 31


class Polling:
    """On the event loop only. `may`: whether nothing else in this process wants the processor now."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, may: Callable[[], bool]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._may = may
        self._looks = False
        self._until = 0.0
        # Answers that are left without a look, and how many there were the last time.
        self._left = self._skipped = 0

    def rest(self) -> None:
        """Everything is answered."""
        if self._looks:
            # It came while it was looked for.
            self._skipped = 0
        elif self._left:
            self._left -= 1
            return
        elif not self._seconds or not self._may():
            return
        else:
            self._looks = True
            self._loop.call_soon(self._look)
        self._until = time.perf_counter() + self._seconds

    def _look(self) -> None:
        # A loop with something to call looks at its sockets and does not sleep.
        if time.perf_counter() < self._until and self._may():
            self._loop.call_soon(self._look)
        else:
            self._looks = False
            self._left = self._skipped = min(2 * self._skipped + 1, MOST_SKIPPED)


def default_seconds(*, shares_port: bool) -> float:
    """Nothing where processor time is counted or scarce: other workers want it, or the caller does, or there is a quota."""
    return 0.0 if shares_port or (os.cpu_count() or 1) == 1 or quota() is not None else SECONDS
