"""What the path of a request names: an entity, a list of entities, the namespace."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dropforge.servicebus.errors import not_found

_RULE = re.compile(r"(?P<topic>.+)/subscriptions/(?P<subscription>[^/]+)/rules/(?P<rule>[^/]+)", re.IGNORECASE)
_RULES = re.compile(r"(?P<topic>.+)/subscriptions/(?P<subscription>[^/]+)/rules", re.IGNORECASE)
_SUBSCRIPTION = re.compile(r"(?P<topic>.+)/subscriptions/(?P<subscription>[^/]+)", re.IGNORECASE)
_SUBSCRIPTIONS = re.compile(r"(?P<topic>.+)/subscriptions", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TheNamespace:
    """`$namespaceinfo`"""


@dataclass(frozen=True, slots=True)
class Queues:
    """`$Resources/queues`"""


@dataclass(frozen=True, slots=True)
class Topics:
    """`$Resources/topics`"""


@dataclass(frozen=True, slots=True)
class QueueOrTopic:
    """`NAME`; a name may have slashes in it."""

    name: str


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """`TOPIC/subscriptions`"""

    topic: str


@dataclass(frozen=True, slots=True)
class Subscription:
    """`TOPIC/subscriptions/NAME`"""

    topic: str
    name: str


@dataclass(frozen=True, slots=True)
class Rules:
    """`TOPIC/subscriptions/NAME/rules`"""

    topic: str
    subscription: str


@dataclass(frozen=True, slots=True)
class Rule:
    """`TOPIC/subscriptions/NAME/rules/RULE`"""

    topic: str
    subscription: str
    name: str


List = Queues | Topics | Subscriptions | Rules
One = QueueOrTopic | Subscription | Rule
Place = TheNamespace | List | One


def place_of(path: str) -> Place:
    """Raises `BrokerError` (404) for a path that can name nothing."""
    lower = path.lower()
    if lower == "$namespaceinfo":
        return TheNamespace()
    if lower == "$resources/queues":
        return Queues()
    if lower == "$resources/topics":
        return Topics()
    if not path or lower.startswith("$"):
        raise not_found(path)
    if found := _RULE.fullmatch(path):
        return Rule(found["topic"], found["subscription"], found["rule"])
    if found := _RULES.fullmatch(path):
        return Rules(found["topic"], found["subscription"])
    if found := _SUBSCRIPTION.fullmatch(path):
        return Subscription(found["topic"], found["subscription"])
    if found := _SUBSCRIPTIONS.fullmatch(path):
        return Subscriptions(found["topic"])
    return QueueOrTopic(path)
