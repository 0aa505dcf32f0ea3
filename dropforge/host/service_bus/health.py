"""Whether an entity can be used: told in one log line for each change, and asked again after growing pauses."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable

from dropforge.host.service_bus.link import LinkError, Refused

_log = logging.getLogger(__name__)

_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_REFUSED_SECONDS = 30.0
# The local Service Bus starts beside the host and needs a moment.
_STARTING_SECONDS = 5.0


class Reach:
    """Whether one namespace answers at all; shared by everything that listens there, and hears of it in its own time: what
    was asked before the last failure says nothing new."""

    def __init__(self, what: str, now: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._now = now
        self._began = now()
        self._was_well = False
        self._told = False
        self._failed_at = -math.inf

    def well(self, asked_at: float | None = None) -> None:
        """It answered what was asked then, by the clock; default: now."""
        if self._is_old(asked_at):
            return
        if self._told:
            _log.info("%s can be reached again", self._what)
        self._told, self._was_well = False, True

    def failed(self, error: LinkError, asked_at: float | None = None) -> None:
        """It does not answer what was asked then, or no more."""
        if self._is_old(asked_at):
            return
        self._failed_at = self._now()
        starting = not self._was_well and self._now() - self._began < _STARTING_SECONDS
        if not self._told and not starting:
            self._told = True
            _log.warning("%s cannot be reached: %s; trying again", self._what, error)

    def _is_old(self, asked_at: float | None) -> bool:
        return asked_at is not None and asked_at < self._failed_at


class Health:
    """What is known of one entity."""

    def __init__(self, what: str, reach: Reach) -> None:
        self._what = what
        self._reach = reach
        self._was_well = False
        self._refused = False
        self._attempt = 0

    def well(self, asked_at: float | None = None) -> None:
        """It answers what was asked then, by `time.monotonic` (default: now)."""
        self._reach.well(asked_at)
        if self._refused or not self._was_well:
            _log.info("%s: receiving%s", self._what, " again" if self._refused and self._was_well else "")
        self._refused, self._attempt, self._was_well = False, 0, True

    def failed(self, error: LinkError, asked_at: float | None = None) -> float:
        """It does not answer what was asked then (default: now), or refuses; returns for how many seconds not to ask again."""
        if isinstance(error, Refused):
            self._reach.well(asked_at)
            # Once, although the text differs: Service Bus puts a time and a tracking id into it.
            if not self._refused:
                _log.error("%s cannot be used: %s (tried again every %g s)", self._what, error, _REFUSED_SECONDS)
            self._refused = True
            pause = _REFUSED_SECONDS
        else:
            self._reach.failed(error, asked_at)
            pause = _PAUSES_SECONDS[min(self._attempt, len(_PAUSES_SECONDS) - 1)]
            self._attempt += 1
        # Jitter, so that what lost its connection together does not come back together.
        return pause * random.uniform(0.8, 1.2)  # noqa: S311
