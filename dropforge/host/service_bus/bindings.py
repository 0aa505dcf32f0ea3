"""What the bindings of a function say about Service Bus: which entity, over which connection, in which way."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dropforge.host.app import AppFunction, Binding

TRIGGER = "serviceBusTrigger"
OUTPUT = "serviceBus"
# What the extension looks for when a binding names no connection.
_DEFAULT_CONNECTION = "ServiceBus"
# Azure prefers the prefixed spelling.
_PREFIX = "AzureWebJobs"
_NAMESPACE = "__fullyQualifiedNamespace"
_BINARY = 2


@dataclass(frozen=True)
class Entity:
    """A queue, or a topic with (to receive) or without (to send) a subscription."""

    name: str
    subscription: str | None = None
    is_topic: bool = False

    def __str__(self) -> str:
        return f"{self.name}/{self.subscription}" if self.subscription else self.name


@dataclass(frozen=True)
class Connection:
    """How a namespace is reached: by a connection string, or by the identity the host runs as."""

    setting: str
    string: str | None = None
    namespace: str | None = None
    # Of a user-assigned managed identity.
    client_id: str | None = None

    def __repr__(self) -> str:
        # A connection string holds a key, and a repr ends in logs.
        return f"Connection({self.setting!r})"


@dataclass(frozen=True)
class BusTrigger:
    """One function with a Service Bus trigger."""

    function: AppFunction
    entity: Entity
    connection: Connection
    sessions: bool
    # A batch for each call (`cardinality=many`).
    many: bool
    # The body as bytes; else as text.
    binary: bool
    # None: what host.json says.
    auto_complete: bool | None


def problem(function: AppFunction, environment: Mapping[str, str]) -> str | None:
    """Why the Service Bus bindings of the function cannot work, or None; loads nothing."""
    try:
        if function.trigger.type == TRIGGER:
            trigger_of(function, environment)
        for binding in function.sent:
            if binding.type == OUTPUT:
                output_of(binding, environment)
    except ValueError as error:
        return str(error)
    return None


def trigger_of(function: AppFunction, environment: Mapping[str, str]) -> BusTrigger:
    """Raises `ValueError` with what is missing."""
    properties = function.trigger.properties
    entity = _entity(properties, sends=False)
    complete = properties.get("autoCompleteMessages", properties.get("autoComplete"))
    return BusTrigger(
        function,
        entity,
        _connection(properties, entity, environment),
        sessions=_truth(properties.get("isSessionsEnabled")),
        many=str(properties.get("cardinality", "one")).lower() == "many",
        binary=properties.get("dataType") == _BINARY,
        auto_complete=None if complete is None else _truth(complete),
    )


def output_of(binding: Binding, environment: Mapping[str, str]) -> tuple[Connection, Entity]:
    """Where an output goes. Raises `ValueError` with what is missing."""
    entity = _entity(binding.properties, sends=True)
    return _connection(binding.properties, entity, environment), entity


def _entity(properties: Mapping[str, Any], *, sends: bool) -> Entity:
    queue, topic = properties.get("queueName"), properties.get("topicName")
    if queue:
        return Entity(str(queue))
    if not topic:
        raise ValueError("its Service Bus binding names neither a queue nor a topic")
    if sends:
        return Entity(str(topic), is_topic=True)
    subscription = properties.get("subscriptionName")
    if not subscription:
        raise ValueError(f"its Service Bus trigger names the topic {topic!r} but no subscription of it")
    return Entity(str(topic), str(subscription), is_topic=True)


def _connection(properties: Mapping[str, Any], entity: Entity, environment: Mapping[str, str]) -> Connection:
    name = str(properties.get("connection") or _DEFAULT_CONNECTION)
    if "endpoint=" in name.lower():
        raise ValueError(
            "the connection of its Service Bus binding is a whole connection string; put that into a setting, and the "
            "name of the setting here"
        )
    _require("azure.servicebus", "azure-servicebus")
    for setting in (f"{_PREFIX}{name}", name):
        if environment.get(setting):
            return _by_string(setting, environment[setting], entity)
        if environment.get(setting + _NAMESPACE):
            _require("azure.identity", "azure-identity")
            namespace = environment[setting + _NAMESPACE].strip().rstrip("/").removeprefix("sb://")
            return Connection(setting, namespace=namespace, client_id=environment.get(f"{setting}__clientId"))
    raise ValueError(
        f"the Service Bus connection {name!r} is not set; set {name} to a connection string, or {name}{_NAMESPACE} to a "
        "namespace such as 'example.servicebus.windows.net', in local.settings.json or the environment"
    )


def _by_string(setting: str, text: str, entity: Entity) -> Connection:
    parts = {
        key.strip().lower(): value.strip()
        for key, _, value in (part.partition("=") for part in text.split(";") if part.strip())
    }
    has_key = parts.get("sharedaccesskeyname") and parts.get("sharedaccesskey")
    if not parts.get("endpoint") or not (has_key or parts.get("sharedaccesssignature")):
        raise ValueError(
            f"the setting {setting} is no Service Bus connection string; wanted "
            "'Endpoint=sb://...;SharedAccessKeyName=...;SharedAccessKey=...'"
        )
    only = parts.get("entitypath")
    if only and only.lower() != entity.name.lower():
        raise ValueError(f"the setting {setting} is for the entity {only!r} only (EntityPath), not for {entity.name!r}")
    return Connection(setting, string=text)


def secrets(environment: Mapping[str, str]) -> list[str]:
    """The keys in the connection strings among the settings."""
    found = (re.findall(r"(?i)SharedAccessKey=([^;]+)", value) for value in environment.values())
    return [key.strip() for keys in found for key in keys]


def _require(module: str, package: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ValueError(f"it needs the package {package}, which is not installed; pip install {package}")


def _truth(value: object) -> bool:
    return value is True or str(value).lower() == "true"
