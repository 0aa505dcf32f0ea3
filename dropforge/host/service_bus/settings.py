"""The settings of the Service Bus extension 5.x, named as in the `serviceBus` section of host.json."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dropforge.host.errors import SettingsError

_SECTION = "host.json: extensions.serviceBus"
_SPAN = re.compile(r"(?:(\d+)\.)?(\d{1,2}):(\d{2}):(\d{2})(?:\.(\d{1,7}))?")
# .NET writes an unlimited time so (Timeout.InfiniteTimeSpan).
_INFINITE = re.compile(r"-00:00:00\.0010*")
# The extension refuses more: messages that wait for a fuller batch are locked while they do.
_LONGEST_BATCH_WAIT_SECONDS = 150.0


def _sixteen_per_core() -> int:
    return 16 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class Retries:
    """`clientRetryOptions`: how often sending and settling is tried again, and how long after."""

    count: int = 3
    delay_seconds: float = 0.8
    longest_delay_seconds: float = 60.0
    grows: bool = True
    try_seconds: float = 60.0

    def wait(self, attempt: int) -> float:
        """Seconds to wait before the retry of this number, from 1."""
        grown = self.delay_seconds * 2 ** (attempt - 1) if self.grows else self.delay_seconds
        return min(grown, self.longest_delay_seconds)


@dataclass(frozen=True)
class BusSettings:
    """How much runs at once and which limits hold; defaults are those of the extension."""

    auto_complete: bool = True
    max_calls: int = field(default_factory=_sixteen_per_core)
    max_sessions: int = 8
    max_calls_per_session: int = 1
    prefetch: int = 0
    # From the moment a message arrives; infinite where host.json says so. Batches are not renewed, as in Azure.
    renewal_seconds: float = 300.0
    session_idle_seconds: float = 60.0
    max_batch: int = 1000
    min_batch: int = 1
    batch_wait_seconds: float = 30.0
    retries: Retries = Retries()
    web_sockets: bool = False

    @classmethod
    def from_host_json(cls, section: Mapping[str, Any]) -> BusSettings:
        """Reads `extensions.serviceBus`. Raises `SettingsError`."""
        read = _Section(section, _SECTION)
        retries = _retries(read)
        settings = cls(
            auto_complete=read.truth("autoCompleteMessages", cls.auto_complete),
            max_calls=read.number("maxConcurrentCalls", _sixteen_per_core()),
            max_sessions=read.number("maxConcurrentSessions", cls.max_sessions),
            max_calls_per_session=read.number("maxConcurrentCallsPerSession", cls.max_calls_per_session),
            prefetch=read.number("prefetchCount", cls.prefetch, lowest=0),
            renewal_seconds=read.span("maxAutoLockRenewalDuration", cls.renewal_seconds),
            session_idle_seconds=read.span("sessionIdleTimeout", retries.try_seconds),
            max_batch=read.number("maxMessageBatchSize", cls.max_batch),
            min_batch=read.number("minMessageBatchSize", cls.min_batch),
            batch_wait_seconds=read.span("maxBatchWaitTime", cls.batch_wait_seconds),
            retries=retries,
            web_sockets=read.choice("transportType", ("amqpTcp", "amqpWebSockets"), "amqpTcp") == "amqpWebSockets",
        )
        if settings.min_batch > settings.max_batch:
            raise SettingsError(
                f"{_SECTION}.minMessageBatchSize ({settings.min_batch}) must not be above maxMessageBatchSize "
                f"({settings.max_batch})"
            )
        if settings.batch_wait_seconds > _LONGEST_BATCH_WAIT_SECONDS:
            raise SettingsError(f"{_SECTION}.maxBatchWaitTime must not be above '00:02:30'")
        return settings


def _retries(section: _Section) -> Retries:
    read = section.below("clientRetryOptions")
    return Retries(
        count=read.number("maxRetries", Retries.count, lowest=0),
        delay_seconds=read.span("delay", Retries.delay_seconds),
        longest_delay_seconds=read.span("maxDelay", Retries.longest_delay_seconds),
        grows=read.choice("mode", ("exponential", "fixed"), "exponential") == "exponential",
        try_seconds=read.span("tryTimeout", Retries.try_seconds),
    )


class _Section:
    """Values of one JSON object by name; upper and lower case are alike, as in Azure."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self._values = {key.lower(): value for key, value in values.items()}
        self._name = name

    def number(self, key: str, default: int, lowest: int = 1) -> int:
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise self._wrong(key, f"a whole number from {lowest} up", value)
        return value

    def truth(self, key: str, default: bool) -> bool:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self._get(key)
        if value is None:
            return default
        found = next((choice for choice in choices if choice.lower() == str(value).lower()), None)
        if found is None:
            raise self._wrong(key, f"one of {list(choices)}", value)
        return found

    def span(self, key: str, default: float) -> float:
        """Seconds of a .NET time span `[d.]hh:mm:ss[.fffffff]`; infinite for `-00:00:00.0010000`."""
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, str) and _INFINITE.fullmatch(value):
            return math.inf
        found = _SPAN.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise self._wrong(key, "a time 'hh:mm:ss'", value)
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups()[:4])
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + float(f"0.{found[5] or 0}")

    def below(self, key: str) -> _Section:
        value = self._get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(key, "an object", value)
        return _Section(value or {}, f"{self._name}.{key}")

    def _get(self, key: str) -> Any:
        return self._values.get(key.lower())

    def _wrong(self, key: str, wanted: str, found: object) -> SettingsError:
        return SettingsError(f"{self._name}.{key} must be {wanted}, found {found!r}")
