"""Settings and counts -> descriptions of entities, element by element in the order the service has."""

from __future__ import annotations

from collections.abc import Iterable

from dropforge.servicebus.admin.atom import COUNTS, SCHEMA, attribute, description, element, time_text
from dropforge.servicebus.core.ports import Counts
from dropforge.servicebus.settings import (
    CorrelationFilter,
    FalseFilter,
    Filter,
    QueueSettings,
    RuleSettings,
    SqlFilter,
    SubscriptionSettings,
    TopicSettings,
    TrueFilter,
    Value,
    duration_text,
)

MAX_INT = 2**31 - 1


def queue(settings: QueueSettings, counts: Counts, times: tuple[int, int], base: str) -> str:
    """`times`: when it was made and last changed."""
    return description(
        "QueueDescription",
        (
            element("LockDuration", duration_text(settings.lock_ms)),
            element("MaxSizeInMegabytes", str(settings.max_size_megabytes)),
            element("RequiresDuplicateDetection", _flag(settings.detects_duplicates)),
            element("RequiresSession", _flag(settings.requires_session)),
            element("DefaultMessageTimeToLive", duration_text(settings.ttl_ms)),
            element("DeadLetteringOnMessageExpiration", _flag(settings.dead_letters_expired)),
            element("DuplicateDetectionHistoryTimeWindow", duration_text(settings.duplicate_window_ms)),
            element("MaxDeliveryCount", str(settings.max_delivery_count)),
            element("EnableBatchedOperations", "true"),
            element("SizeInBytes", str(counts.size_bytes)),
            element("MessageCount", str(counts.total)),
            element("IsAnonymousAccessible", "false"),
            element("AuthorizationRules", ()),
            element("Status", settings.status.value),
            *_optional("ForwardTo", settings.forward_to, base),
            *_optional("UserMetadata", settings.metadata),
            *_times(times),
            element("SupportOrdering", "true"),
            _counts(counts),
            element("AutoDeleteOnIdle", duration_text(None)),
            element("EnablePartitioning", "false"),
            element("EntityAvailabilityStatus", "Available"),
            element("EnableExpress", "false"),
            *_optional("ForwardDeadLetteredMessagesTo", settings.forward_dead_letters_to, base),
            element("MaxMessageSizeInKilobytes", str(settings.max_message_kilobytes)),
        ),
    )


def topic(settings: TopicSettings, counts: Counts, times: tuple[int, int]) -> str:
    filters = [rule.filter for each in settings.subscriptions for rule in each.rules]
    correlations = sum(isinstance(each, CorrelationFilter) for each in filters)
    return description(
        "TopicDescription",
        (
            element("DefaultMessageTimeToLive", duration_text(settings.ttl_ms)),
            element("MaxSizeInMegabytes", str(settings.max_size_megabytes)),
            element("RequiresDuplicateDetection", _flag(settings.detects_duplicates)),
            element("DuplicateDetectionHistoryTimeWindow", duration_text(settings.duplicate_window_ms)),
            element("EnableBatchedOperations", "true"),
            element("SizeInBytes", str(counts.size_bytes)),
            element("FilteringMessagesBeforePublishing", "false"),
            element("IsAnonymousAccessible", "false"),
            element("AuthorizationRules", ()),
            element("Status", settings.status.value),
            *_optional("UserMetadata", settings.metadata),
            *_times(times),
            element("SupportOrdering", "true"),
            _counts(counts),
            element("SubscriptionCount", str(len(settings.subscriptions))),
            element("SqlFilterCount", str(len(filters) - correlations)),
            element("CorrelationFilterCount", str(correlations)),
            element("AutoDeleteOnIdle", duration_text(None)),
            element("EnablePartitioning", "false"),
            element("EntityAvailabilityStatus", "Available"),
            element("EnableSubscriptionPartitioning", "false"),
            element("EnableExpress", "false"),
            element("MaxMessageSizeInKilobytes", str(settings.max_message_kilobytes)),
        ),
    )


def subscription(settings: SubscriptionSettings, counts: Counts, times: tuple[int, int], base: str) -> str:
    return description(
        "SubscriptionDescription",
        (
            element("LockDuration", duration_text(settings.lock_ms)),
            element("RequiresSession", _flag(settings.requires_session)),
            element("DefaultMessageTimeToLive", duration_text(settings.ttl_ms)),
            element("DeadLetteringOnMessageExpiration", _flag(settings.dead_letters_expired)),
            element("DeadLetteringOnFilterEvaluationExceptions", _flag(settings.dead_letters_filter_errors)),
            element("MessageCount", str(counts.total)),
            element("MaxDeliveryCount", str(settings.max_delivery_count)),
            element("EnableBatchedOperations", "true"),
            element("Status", settings.status.value),
            *_optional("ForwardTo", settings.forward_to, base),
            *_times(times),
            *_optional("UserMetadata", settings.metadata),
            _counts(counts),
            *_optional("ForwardDeadLetteredMessagesTo", settings.forward_dead_letters_to, base),
            element("AutoDeleteOnIdle", duration_text(None)),
            element("EntityAvailabilityStatus", "Available"),
        ),
    )


def rule(settings: RuleSettings, created_ms: int) -> str:
    action = element("Action", (), 'i:type="EmptyRuleAction"')
    if settings.action is not None:
        expression = element("SqlExpression", settings.action)
        action = element("Action", [expression, _level()], 'i:type="SqlRuleAction"')
    return description(
        "RuleDescription",
        (_filter(settings.filter), action, element("CreatedAt", time_text(created_ms)), element("Name", settings.name)),
    )


def namespace(name: str, created_ms: int) -> str:
    return description(
        "NamespaceInfo",
        (
            element("CreatedTime", time_text(created_ms)),
            element("MessagingSKU", "Standard"),
            element("ModifiedTime", time_text(created_ms)),
            element("Name", name),
            element("NamespaceType", "Messaging"),
        ),
    )


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _optional(name: str, value: str | None, base: str = "") -> Iterable[str]:
    if value:
        yield element(name, f"{base}/{value}" if base else value)


def _times(times: tuple[int, int]) -> Iterable[str]:
    created, updated = times
    yield element("CreatedAt", time_text(created))
    yield element("UpdatedAt", time_text(updated))
    # Not recorded: an entity is not told of every access.
    yield element("AccessedAt", time_text(updated))


def _counts(counts: Counts) -> str:
    numbers = (
        ("ActiveMessageCount", counts.active),
        ("DeadLetterMessageCount", counts.dead_letter),
        ("ScheduledMessageCount", counts.scheduled),
        ("TransferDeadLetterMessageCount", counts.transfer_dead_letter),
        ("TransferMessageCount", 0),
    )
    parts = [element(f"d2p1:{name}", str(number)) for name, number in numbers]
    return element("CountDetails", parts, attribute("xmlns:d2p1", COUNTS))


def _filter(asked: Filter) -> str:
    match asked:
        case TrueFilter():
            parts = [element("SqlExpression", "1=1"), _level()]
            return element("Filter", parts, 'i:type="TrueFilter"')
        case FalseFilter():
            parts = [element("SqlExpression", "1=0"), _level()]
            return element("Filter", parts, 'i:type="FalseFilter"')
        case SqlFilter(expression, parameters):
            parts = [element("SqlExpression", expression), _level(), _values("Parameters", parameters)]
            return element("Filter", parts, 'i:type="SqlFilter"')
        case CorrelationFilter(system, properties):
            parts = [*(element(name, value) for name, value in system), _values("Properties", properties)]
            return element("Filter", parts, 'i:type="CorrelationFilter"')


def _level() -> str:
    return element("CompatibilityLevel", "20")


def _values(name: str, pairs: Iterable[tuple[str, Value]]) -> str:
    return element(name, [_pair(key, value) for key, value in pairs])


def _pair(key: str, value: Value) -> str:
    # A bool is an int too: it comes first.
    if isinstance(value, bool):
        kind, text = "boolean", _flag(value)
    elif isinstance(value, int):
        kind, text = "int" if abs(value) <= MAX_INT else "long", str(value)
    else:
        kind, text = ("double", repr(value)) if isinstance(value, float) else ("string", value)
    typed = f"{attribute('i:type', f'd6p1:{kind}')} {attribute('xmlns:d6p1', SCHEMA)}"
    return element("KeyValueOfstringanyType", [element("Key", key), element("Value", text, typed)])
