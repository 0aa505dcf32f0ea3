"""Descriptions of entities as clients send them -> settings. Absent elements have the defaults of the cloud service.

Names, kinds and bounds of the properties are those of the configuration file, and are checked by the same code.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from dropforge.servicebus import config
from dropforge.servicebus.admin.atom import TYPE, local, tag
from dropforge.servicebus.errors import BrokerError, ConfigError, bad_field, not_supported
from dropforge.servicebus.sas import entity_path
from dropforge.servicebus.settings import (
    CORRELATION_FIELDS,
    DEFAULT_RULE,
    QueueSettings,
    RuleSettings,
    SubscriptionSettings,
    TopicSettings,
    Value,
    milliseconds,
)

S = TypeVar("S")

FOREVER: Final = "P10675199DT2H48M5.4775807S"

# What an entity that is made through the management API has when nothing is said: the cloud's defaults, which are wider
# than those of the configuration file.
_COMMON: Final = {"DefaultMessageTimeToLive": FOREVER}
_RECEIVING: Final = {"LockDuration": "PT1M", "MaxDeliveryCount": 10}
_HISTORY: Final = {"DuplicateDetectionHistoryTimeWindow": "PT10M", "MaxSizeInMegabytes": 1024}


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} where true or false was wanted")
    return text == "true"


# Element -> how its text is read.
_TEXTS: Final[dict[str, Callable[[str], Any]]] = {
    "DefaultMessageTimeToLive": str,
    "UserMetadata": str,
    "Status": str,
}
_RECEIVED: Final[dict[str, Callable[[str], Any]]] = {
    **_TEXTS,
    "LockDuration": str,
    "RequiresSession": _flag,
    "DeadLetteringOnMessageExpiration": _flag,
    "MaxDeliveryCount": int,
    "ForwardTo": entity_path,
    "ForwardDeadLetteredMessagesTo": entity_path,
}
_SENT: Final[dict[str, Callable[[str], Any]]] = {
    **_TEXTS,
    "RequiresDuplicateDetection": _flag,
    "DuplicateDetectionHistoryTimeWindow": str,
    "MaxSizeInMegabytes": int,
    "MaxMessageSizeInKilobytes": int,
}
_QUEUE: Final = {**_RECEIVED, **_SENT}
_SUBSCRIPTION: Final = {**_RECEIVED, "DeadLetteringOnFilterEvaluationExceptions": _flag}


def kind_of(description: ET.Element) -> str:
    """What is described: Queue, Topic, Subscription or Rule."""
    name = local(description.tag)
    if description.tag != tag(name) or name not in (
        "QueueDescription",
        "TopicDescription",
        "SubscriptionDescription",
        "RuleDescription",
    ):
        raise bad(f"{name!r} where a QueueDescription, TopicDescription, SubscriptionDescription or RuleDescription "
                  "was wanted.")  # fmt: skip
    return name.removesuffix("Description")


def queue(name: str, description: ET.Element) -> QueueSettings:
    given = {**_COMMON, **_RECEIVING, **_HISTORY, **_properties(description, _QUEUE)}
    return _checked(config.queue_from, {"Name": name, "Properties": given}, f"Queue {name}")


def topic(name: str, description: ET.Element) -> TopicSettings:
    """A topic without its subscriptions."""
    given = {**_COMMON, **_HISTORY, **_properties(description, _SENT)}
    return _checked(config.topic_from, {"Name": name, "Properties": given}, f"Topic {name}")


def subscription(name: str, description: ET.Element) -> SubscriptionSettings:
    """A subscription with the one rule it begins with."""
    given = {**_COMMON, **_RECEIVING, **_properties(description, _SUBSCRIPTION)}
    first = description.find(tag("DefaultRuleDescription"))
    rules = [config.dump_rule(DEFAULT_RULE)] if first is None else [_rule_dict(None, first)]
    return _checked(
        config.subscription_from, {"Name": name, "Properties": given, "Rules": rules}, f"Subscription {name}"
    )


def rule(name: str, description: ET.Element) -> RuleSettings:
    return _checked(config.rule_from, _rule_dict(name, description), f"Rule {name}")


def bad(text: str) -> BrokerError:
    """The service's answer to a request that cannot be."""
    return bad_field(f"SubCode=40000. {text}")


def _checked(read: Callable[[object, str], S], given: dict[str, Any], where: str) -> S:
    try:
        return read(given, where)
    except ConfigError as error:
        raise bad(str(error)) from None


def _properties(description: ET.Element, known: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The properties we act upon. What has no meaning on one machine (partitions, express, batched operations) and what
    clients merely send back (counts, times) is passed over; what would be missed is refused."""
    found: dict[str, Any] = {}
    for child in description:
        name, text = local(child.tag), (child.text or "").strip()
        if name == "AutoDeleteOnIdle" and text:
            _only_forever(text)
        elif name == "AuthorizationRules" and len(child):
            raise not_supported("SubCode=50100. An authorization rule of one entity")
        elif name in known and text:
            try:
                found[name] = known[name](text)
            except ValueError as error:
                raise bad(f"{name}: {error}.") from None
    return found


def _only_forever(text: str) -> None:
    try:
        duration = milliseconds(text)
    except ValueError as error:
        raise bad(f"AutoDeleteOnIdle: {error}.") from None
    if duration is not None:
        raise not_supported("SubCode=50100. AutoDeleteOnIdle: entities stay until they are deleted; anything else")


# ------------------------------------------------------------------------------------------------ rules
def _rule_dict(name: str | None, description: ET.Element) -> dict[str, Any]:
    """The rule in the form of the configuration file."""
    given: dict[str, Any] = {}
    asked = description.find(tag("Filter"))
    if asked is not None:
        given.update(_filter(asked))
    action = description.find(tag("Action"))
    if action is not None and local(action.get(TYPE, "")) == "SqlRuleAction":
        if _values(action, "Parameters"):
            raise not_supported("SubCode=50100. A parameter of a rule's action")
        given["Action"] = {"SqlExpression": _text(action, "SqlExpression")}
    return {
        "Name": name or _text(description, "Name") or DEFAULT_RULE.name,
        "Properties": {"FilterType": "True"} | given,
    }


def _filter(asked: ET.Element) -> dict[str, Any]:
    kind = local(asked.get(TYPE, ""))
    if kind in ("TrueFilter", "FalseFilter"):
        return {"FilterType": kind.removesuffix("Filter")}
    if kind == "SqlFilter":
        given = {"SqlExpression": _text(asked, "SqlExpression"), "Parameters": _values(asked, "Parameters")}
        return {"FilterType": "Sql", "SqlFilter": given}
    if kind == "CorrelationFilter":
        system = {each: _text(asked, each) for each in CORRELATION_FIELDS if asked.find(tag(each)) is not None}
        return {
            "FilterType": "Correlation",
            "CorrelationFilter": {**system, "Properties": _values(asked, "Properties")},
        }
    raise bad(f"{kind!r} where a SqlFilter, TrueFilter, FalseFilter or CorrelationFilter was wanted.")


def _text(parent: ET.Element, name: str) -> str:
    return parent.findtext(tag(name), "")


def _values(parent: ET.Element, name: str) -> dict[str, Value]:
    """The typed values of a list of `KeyValueOfstringanyType`."""
    pairs: Iterable[ET.Element] = parent.findall(f"{tag(name)}/{tag('KeyValueOfstringanyType')}")
    return {_text(pair, "Key"): _value(pair.find(tag("Value"))) for pair in pairs}


def _value(given: ET.Element | None) -> Value:
    if given is None:
        raise bad("A property without a Value.")
    kind, text = local(given.get(TYPE, "string")), given.text or ""
    try:
        if kind == "string":
            return text
        if kind == "boolean":
            return _flag(text.strip())
        if kind in ("int", "long", "short", "byte", "unsignedInt", "unsignedShort", "unsignedByte", "unsignedLong"):
            return int(text)
        if kind in ("double", "float", "decimal"):
            return float(text)
    except ValueError as error:
        raise bad(f"{text[:60]!r} is no {kind}: {error}.") from None
    raise not_supported(f"SubCode=50100. A value of the type {kind} in a rule")
