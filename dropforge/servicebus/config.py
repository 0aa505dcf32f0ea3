"""The declared entities: the `Config.json` of Microsoft's Service Bus emulator, read and written.

https://learn.microsoft.com/azure/service-bus-messaging/overview-emulator and the schema in
https://github.com/Azure/azure-service-bus-emulator-installer. What goes beyond that file: durations with fractions and
outside the emulator's bounds, `FilterType` `True` and `False`, and the properties `MaxSizeInMegabytes`,
`MaxMessageSizeInKilobytes`, `Status`, `UserMetadata`, `DeadLetteringOnFilterEvaluationExceptions` and `Kept`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dropforge.servicebus.errors import ConfigError
from dropforge.servicebus.settings import (
    CORRELATION_FIELDS,
    DEFAULT_RULE,
    CorrelationFilter,
    FalseFilter,
    Filter,
    Namespace,
    QueueSettings,
    RuleSettings,
    SqlFilter,
    Status,
    SubscriptionSettings,
    TopicSettings,
    TrueFilter,
    Value,
    duration_text,
    milliseconds,
)

__all__ = [
    "CORRELATION_FIELDS",
    "ConfigError",
    "CorrelationFilter",
    "FalseFilter",
    "Filter",
    "Namespace",
    "QueueSettings",
    "RuleSettings",
    "SqlFilter",
    "Status",
    "SubscriptionSettings",
    "TopicSettings",
    "TrueFilter",
    "Value",
    "duration_text",
    "milliseconds",
    "parse",
    "read",
]

T = TypeVar("T")

# Microsoft's emulator serves one namespace, under this name.
NAMESPACE = "sbemulatorns"

_TOPIC_PROPERTIES = (
    "DefaultMessageTimeToLive",
    "DuplicateDetectionHistoryTimeWindow",
    "RequiresDuplicateDetection",
    "MaxSizeInMegabytes",
    "MaxMessageSizeInKilobytes",
    "Status",
    "UserMetadata",
    "Kept",
)
_QUEUE_PROPERTIES = (
    *_TOPIC_PROPERTIES,
    "DeadLetteringOnMessageExpiration",
    "ForwardDeadLetteredMessagesTo",
    "ForwardTo",
    "LockDuration",
    "MaxDeliveryCount",
    "RequiresSession",
)
_SUBSCRIPTION_PROPERTIES = (
    "DeadLetteringOnFilterEvaluationExceptions",
    "DeadLetteringOnMessageExpiration",
    "DefaultMessageTimeToLive",
    "ForwardDeadLetteredMessagesTo",
    "ForwardTo",
    "LockDuration",
    "MaxDeliveryCount",
    "RequiresSession",
    "Status",
    "UserMetadata",
    "Kept",
)


def read(path: Path) -> Namespace:
    """The namespace declared in a file. Raises `ConfigError`, which names the file and the place in it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give the path of a Config.json") from error
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(text: str) -> Namespace:
    """The namespace declared in a text. Raises `ConfigError`, which names the place."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}") from error
    root = _Fields(document, "", ("UserConfig", "$schema"))
    user = root.fields("UserConfig", ("Namespaces", "Logging"))
    namespaces = user.items("Namespaces")
    if len(namespaces) != 1:
        raise ConfigError(f"UserConfig.Namespaces: {len(namespaces)} namespaces; declare exactly one")
    space = _Fields(namespaces[0][1], namespaces[0][0], ("Name", "Queues", "Topics"))
    with _at(space.where):
        return Namespace(
            name=space.text("Name", NAMESPACE),
            queues=tuple(queue_from(value, where) for where, value in space.items("Queues")),
            topics=tuple(topic_from(value, where) for where, value in space.items("Topics")),
        )


def queue_from(value: object, where: str = "queue") -> QueueSettings:
    """One queue as the file has it. Raises `ConfigError`."""
    entry = _Fields(value, where, ("Name", "Properties"))
    given = entry.fields("Properties", _QUEUE_PROPERTIES)
    with _at(entry.where):
        return QueueSettings(
            name=entry.text("Name"),
            dead_letters_expired=given.flag("DeadLetteringOnMessageExpiration", False),
            ttl_ms=given.lifetime("DefaultMessageTimeToLive", QueueSettings.ttl_ms),
            duplicate_window_ms=given.duration(
                "DuplicateDetectionHistoryTimeWindow", QueueSettings.duplicate_window_ms
            ),
            forward_dead_letters_to=given.text("ForwardDeadLetteredMessagesTo", "") or None,
            forward_to=given.text("ForwardTo", "") or None,
            lock_ms=given.duration("LockDuration", QueueSettings.lock_ms),
            max_delivery_count=given.number("MaxDeliveryCount", QueueSettings.max_delivery_count),
            detects_duplicates=given.flag("RequiresDuplicateDetection", False),
            requires_session=given.flag("RequiresSession", False),
            max_size_megabytes=given.number("MaxSizeInMegabytes", QueueSettings.max_size_megabytes),
            max_message_kilobytes=given.number("MaxMessageSizeInKilobytes", QueueSettings.max_message_kilobytes),
            status=given.status(),
            metadata=given.text("UserMetadata", ""),
            kept=given.texts("Kept"),
        )


def topic_from(value: object, where: str = "topic") -> TopicSettings:
    """One topic with its subscriptions as the file has it. Raises `ConfigError`."""
    entry = _Fields(value, where, ("Name", "Properties", "Subscriptions"))
    given = entry.fields("Properties", _TOPIC_PROPERTIES)
    with _at(entry.where):
        return TopicSettings(
            name=entry.text("Name"),
            ttl_ms=given.lifetime("DefaultMessageTimeToLive", TopicSettings.ttl_ms),
            duplicate_window_ms=given.duration(
                "DuplicateDetectionHistoryTimeWindow", TopicSettings.duplicate_window_ms
            ),
            detects_duplicates=given.flag("RequiresDuplicateDetection", False),
            max_size_megabytes=given.number("MaxSizeInMegabytes", TopicSettings.max_size_megabytes),
            max_message_kilobytes=given.number("MaxMessageSizeInKilobytes", TopicSettings.max_message_kilobytes),
            status=given.status(),
            metadata=given.text("UserMetadata", ""),
            kept=given.texts("Kept"),
            subscriptions=tuple(_declared(item, place) for place, item in entry.items("Subscriptions")),
        )


def subscription_from(value: object, where: str = "subscription") -> SubscriptionSettings:
    """One subscription with its rules as the file has it. Raises `ConfigError`."""
    entry = _Fields(value, where, ("Name", "Properties", "Rules"))
    given = entry.fields("Properties", _SUBSCRIPTION_PROPERTIES)
    with _at(entry.where):
        return SubscriptionSettings(
            name=entry.text("Name"),
            dead_letters_filter_errors=given.flag("DeadLetteringOnFilterEvaluationExceptions", True),
            dead_letters_expired=given.flag("DeadLetteringOnMessageExpiration", False),
            ttl_ms=given.lifetime("DefaultMessageTimeToLive", SubscriptionSettings.ttl_ms),
            forward_dead_letters_to=given.text("ForwardDeadLetteredMessagesTo", "") or None,
            forward_to=given.text("ForwardTo", "") or None,
            lock_ms=given.duration("LockDuration", SubscriptionSettings.lock_ms),
            max_delivery_count=given.number("MaxDeliveryCount", SubscriptionSettings.max_delivery_count),
            requires_session=given.flag("RequiresSession", False),
            status=given.status(),
            metadata=given.text("UserMetadata", ""),
            kept=given.texts("Kept"),
            rules=tuple(rule_from(item, place) for place, item in entry.items("Rules")),
        )


def _declared(value: object, where: str) -> SubscriptionSettings:
    """A subscription that is declared without rules has the one that lets everything in."""
    found = subscription_from(value, where)
    return found if found.rules else found.with_rules((DEFAULT_RULE,))


def rule_from(value: object, where: str = "rule") -> RuleSettings:
    """One rule as the file has it. Raises `ConfigError`."""
    entry = _Fields(value, where, ("Name", "Properties"))
    given = entry.fields("Properties", ("FilterType", "CorrelationFilter", "SqlFilter", "Action"))
    action = given.fields("Action", ("SqlExpression",))
    with _at(entry.where):
        return RuleSettings(
            name=entry.text("Name"), filter=_filter(given), action=action.text("SqlExpression", "") or None
        )


def _filter(given: _Fields) -> Filter:
    kind = given.text("FilterType")
    if kind == "Sql":
        sql = given.fields("SqlFilter", ("SqlExpression", "Parameters"))
        return SqlFilter(sql.text("SqlExpression"), sql.values("Parameters"))
    if kind == "Correlation":
        asked = given.fields("CorrelationFilter", (*CORRELATION_FIELDS, "Properties"))
        system = tuple((name, asked.text(name)) for name in CORRELATION_FIELDS if name in asked)
        return CorrelationFilter(system, asked.values("Properties"))
    if kind == "True":
        return TrueFilter()
    if kind == "False":
        return FalseFilter()
    raise ConfigError(f"{given.where}.FilterType: unknown filter {kind!r}; choose Sql, Correlation, True or False")


def dump_queue(settings: QueueSettings) -> dict[str, Any]:
    """What `queue_from` reads."""
    return {
        "Name": settings.name,
        "Properties": {
            **_dump_common(settings),
            **_dump_receiving(settings),
            **_dump_history(settings),
        },
    }


def dump_topic(settings: TopicSettings) -> dict[str, Any]:
    """What `topic_from` reads, less the subscriptions."""
    return {"Name": settings.name, "Properties": {**_dump_common(settings), **_dump_history(settings)}}


def dump_subscription(settings: SubscriptionSettings) -> dict[str, Any]:
    """What `subscription_from` reads."""
    return {
        "Name": settings.name,
        "Properties": {
            **_dump_common(settings),
            **_dump_receiving(settings),
            "DeadLetteringOnFilterEvaluationExceptions": settings.dead_letters_filter_errors,
        },
        "Rules": [dump_rule(rule) for rule in settings.rules],
    }


def dump_rule(rule: RuleSettings) -> dict[str, Any]:
    """What `rule_from` reads."""
    asked: dict[str, Any]
    match rule.filter:
        case SqlFilter(expression, parameters):
            asked = {"FilterType": "Sql", "SqlFilter": {"SqlExpression": expression, "Parameters": dict(parameters)}}
        case CorrelationFilter(system, properties):
            asked = {
                "FilterType": "Correlation",
                "CorrelationFilter": {**dict(system), "Properties": dict(properties)},
            }
        case TrueFilter():
            asked = {"FilterType": "True"}
        case FalseFilter():
            asked = {"FilterType": "False"}
    if rule.action is not None:
        asked["Action"] = {"SqlExpression": rule.action}
    return {"Name": rule.name, "Properties": asked}


def _dump_common(settings: QueueSettings | TopicSettings | SubscriptionSettings) -> dict[str, Any]:
    return {
        "DefaultMessageTimeToLive": duration_text(settings.ttl_ms),
        "Status": settings.status.value,
        "UserMetadata": settings.metadata,
        "Kept": dict(settings.kept),
    }


def _dump_receiving(settings: QueueSettings | SubscriptionSettings) -> dict[str, Any]:
    return {
        "DeadLetteringOnMessageExpiration": settings.dead_letters_expired,
        "ForwardDeadLetteredMessagesTo": settings.forward_dead_letters_to or "",
        "ForwardTo": settings.forward_to or "",
        "LockDuration": duration_text(settings.lock_ms),
        "MaxDeliveryCount": settings.max_delivery_count,
        "RequiresSession": settings.requires_session,
    }


def _dump_history(settings: QueueSettings | TopicSettings) -> dict[str, Any]:
    return {
        "DuplicateDetectionHistoryTimeWindow": duration_text(settings.duplicate_window_ms),
        "RequiresDuplicateDetection": settings.detects_duplicates,
        "MaxSizeInMegabytes": settings.max_size_megabytes,
        "MaxMessageSizeInKilobytes": settings.max_message_kilobytes,
    }


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Puts the place before what the settings object to."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


class _Fields:
    """One JSON object of known keys, and where it stands."""

    def __init__(self, value: object, where: str, known: tuple[str, ...]) -> None:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where or 'the document'}: {_shown(value)} where an object was wanted")
        for key in value:
            if key not in known:
                raise ConfigError(f"{self._place(where, key)}: unknown property; choose among {', '.join(known)}")
        self.where = where
        self._value: Mapping[str, Any] = value

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def fields(self, key: str, known: tuple[str, ...]) -> _Fields:
        return _Fields(self._value.get(key) or {}, self._place(self.where, key), known)

    def items(self, key: str) -> list[tuple[str, object]]:
        """The entries of a list, each with its place; a missing list is empty."""
        value = self._value.get(key)
        where = self._place(self.where, key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise ConfigError(f"{where}: {_shown(value)} where a list was wanted")
        return [(f"{where}[{index}]", item) for index, item in enumerate(value)]

    def values(self, key: str) -> tuple[tuple[str, Value], ...]:
        value = self._value.get(key) or {}
        where = self._place(self.where, key)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {_shown(value)} where an object was wanted")
        for name, item in value.items():
            if not isinstance(item, str | int | float):
                raise ConfigError(f"{where}.{name}: {_shown(item)} where text, a number or a boolean was wanted")
        return tuple(value.items())

    def texts(self, key: str) -> tuple[tuple[str, str], ...]:
        return tuple((name, str(item)) for name, item in self.values(key))

    def text(self, key: str, default: str | None = None) -> str:
        return self._typed(key, str, "text", default)

    def flag(self, key: str, default: bool) -> bool:
        return self._typed(key, bool, "true or false", default)

    def number(self, key: str, default: int) -> int:
        return self._typed(key, int, "a whole number", default)

    def duration(self, key: str, default: int) -> int:
        found = self._duration(key, default)
        if found is None:
            raise ConfigError(f"{self._place(self.where, key)}: longer than any allowed; choose a shorter duration")
        return found

    def lifetime(self, key: str, default: int | None) -> int | None:
        return self._duration(key, default)

    def status(self) -> Status:
        given = self.text("Status", Status.ACTIVE.value)
        try:
            return Status(given)
        except ValueError:
            choices = ", ".join(status.value for status in Status)
            raise ConfigError(f"{self.where}.Status: unknown status {given!r}; choose among {choices}") from None

    def _duration(self, key: str, default: int | None) -> int | None:
        if key not in self:
            return default
        given = self.text(key)
        try:
            return milliseconds(given)
        except ValueError as error:
            raise ConfigError(f"{self._place(self.where, key)}: {error}") from None

    def _typed(self, key: str, kind: type[T], wanted: str, default: T | None) -> T:
        value = self._value.get(key)
        if value is None:
            if default is None:
                raise ConfigError(f"{self._place(self.where, key)}: missing; {wanted} was wanted")
            return default
        # A JSON boolean is a Python int too.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{self._place(self.where, key)}: {_shown(value)} where {wanted} was wanted")
        return value

    @staticmethod
    def _place(where: str, key: str) -> str:
        return f"{where}.{key}" if where else key


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
