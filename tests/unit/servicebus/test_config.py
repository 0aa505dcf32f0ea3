"""The emulator's Config.json: read, refused with the place, written back the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.servicebus import config
from dropforge.servicebus.config import (
    ConfigError,
    CorrelationFilter,
    QueueSettings,
    RuleSettings,
    SqlFilter,
    Status,
    SubscriptionSettings,
    TopicSettings,
    TrueFilter,
    duration_text,
    milliseconds,
)

# As in https://github.com/Azure/azure-service-bus-emulator-installer, ServiceBus-Emulator/Config/Config.json.
EMULATORS = {
    "UserConfig": {
        "Namespaces": [
            {
                "Name": "sbemulatorns",
                "Queues": [
                    {
                        "Name": "queue.1",
                        "Properties": {
                            "DeadLetteringOnMessageExpiration": False,
                            "DefaultMessageTimeToLive": "PT1H",
                            "DuplicateDetectionHistoryTimeWindow": "PT20S",
                            "ForwardDeadLetteredMessagesTo": "",
                            "ForwardTo": "",
                            "LockDuration": "PT1M",
                            "MaxDeliveryCount": 3,
                            "RequiresDuplicateDetection": False,
                            "RequiresSession": False,
                        },
                    }
                ],
                "Topics": [
                    {
                        "Name": "topic.1",
                        "Properties": {
                            "DefaultMessageTimeToLive": "PT1H",
                            "DuplicateDetectionHistoryTimeWindow": "PT20S",
                            "RequiresDuplicateDetection": False,
                        },
                        "Subscriptions": [
                            {
                                "Name": "subscription.1",
                                "Properties": {"LockDuration": "PT1M", "MaxDeliveryCount": 3, "ForwardTo": "queue.1"},
                                "Rules": [
                                    {
                                        "Name": "app-prop-filter-1",
                                        "Properties": {
                                            "FilterType": "Correlation",
                                            "CorrelationFilter": {
                                                "ContentType": "application/text",
                                                "Properties": {"prop1": "value1"},
                                            },
                                        },
                                    },
                                    {
                                        "Name": "sql",
                                        "Properties": {
                                            "FilterType": "Sql",
                                            "SqlFilter": {"SqlExpression": "sys.MessageId = 'x'"},
                                            "Action": {"SqlExpression": "SET sys.To = 'Entity'"},
                                        },
                                    },
                                ],
                            },
                            {"Name": "subscription.2"},
                        ],
                    }
                ],
            }
        ],
        "Logging": {"Type": "File"},
    }
}


def one_queue(**properties: Any) -> str:
    queues = [{"Name": "q", "Properties": properties}]
    return json.dumps({"UserConfig": {"Namespaces": [{"Queues": queues}]}})


def test_the_emulators_file_is_read() -> None:
    found = config.parse(json.dumps(EMULATORS))
    assert found.name == "sbemulatorns"
    assert found.queues == (QueueSettings(name="queue.1"),)
    rules = (
        RuleSettings(
            "app-prop-filter-1", CorrelationFilter((("ContentType", "application/text"),), (("prop1", "value1"),))
        ),
        RuleSettings("sql", SqlFilter("sys.MessageId = 'x'"), "SET sys.To = 'Entity'"),
    )
    first = SubscriptionSettings(name="subscription.1", forward_to="queue.1", rules=rules)
    assert found.topics == (
        TopicSettings(name="topic.1", subscriptions=(first, SubscriptionSettings(name="subscription.2"))),
    )


def test_the_defaults_are_the_emulators() -> None:
    found = QueueSettings(name="q")
    assert (found.lock_ms, found.ttl_ms, found.max_delivery_count) == (60_000, 3_600_000, 3)
    assert (found.duplicate_window_ms, found.max_size_megabytes) == (20_000, 1_024)
    assert SubscriptionSettings(name="s").rules == (RuleSettings("$Default", TrueFilter()),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", r"the document: \[\] where an object was wanted"),
        ("{}", "0 namespaces"),
        ('{"UserConfig": {"Namespaces": [{}, {}]}}', "2 namespaces"),
        ('{"UserConfig": {"Namespaces": {}}}', r"UserConfig\.Namespaces: \{\} where a list was wanted"),
        ('{"UserConfig": {"Namespaces": [{"Queues": [{}]}]}}', r"Queues\[0\]\.Name: missing"),
        ('{"UserConfig": {"Namespaces": [{"Queues": [{"Name": "a"}, {"Name": "A"}]}]}}', "two of the name 'A'"),
        ('{"UserConfig": {"Namespaces": [{"Queues": [{"Name": "-a"}]}]}}', "cannot be the name of a queue"),
        (one_queue(LockDuraton="PT1M"), r"Queues\[0\]\.Properties\.LockDuraton: unknown property; choose among"),
        (one_queue(LockDuration="1 minute"), r"LockDuration: '1 minute' is no ISO 8601 duration"),
        (one_queue(LockDuration="PT6M"), r"Queues\[0\]: a lock duration of PT6M"),
        (one_queue(LockDuration="PT0S"), "lock duration of PT0S"),
        (one_queue(LockDuration=60), "LockDuration: 60 where text was wanted"),
        (one_queue(MaxDeliveryCount="3"), 'MaxDeliveryCount: "3" where a whole number was wanted'),
        (one_queue(MaxDeliveryCount=True), "MaxDeliveryCount: true where a whole number was wanted"),
        (one_queue(MaxDeliveryCount=0), "max delivery count of 0"),
        (one_queue(RequiresSession="yes"), 'RequiresSession: "yes" where true or false was wanted'),
        (one_queue(ForwardTo="nowhere"), "q forwards to 'nowhere', which is not declared"),
        (one_queue(ForwardTo="Q"), "q forwards to itself"),
        (one_queue(ForwardTo="q", RequiresSession=True), "requires sessions"),
        (one_queue(DefaultMessageTimeToLive="PT0S"), "time to live of 0 ms"),
        (one_queue(DuplicateDetectionHistoryTimeWindow="P8D"), "window of P8D"),
        (one_queue(Status="Off"), "unknown status 'Off'; choose among Active"),
        (one_queue(MaxSizeInMegabytes=0), "maximum size of less than 1"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_was_wanted(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.parse(text)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"FilterType": "Regex"}, r"Rules\[0\]\.Properties\.FilterType: unknown filter 'Regex'"),
        ({"FilterType": "Sql"}, r"SqlFilter\.SqlExpression: missing"),
        ({"FilterType": "Correlation", "CorrelationFilter": {}}, "at least one property"),
        ({"FilterType": "Correlation", "CorrelationFilter": {"Color": "red"}}, "Color: unknown property"),
        ({"FilterType": "Correlation", "CorrelationFilter": {"Properties": {"a": [1]}}}, r"Properties\.a: \[1\] where"),
    ],
)
def test_a_mistake_in_a_rule_is_told_with_its_place(rule: dict[str, Any], words: str) -> None:
    subscriptions = [{"Name": "s", "Rules": [{"Name": "r", "Properties": rule}]}]
    text = json.dumps({"UserConfig": {"Namespaces": [{"Topics": [{"Name": "t", "Subscriptions": subscriptions}]}]}})
    with pytest.raises(ConfigError, match=words) as found:
        config.parse(text)
    assert str(found.value).startswith("UserConfig.Namespaces[0].Topics[0].Subscriptions[0]")


def test_a_file_is_named_in_its_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.json cannot be read: No such file"):
        config.read(tmp_path / "nothing.json")
    (tmp_path / "c.json").write_text("{", encoding="utf-8-sig")
    with pytest.raises(ConfigError, match=r"c\.json: not JSON"):
        config.read(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("PT1M", 60_000),
        ("PT0.25S", 250),
        ("P1DT2H3M4.5S", 93_784_500),
        ("P14D", 1_209_600_000),
        ("P1Y2M", 36_720_000_000),
        ("P10675199DT2H48M5.4775807S", None),
    ],
)
def test_durations_are_read(text: str, found: int | None) -> None:
    assert milliseconds(text) == found


@pytest.mark.parametrize("text", ["", "P", "PT", "1M", "PT1", "P1H", "PT-1S", "PT1S ", "P1D2H"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no ISO 8601 duration"):
        milliseconds(text)


@given(st.one_of(st.none(), st.integers(1, 10**12)))
def test_a_duration_is_written_so_that_it_is_read_the_same(duration_ms: int | None) -> None:
    assert milliseconds(duration_text(duration_ms)) == duration_ms


VALUES = st.one_of(st.text(max_size=5), st.booleans(), st.integers(-10, 10), st.floats(-1, 1))
NAMES = st.from_regex(r"\A[a-z][a-z0-9]{0,8}\Z")
FILTERS = st.one_of(
    st.just(TrueFilter()),
    st.builds(
        SqlFilter,
        st.text(min_size=1, max_size=9),
        st.dictionaries(NAMES, VALUES, max_size=2).map(lambda d: tuple(d.items())),
    ),
    st.builds(
        CorrelationFilter,
        st.dictionaries(st.sampled_from(config.CORRELATION_FIELDS), st.text(max_size=3), max_size=2).map(
            lambda d: tuple((name, d[name]) for name in config.CORRELATION_FIELDS if name in d)
        ),
        st.dictionaries(NAMES, VALUES, min_size=1, max_size=2).map(lambda d: tuple(d.items())),
    ),
)
QUEUES = st.builds(
    QueueSettings,
    name=NAMES,
    lock_ms=st.integers(1, 300_000),
    ttl_ms=st.one_of(st.none(), st.integers(1, 10**10)),
    dead_letters_expired=st.booleans(),
    max_delivery_count=st.integers(1, 100),
    detects_duplicates=st.booleans(),
    duplicate_window_ms=st.integers(1, 10**8),
    forward_to=st.one_of(st.none(), NAMES),
    status=st.sampled_from(Status),
    metadata=st.text(max_size=5),
    kept=st.dictionaries(NAMES, st.text(max_size=3), max_size=2).map(lambda d: tuple(d.items())),
)
SUBSCRIPTIONS = st.builds(
    SubscriptionSettings,
    name=NAMES,
    requires_session=st.booleans(),
    dead_letters_filter_errors=st.booleans(),
    rules=st.lists(
        st.builds(RuleSettings, NAMES, FILTERS, st.one_of(st.none(), st.text(min_size=1, max_size=5))),
        max_size=3,
        unique_by=lambda rule: rule.name,
    ).map(tuple),
)


@given(QUEUES, SUBSCRIPTIONS, st.builds(TopicSettings, name=NAMES, detects_duplicates=st.booleans()))
def test_settings_are_written_so_that_they_are_read_the_same(
    queue: QueueSettings, subscription: SubscriptionSettings, topic: TopicSettings
) -> None:
    assert config.queue_from(json.loads(json.dumps(config.dump_queue(queue)))) == queue
    assert config.topic_from(json.loads(json.dumps(config.dump_topic(topic)))) == topic
    assert config.subscription_from(json.loads(json.dumps(config.dump_subscription(subscription)))) == subscription
