"""The settings of queues, topics, subscriptions and rules, as values.

The defaults are those of Microsoft's emulator, not of the cloud service. Making one checks it: what cannot be raises
`ValueError`, which says what was found and what was wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

Value = str | bool | int | float
# Properties that the admin API must give back as it got them, and that nothing here acts on.
Kept = tuple[tuple[str, str], ...]

MAX_LOCK_MS = 5 * 60_000
MAX_WINDOW_MS = 7 * 24 * 3_600_000
# .NET's TimeSpan ends here; the service writes "never" as that.
_LONGEST = "P10675199DT2H48M5.4775807S"
_LONGEST_MS = 922_337_203_685_477

CORRELATION_FIELDS = (
    "ContentType",
    "CorrelationId",
    "Label",
    "MessageId",
    "ReplyTo",
    "ReplyToSessionId",
    "SessionId",
    "To",
)

_NAME = re.compile(r"[A-Za-z0-9](?:[\w\-./]*[A-Za-z0-9])?", re.ASCII)
_RULE_NAME = re.compile(r"[A-Za-z0-9$](?:[\w\-.]*[A-Za-z0-9])?", re.ASCII)
_DURATION = re.compile(
    r"P(?=.)(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)D)?(?:T(?=.)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", re.ASCII
)


class Status(Enum):
    """What an entity lets through."""

    ACTIVE = "Active"
    DISABLED = "Disabled"
    SEND_DISABLED = "SendDisabled"
    RECEIVE_DISABLED = "ReceiveDisabled"

    @property
    def sends(self) -> bool:
        return self in (Status.ACTIVE, Status.RECEIVE_DISABLED)

    @property
    def receives(self) -> bool:
        return self in (Status.ACTIVE, Status.SEND_DISABLED)


def milliseconds(text: str) -> int | None:
    """An ISO 8601 duration such as PT1M or P14D; None for the longest one, which means never. A year counts 365 days
    and a month 30, as in .NET. Raises `ValueError`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no ISO 8601 duration; write PT30S, PT5M, PT1H or P14D")
    years, months, days, hours, minutes = (int(part or 0) for part in found.groups()[:5])
    seconds = ((years * 365 + months * 30 + days) * 24 + hours) * 3_600 + minutes * 60
    total = seconds * 1_000 + round(float(found[6] or 0) * 1_000)
    return None if total >= _LONGEST_MS else total


def duration_text(duration_ms: int | None) -> str:
    """The duration as ISO 8601, the way the service writes it."""
    if duration_ms is None:
        return _LONGEST
    days, rest = divmod(duration_ms, 86_400_000)
    hours, rest = divmod(rest, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    seconds, fraction = divmod(rest, 1_000)
    date = f"{days}D" if days else ""
    clock = (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "")
    if fraction:
        clock += f"{seconds}.{fraction:03d}".rstrip("0") + "S"
    elif seconds or not (date or clock):
        clock += f"{seconds}S"
    return f"P{date}T{clock}" if clock else f"P{date}"


def _check_name(kind: str, name: str, allowed: re.Pattern[str], longest: int) -> None:
    if not allowed.fullmatch(name) or len(name) > longest or "//" in name:
        raise ValueError(
            f"{name!r} cannot be the name of a {kind}; use letters, digits, '.', '-', '_' and "
            f"{'' if allowed is _RULE_NAME else 'single / between them, '}at most {longest} characters, "
            "beginning and ending with a letter or digit"
        )


def _check_unique(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise ValueError(f"two of the name {name!r}; the name of a {kind} must be unique, whatever its case")
        seen.add(name.lower())


def _check_ttl(ttl_ms: int | None) -> None:
    if ttl_ms is not None and ttl_ms <= 0:
        raise ValueError(f"a time to live of {ttl_ms} ms; it must be longer than nothing")


def _check_receiving(settings: QueueSettings | SubscriptionSettings) -> None:
    _check_ttl(settings.ttl_ms)
    if not 0 < settings.lock_ms <= MAX_LOCK_MS:
        raise ValueError(f"a lock duration of {duration_text(settings.lock_ms)}; it must be at most PT5M, and not zero")
    if settings.max_delivery_count < 1:
        raise ValueError(f"a max delivery count of {settings.max_delivery_count}; it must be at least 1")
    if settings.requires_session and settings.forward_to:
        raise ValueError("forwarding from an entity that requires sessions; the service has no such thing")


def _check_sending(settings: QueueSettings | TopicSettings) -> None:
    if not 0 < settings.duplicate_window_ms <= MAX_WINDOW_MS:
        window = duration_text(settings.duplicate_window_ms)
        raise ValueError(f"a duplicate detection window of {window}; it must be at most P7D, and not zero")
    if settings.max_size_megabytes < 1 or settings.max_message_kilobytes < 1:
        raise ValueError("a maximum size of less than 1; sizes are in megabytes and kilobytes")


def _check_forwarding(path: str, settings: QueueSettings | SubscriptionSettings, sessions: dict[str, bool]) -> None:
    for target in (settings.forward_to, settings.forward_dead_letters_to):
        if target is None:
            continue
        if target.lower() not in sessions:
            raise ValueError(f"{path} forwards to {target!r}, which is not declared; declare that queue or topic")
        if target.lower() == path.lower():
            raise ValueError(f"{path} forwards to itself; choose another queue or topic")


@dataclass(frozen=True, slots=True)
class TrueFilter:
    """Lets every message in."""


@dataclass(frozen=True, slots=True)
class FalseFilter:
    """Lets no message in."""


@dataclass(frozen=True, slots=True)
class SqlFilter:
    """Lets in what the expression is true for; parameters are named with their `@`."""

    expression: str
    parameters: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True, slots=True)
class CorrelationFilter:
    """Lets in what has all these values. `system` is named as in `CORRELATION_FIELDS`."""

    system: tuple[tuple[str, str], ...] = ()
    properties: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        for name, _ in self.system:
            if name not in CORRELATION_FIELDS:
                raise ValueError(
                    f"a correlation filter cannot ask for {name!r}; choose {', '.join(CORRELATION_FIELDS)}"
                )
        if not self.system and not self.properties:
            raise ValueError("a correlation filter must ask for at least one property")


Filter = TrueFilter | FalseFilter | SqlFilter | CorrelationFilter


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """Which messages come into a subscription, and what is changed in them on the way."""

    name: str
    filter: Filter = TrueFilter()
    action: str | None = None

    def __post_init__(self) -> None:
        _check_name("rule", self.name, _RULE_NAME, 50)


DEFAULT_RULE = RuleSettings("$Default")


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """A queue. Times in milliseconds; `ttl_ms` None: messages live for ever unless they say otherwise."""

    name: str
    lock_ms: int = 60_000
    ttl_ms: int | None = 3_600_000
    dead_letters_expired: bool = False
    max_delivery_count: int = 3
    requires_session: bool = False
    detects_duplicates: bool = False
    duplicate_window_ms: int = 20_000
    forward_to: str | None = None
    forward_dead_letters_to: str | None = None
    max_size_megabytes: int = 1_024
    max_message_kilobytes: int = 256
    status: Status = Status.ACTIVE
    metadata: str = ""
    kept: Kept = ()

    def __post_init__(self) -> None:
        _check_name("queue", self.name, _NAME, 260)
        _check_receiving(self)
        _check_sending(self)


@dataclass(frozen=True, kw_only=True)
class SubscriptionSettings:
    """A subscription of a topic, with the rules that fill it. Times in milliseconds."""

    name: str
    lock_ms: int = 60_000
    ttl_ms: int | None = 3_600_000
    dead_letters_expired: bool = False
    dead_letters_filter_errors: bool = True
    max_delivery_count: int = 3
    requires_session: bool = False
    forward_to: str | None = None
    forward_dead_letters_to: str | None = None
    status: Status = Status.ACTIVE
    metadata: str = ""
    kept: Kept = ()
    rules: tuple[RuleSettings, ...] = (DEFAULT_RULE,)

    def __post_init__(self) -> None:
        _check_name("subscription", self.name, _RULE_NAME, 50)
        _check_receiving(self)
        _check_unique("rule", [rule.name for rule in self.rules])

    def with_rules(self, rules: tuple[RuleSettings, ...]) -> SubscriptionSettings:
        return replace(self, rules=rules)


@dataclass(frozen=True, kw_only=True)
class TopicSettings:
    """A topic and its subscriptions. Times in milliseconds."""

    name: str
    ttl_ms: int | None = 3_600_000
    detects_duplicates: bool = False
    duplicate_window_ms: int = 20_000
    max_size_megabytes: int = 1_024
    max_message_kilobytes: int = 256
    status: Status = Status.ACTIVE
    metadata: str = ""
    kept: Kept = ()
    subscriptions: tuple[SubscriptionSettings, ...] = ()

    def __post_init__(self) -> None:
        _check_name("topic", self.name, _NAME, 260)
        _check_ttl(self.ttl_ms)
        _check_sending(self)
        _check_unique("subscription", [subscription.name for subscription in self.subscriptions])

    def without_subscriptions(self) -> TopicSettings:
        return replace(self, subscriptions=())


@dataclass(frozen=True, slots=True)
class Namespace:
    """What is declared: everything that exists when the broker starts."""

    name: str
    queues: tuple[QueueSettings, ...] = ()
    topics: tuple[TopicSettings, ...] = ()

    def __post_init__(self) -> None:
        _check_unique(
            "queue or topic", [*(queue.name for queue in self.queues), *(topic.name for topic in self.topics)]
        )
        sessions = {queue.name.lower(): queue.requires_session for queue in self.queues}
        sessions |= {topic.name.lower(): False for topic in self.topics}
        for queue in self.queues:
            _check_forwarding(queue.name, queue, sessions)
        for topic in self.topics:
            for subscription in topic.subscriptions:
                _check_forwarding(f"{topic.name}/Subscriptions/{subscription.name}", subscription, sessions)
