"""Makes the Durable SDK replay about twice as fast, without changing what it computes.

An episode replays the whole history, and the SDK parses every timestamp in it again with dateutil's guessing parser and
builds the same namedtuple class again: most of the time of a small episode. Both are pure functions of their arguments,
so their results are remembered. Where a version of the SDK is built differently nothing is changed.
"""

import collections
import functools
import importlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

_CACHED_TIMESTAMPS = 4_096


def speed_up_sdk() -> list[str]:
    """Returns what was replaced; a second call replaces nothing."""
    done = []
    events = importlib.import_module("azure.durable_functions.models.history.HistoryEvent")
    if _is_function(getattr(events, "dt_parse", None), "dateutil.parser"):
        setattr(events, "dt_parse", fast_parse(events.dt_parse))  # noqa: B010 - mypy knows no such attribute
        done.append("HistoryEvent.dt_parse")
    executor = importlib.import_module("azure.durable_functions.models.TaskOrchestrationExecutor")
    if getattr(executor, "namedtuple", None) is collections.namedtuple:
        setattr(executor, "namedtuple", functools.cache(collections.namedtuple))  # noqa: B010
        done.append("TaskOrchestrationExecutor.namedtuple")
    return done


def fast_parse(parse: Callable[[str], datetime]) -> Callable[[str], datetime]:
    """The same as `parse` for the one format that histories have; asks `parse` for any other."""
    # dateutil chooses the class of the time zone by the TZ of the process: take what it takes.
    zone = parse("2000-01-01T00:00:00.0000000Z").tzinfo

    @functools.lru_cache(_CACHED_TIMESTAMPS)
    def fast(text: str) -> datetime:
        if len(text) == 28 and text[10] == "T" and text[19] == "." and text[27] == "Z":
            try:
                return datetime.fromisoformat(text[:26]).replace(tzinfo=zone)
            except ValueError:
                pass
        return parse(text)

    return fast


def _is_function(found: Any, module: str) -> bool:
    return callable(found) and str(getattr(found, "__module__", "")).startswith(module)
