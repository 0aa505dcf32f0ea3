"""Whether an entity can be used: told in one log line for each change, and asked again after growing pauses."""

from __future__ import annotations

import logging
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
    """Whether one namespace answers at all; shared by everything that listens there."""

    def __init__(self, what: str, now: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._now = now
        self._began = now()
        self._was_well = False
        self._told = False

    def well(self) -> None:
        if self._told:
            _log.info("%s can be reached again", self._what)
        self._told, self._was_well = False, True

    def failed(self, error: LinkError) -> None:
        starting = not self._was_well and self._now() - self._began < _STARTING_SECONDS
        if not self._told and not starting:
            self._told = True
            _log.warning("%s cannot be reached: %s; trying again", self._what, error)


class Health:
    """What is known of one entity."""

    def __init__(self, what: str, reach: Reach) -> None:
        self._what = what
        self._reach = reach
        self._was_well = False
        self._refused = False
        self._attempt = 0

    def well(self) -> None:
        """It answers."""
        self._reach.well()
        if self._refused or not self._was_well:
            _log.info("%s: receiving%s", self._what, " again" if self._refused and self._was_well else "")
        self._refused, self._attempt, self._was_well = False, 0, True

    def failed(self, error: LinkError) -> float:
        """It does not answer, or refuses; returns how many seconds to wait before asking again."""
        if isinstance(error, Refused):
            self._reach.well()
            # Once, although the text differs: Service Bus puts a time and a tracking id into it.
            if not self._refused:
                _log.error("%s cannot be used: %s (tried again every %g s)", self._what, error, _REFUSED_SECONDS)
            self._refused = True
            pause = _REFUSED_SECONDS
        else:
            self._reach.failed(error)
            pause = _PAUSES_SECONDS[min(self._attempt, len(_PAUSES_SECONDS) - 1)]
            self._attempt += 1
        # Jitter, so that what lost its connection together does not come back together.
        return pause * random.uniform(0.8, 1.2)  # noqa: S311
