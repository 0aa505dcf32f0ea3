"""host.json: what of it this host honours, and what it finds there that it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from dropforge.host.errors import SettingsError
from dropforge.host.json_files import read_object

# Azure lets an app setting override any value of host.json: AzureFunctionsJobHost__extensions__http__routePrefix.
_OVERRIDE = "AzureFunctionsJobHost__"

_HONOURED = (
    "version",
    "functionTimeout",
    "functions",
    "logging.logLevel",
    "extensions.durableTask",
    "extensions.http.routePrefix",
    "extensions.http.maxConcurrentRequests",
    "extensions.http.maxOutstandingRequests",
    "extensions.http.customHeaders",
    "extensions.serviceBus.autoCompleteMessages",
    "extensions.serviceBus.clientRetryOptions",
    "extensions.serviceBus.maxAutoLockRenewalDuration",
    "extensions.serviceBus.maxBatchWaitTime",
    "extensions.serviceBus.maxConcurrentCalls",
    "extensions.serviceBus.maxConcurrentCallsPerSession",
    "extensions.serviceBus.maxConcurrentSessions",
    "extensions.serviceBus.maxMessageBatchSize",
    "extensions.serviceBus.minMessageBatchSize",
    "extensions.serviceBus.prefetchCount",
    "extensions.serviceBus.sessionIdleTimeout",
    "extensions.serviceBus.transportType",
)
# Settings of Azure's own machinery: it is right to have them, and nothing is missing when they do nothing here.
_OF_AZURE_ONLY = (
    "aggregator",
    "applicationInsights",
    "concurrency",
    "extensionBundle",
    "extensions.blobs",
    "extensions.cosmosDB",
    "extensions.eventHubs",
    "extensions.http.hsts",
    "extensions.queues",
    "extensions.sendGrid",
    "extensions.signalR",
    "healthMonitor",
    "logging.applicationInsights",
    "logging.console",
    "logging.fileLoggingMode",
    "managedDependency",
    "singleton",
    "telemetryMode",
    "watchDirectories",
    "watchFiles",
)
_LEVELS = ("trace", "debug", "information", "warning", "error", "critical", "none")


@dataclass(frozen=True)
class HostJson:
    """The honoured part of host.json."""

    route_prefix: str = "api"
    function_timeout: timedelta | None = None
    # Only these functions run; None: all.
    functions: frozenset[str] | None = None
    # Category -> level, both as written; `default` for the rest.
    log_levels: Mapping[str, str] = field(default_factory=dict)
    durable: Mapping[str, Any] = field(default_factory=dict)
    service_bus: Mapping[str, Any] = field(default_factory=dict)
    max_concurrent_requests: int | None = None
    max_outstanding_requests: int | None = None
    custom_headers: Mapping[str, str] = field(default_factory=dict)
    # Settings found that have no effect on this host, as dotted names.
    ignored: tuple[str, ...] = ()


def read_host_json(path: Path, environment: Mapping[str, str]) -> HostJson:
    """The file with the overrides of the environment; defaults when there is no file. Raises `SettingsError`."""
    tree = read_object(path)
    if tree is not None and tree.get("version") != "2.0":
        raise SettingsError(f'{path}: "version" must be "2.0", found {tree.get("version")!r}')
    tree = tree or {}
    read = _Reader(path, tree, _override(tree, environment))
    functions = read.value("functions", list, None)
    return HostJson(
        route_prefix=read.value("extensions.http.routePrefix", str, "api").strip("/"),
        function_timeout=_timeout(path, read.value("functionTimeout", str, "-1")),
        functions=None if functions is None else frozenset(str(name).lower() for name in functions),
        log_levels=_levels(path, read.value("logging.logLevel", dict, {})),
        durable=read.value("extensions.durableTask", dict, {}),
        service_bus=read.value("extensions.serviceBus", dict, {}),
        max_concurrent_requests=read.limit("extensions.http.maxConcurrentRequests"),
        max_outstanding_requests=read.limit("extensions.http.maxOutstandingRequests"),
        custom_headers=read.value("extensions.http.customHeaders", dict, {}),
        ignored=tuple(sorted(_ignored(tree))),
    )


class _Reader:
    """Values by dotted name; upper and lower case are alike, as in Azure. `texts`: what the environment says, as it says it."""

    def __init__(self, path: Path, tree: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        self._path = path
        self._tree = tree
        self._texts = texts

    def value(self, name: str, kind: type, default: Any) -> Any:
        # A variable has no quotes to tell the text "-1" from the number.
        if kind is str and name.lower() in self._texts:
            return self._texts[name.lower()]
        found: Any = self._tree
        for part in name.split("."):
            if not isinstance(found, Mapping):
                return default
            found = next((value for key, value in found.items() if key.lower() == part.lower()), None)
        if found is None:
            return default
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise SettingsError(f"{self._path}: {name} must be a JSON {_name(kind)}, found {found!r}")
        return found

    def limit(self, name: str) -> int | None:
        """A number of requests; Azure writes -1 for no limit."""
        value: int = self.value(name, int, -1)
        if value == 0 or value < -1:
            raise SettingsError(f"{self._path}: {name} must be a number above 0, or -1 for no limit, found {value}")
        return None if value == -1 else value


def _name(kind: type) -> str:
    return {str: "string", dict: "object", list: "array", int: "number"}.get(kind, kind.__name__)


def _override(tree: dict[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Put what the environment says into the tree; returns it as text, by dotted name in lower case."""
    texts = {}
    for name, text in sorted(environment.items()):
        if not name.lower().startswith(_OVERRIDE.lower()):
            continue
        parts = name[len(_OVERRIDE) :].split("__")
        node = tree
        for part in parts[:-1]:
            child = node.setdefault(_existing(node, part), {})
            if not isinstance(child, dict):
                raise SettingsError(f"the setting {name} names a part of {part!r}, which holds no object in host.json")
            node = child
        node[_existing(node, parts[-1])] = _scalar(text)
        texts[".".join(parts).lower()] = text
    return texts


def _existing(node: Mapping[str, Any], name: str) -> str:
    return next((key for key in node if key.lower() == name.lower()), name)


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _timeout(path: Path, text: str) -> timedelta | None:
    if text == "-1":
        return None
    found = re.fullmatch(r"(?:(\d+)\.)?(\d{1,2}):(\d{2}):(\d{2})", text)
    if found is None:
        raise SettingsError(f"{path}: functionTimeout must be 'hh:mm:ss' or '-1' for none, found {text!r}")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds) or None


def _levels(path: Path, levels: Mapping[str, Any]) -> Mapping[str, str]:
    for category, level in levels.items():
        if not isinstance(level, str) or level.lower() not in _LEVELS:
            raise SettingsError(f"{path}: logging.logLevel.{category} must be one of {list(_LEVELS)}, found {level!r}")
    return levels


def _ignored(tree: Mapping[str, Any]) -> Iterator[str]:
    known = [name.lower() for name in (*_HONOURED, *_OF_AZURE_ONLY)]

    def walk(node: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name.lower() in known or key == "$schema":
                continue
            if isinstance(value, Mapping) and any(other.startswith(f"{name.lower()}.") for other in known):
                yield from walk(value, f"{name}.")
            else:
                yield name

    return walk(tree, "")
