"""Patience with somebody who does not answer: not asked again at once, so that nobody waits for him again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from dropforge.domain.errors import DropforgeError, Unavailable


class Patience:
    """One remote place. After an `Unavailable` it is left alone for a second, then for twice as long each time, up to
    `longest_seconds`; whoever asks meanwhile is told `Unavailable` at once. An answer, of any kind, ends that."""

    def __init__(self, longest_seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest = longest_seconds
        self._clock = clock
        self._lock = Lock()
        self._rest = 0.0
        self._until = 0.0
        self._reason = ""

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around what asks the place. Raises `Unavailable` without asking while it is left alone."""
        with self._lock:
            if self._clock() < self._until:
                raise Unavailable(f"{self._reason}; it is asked again in {self._until - self._clock():.0f} seconds")
        try:
            yield
        except Unavailable as error:
            with self._lock:
                self._rest = min(max(1.0, self._rest * 2), self._longest)
                self._until = self._clock() + self._rest
                self._reason = error.message
            raise
        except DropforgeError:
            self._answered()
            raise
        self._answered()

    def _answered(self) -> None:
        with self._lock:
            self._rest = self._until = 0.0
