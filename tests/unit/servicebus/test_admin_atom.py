"""Descriptions of entities: what the admin port writes, it reads; what it cannot read or do, it refuses by name."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.servicebus.admin import atom, reading, writing
from dropforge.servicebus.core.ports import Counts
from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.settings import (
    CORRELATION_FIELDS,
    CorrelationFilter,
    FalseFilter,
    QueueSettings,
    RuleSettings,
    SqlFilter,
    Status,
    SubscriptionSettings,
    TopicSettings,
    TrueFilter,
)

BASE = "sb://localhost"
TIMES = (1_700_000_000_000, 1_700_000_001_000)

texts = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="￾￿"), min_size=1, max_size=20)
values = texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
pairs = st.dictionaries(texts, values, max_size=3).map(lambda each: tuple(each.items()))
milliseconds = st.integers(1, 86_400_000 * 400)
filters = st.one_of(
    st.just(TrueFilter()),
    st.just(FalseFilter()),
    st.builds(SqlFilter, texts, pairs),
    st.builds(
        CorrelationFilter,
        # In the order of the fields, as they are read.
        st.dictionaries(st.sampled_from(CORRELATION_FIELDS), texts, min_size=1).map(
            lambda each: tuple((name, each[name]) for name in CORRELATION_FIELDS if name in each)
        ),
        pairs,
    ),
)
names = st.text("abcXYZ019", min_size=1, max_size=10)
common = {
    "name": names,
    "ttl_ms": st.none() | milliseconds,
    "status": st.sampled_from(Status),
    "metadata": texts.map(str.strip) | st.just(""),
}
receiving = {
    "lock_ms": st.integers(1, 300_000),
    "dead_letters_expired": st.booleans(),
    "max_delivery_count": st.integers(1, 2000),
    "forward_to": st.none() | names,
    "forward_dead_letters_to": st.none() | names,
}
sending = {
    "detects_duplicates": st.booleans(),
    "duplicate_window_ms": st.integers(1, 86_400_000 * 7),
    "max_size_megabytes": st.integers(1, 5120),
    "max_message_kilobytes": st.integers(1, 1024),
}
queues = st.builds(QueueSettings, **common, **receiving, **sending)
topics = st.builds(TopicSettings, **common, **sending)
subscriptions = st.builds(SubscriptionSettings, **common, **receiving, dead_letters_filter_errors=st.booleans())
rules = st.builds(RuleSettings, names, filters, st.none() | texts.filter(str.strip))


def sent(description: str) -> ET.Element:
    """The description as it comes out of a request."""
    return atom.read_content(
        f'<entry xmlns="{atom.ATOM}"><content type="application/xml">{description}</content></entry>'.encode()
    )


@given(queues)
def test_a_queue_that_was_written_is_read_back(settings: QueueSettings) -> None:
    written = writing.queue(settings, Counts(), TIMES, BASE)
    assert reading.queue(settings.name, sent(written)) == settings


@given(topics)
def test_a_topic_that_was_written_is_read_back(settings: TopicSettings) -> None:
    assert reading.topic(settings.name, sent(writing.topic(settings, Counts(), TIMES))) == settings


@given(subscriptions)
def test_a_subscription_that_was_written_is_read_back(settings: SubscriptionSettings) -> None:
    written = writing.subscription(settings, Counts(), TIMES, BASE)
    assert reading.subscription(settings.name, sent(written)) == settings


@given(rules)
def test_a_rule_that_was_written_is_read_back(settings: RuleSettings) -> None:
    assert reading.rule(settings.name, sent(writing.rule(settings, 0))) == settings


def test_what_is_not_said_has_the_defaults_of_the_cloud_and_not_those_of_the_file() -> None:
    settings = reading.queue("q", sent(f'<QueueDescription xmlns="{atom.SERVICE}"/>'))
    assert (settings.ttl_ms, settings.max_delivery_count, settings.duplicate_window_ms) == (None, 10, 600_000)


def test_a_subscription_begins_with_the_rule_it_was_sent_with() -> None:
    rule = writing.rule(RuleSettings("mine", SqlFilter("a = 1")), 0).replace(
        "RuleDescription", "DefaultRuleDescription"
    )
    settings = reading.subscription("s", sent(f'<SubscriptionDescription xmlns="{atom.SERVICE}">{rule}'
                                              "</SubscriptionDescription>"))  # fmt: skip
    assert settings.rules == (RuleSettings("mine", SqlFilter("a = 1")),)


def test_counts_are_written_under_a_prefix_that_their_element_declares() -> None:
    counts = Counts(active=1, scheduled=3, dead_letter=4, transfer_dead_letter=5, size_bytes=9)
    found = ET.fromstring(writing.queue(QueueSettings(name="q"), counts, TIMES, BASE))
    details = found.find(atom.tag("CountDetails"))
    assert details is not None
    told = {atom.local(each.tag): each.text for each in details}
    assert told["ActiveMessageCount"] == "1" and told["TransferDeadLetterMessageCount"] == "5"
    assert (found.findtext(atom.tag("MessageCount")), found.findtext(atom.tag("SizeInBytes"))) == ("13", "9")
    assert "xmlns:d2p1=" in writing.queue(QueueSettings(name="q"), counts, TIMES, BASE)


def test_text_that_xml_cannot_carry_does_not_make_an_answer_unreadable() -> None:
    assert ET.fromstring(atom.error(400, "a\x00b<&>\x1f￿\ud800")).findtext("Detail") == "a�b<&>���"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b"<entry>",
        b"<entry/>",
        f'<entry xmlns="{atom.ATOM}"/>'.encode(),
        f'<entry xmlns="{atom.ATOM}"><content/></entry>'.encode(),
        f'<entry xmlns="{atom.ATOM}"><content><a/><b/></content></entry>'.encode(),
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"),
        f'<entry xmlns="{atom.ATOM}"><content>{"<a>" * 30}{"</a>" * 30}</content></entry>'.encode(),
    ],
)
def test_a_body_that_is_no_entry_is_refused(body: bytes) -> None:
    with pytest.raises(BrokerError) as caught:
        atom.read_content(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("inside", "status", "named"),
    [
        ("<LockDuration>soon</LockDuration>", 400, "LockDuration"),
        ("<LockDuration>PT10M</LockDuration>", 400, "lock duration"),
        ("<MaxDeliveryCount>many</MaxDeliveryCount>", 400, "MaxDeliveryCount"),
        ("<MaxDeliveryCount>0</MaxDeliveryCount>", 400, "delivery count"),
        ("<RequiresSession>perhaps</RequiresSession>", 400, "RequiresSession"),
        ("<Status>Odd</Status>", 400, "Status"),
        ("<AutoDeleteOnIdle>PT5M</AutoDeleteOnIdle>", 501, "AutoDeleteOnIdle"),
        ("<AutoDeleteOnIdle>whenever</AutoDeleteOnIdle>", 400, "AutoDeleteOnIdle"),
        ("<AuthorizationRules><AuthorizationRule/></AuthorizationRules>", 501, "authorization rule"),
    ],
)
def test_a_property_that_cannot_be_is_refused_by_name(inside: str, status: int, named: str) -> None:
    description = sent(f'<QueueDescription xmlns="{atom.SERVICE}">{inside}</QueueDescription>')
    with pytest.raises(BrokerError, match=named) as caught:
        reading.queue("q", description)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("inside", "status", "named"),
    [
        ('<Filter i:type="OddFilter"/>', 400, "OddFilter"),
        ('<Filter i:type="CorrelationFilter"/>', 400, "correlation filter"),
        (
            '<Filter i:type="CorrelationFilter"><Properties><KeyValueOfstringanyType><Key>a</Key>'
            '<Value i:type="d:dateTime">2024-01-01T00:00:00Z</Value></KeyValueOfstringanyType></Properties></Filter>',
            501,
            "dateTime",
        ),
        (
            '<Filter i:type="SqlFilter"><SqlExpression>1=1</SqlExpression><Parameters><KeyValueOfstringanyType>'
            '<Key>@a</Key><Value i:type="d:int">x</Value></KeyValueOfstringanyType></Parameters></Filter>',
            400,
            "int",
        ),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(inside: str, status: int, named: str) -> None:
    description = sent(f'<RuleDescription xmlns="{atom.SERVICE}" xmlns:i="{atom.INSTANCE}">{inside}</RuleDescription>')
    with pytest.raises(BrokerError, match=named) as caught:
        reading.rule("r", description)
    assert caught.value.status == status
