"""Times as the engine keeps them (whole microseconds since 1970, UTC) and as Durable Functions writes them."""

import re
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TEXT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z?")


def now_us() -> int:
    return time.time_ns() // 1000


def from_datetime(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def to_datetime(us: int) -> datetime:
    return _EPOCH + us * _MICROSECOND


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def to_text(us: int) -> str:
    """As .NET writes it into a history: seven fractional digits and `Z` (the SDK needs the `Z`)."""
    seconds, rest = divmod(us, 1_000_000)
    return f"{_second(seconds)}.{rest:06d}0Z"


def to_seconds_text(us: int) -> str:
    """As the management API writes it: whole seconds and `Z`."""
    return _second(us // 1_000_000) + "Z"


def from_text(text: str) -> int:
    """Reads a UTC time with zero to nine fractional digits; raises ValueError for anything else."""
    found = _TEXT.fullmatch(text)
    if not found:
        raise ValueError(f"a UTC time like 2026-01-31T12:00:00.000000Z was wanted; found {text!r}")
    at = datetime.strptime(found[1], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return from_datetime(at) + int((found[2] or "").ljust(6, "0")[:6])
