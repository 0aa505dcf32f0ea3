"""Which functions the local event sources deliver to: what Event Grid subscriptions are in Azure."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from dropforge.adapters.local.finished import SETTLE_SECONDS
from dropforge.host.announcer import RETRY_SECONDS
from dropforge.host.app import App
from dropforge.host.errors import SettingsError

_log = logging.getLogger(__name__)

_STORAGE_EVENTS_TO = "DROPFORGE_STORAGE_EVENTS_TO"
_RUN_EVENTS_TO = "DROPFORGE_RUN_EVENTS_TO"
# What Azure's own topics tell, and which function of the app has use for it.
_TOPIC = {
    "Microsoft.Storage.": "on_blob_event",
    "Microsoft.MachineLearningServices.": "on_run_event",
    "Microsoft.AlertsManagement.": "on_alert_event",
    "Microsoft.Insights.": "on_alert_event",
}
_RETRY_SECONDS = "DROPFORGE_EVENT_RETRY_SECONDS"
_SETTLE_SECONDS = "DROPFORGE_SETTLE_SECONDS"


@dataclass(frozen=True)
class Subscriptions:
    """Function names per event source, and how patient the sources are."""

    storage: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    retry_seconds: tuple[float, ...] = RETRY_SECONDS
    settle_seconds: float = SETTLE_SECONDS


def read_subscriptions(app: App, environment: Mapping[str, str]) -> Subscriptions:
    """What the settings say; names that the app has no Event Grid function for are logged and left out.

    Raises `SettingsError` for a number that is none.
    """
    retries = environment.get(_RETRY_SECONDS)
    return Subscriptions(
        storage=_subscribers(app, environment, _STORAGE_EVENTS_TO, "on_blob_event"),
        runs=_subscribers(app, environment, _RUN_EVENTS_TO, "on_run_event"),
        retry_seconds=_numbers(_RETRY_SECONDS, retries) if retries else RETRY_SECONDS,
        settle_seconds=_numbers(_SETTLE_SECONDS, environment.get(_SETTLE_SECONDS, str(SETTLE_SECONDS)))[0],
    )


def topic_subscribers(app: App) -> dict[str, tuple[str, ...]]:
    """The beginning of an event's type -> the functions of the app that events of the local topic are delivered to."""
    known = {function.name for function in app.of_type("eventGridTrigger")}
    return {begin: (name,) for begin, name in _TOPIC.items() if name in known}


def _subscribers(app: App, environment: Mapping[str, str], setting: str, default: str) -> tuple[str, ...]:
    names = [name.strip() for name in environment.get(setting, default).split(",") if name.strip()]
    known = {function.name.lower(): function.name for function in app.of_type("eventGridTrigger")}
    for name in names:
        if name.lower() not in known:
            # An app without the default function just has no use for these events.
            level = logging.WARNING if setting in environment else logging.DEBUG
            _log.log(level, "%s names %r, but the app has no Event Grid function of that name", setting, name)
    return tuple(dict.fromkeys(known[name.lower()] for name in names if name.lower() in known))


def _numbers(setting: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (-1.0,)
    if not all(0 <= number < float("inf") for number in numbers):
        raise SettingsError(f"{setting} must be seconds (with commas between several), found {text!r}")
    return numbers
