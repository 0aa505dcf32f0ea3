"""The common alert schema, with everything that Azure does with it, and the rules that match it."""

from __future__ import annotations

import copy
import json
import random
from datetime import UTC, datetime
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.alerts import (
    AlertAction,
    AlertRecord,
    Condition,
    Dimension,
    ResponseState,
    Rule,
    Signal,
    first_match,
    may_become,
    parse,
    schema,
)
from dropforge.domain.causes import Cause
from dropforge.domain.errors import BadInput
from dropforge.wire import from_builtins, to_builtins, to_json
from tests.unit.alert_bodies import PREFIX, activity, log_v1, log_v2, metric, notification, sample

KINDS: dict[str, tuple[dict[str, Any], Signal, dict[str, str]]] = {
    "metric": (notification(), Signal.METRIC, {"endpoint": "demo"}),
    "metric, static, Microsoft's": (
        notification(context=sample("alert_context.metric_static")["alertContext"]),
        Signal.METRIC,
        {"ResourceId": "3efad9dc-3d50-4eac-9c87-8b3fd6f97e4e"},
    ),
    "metric, dynamic, Microsoft's": (
        notification(context=sample("alert_context.metric_dynamic")["alertContext"]),
        Signal.METRIC,
        {},
    ),
    "log, Log Analytics": (
        notification(
            context=log_v1("Log Analytics", {"Computer": "c1"}), signalType="Log", monitoringService="Log Analytics"
        ),
        Signal.LOG,
        {"Computer": "c1"},
    ),
    "log, Application Insights": (
        notification(
            context=log_v1("Application Insights", {"IP": "1.1.1.1"}),
            signalType="Log",
            monitoringService="Application Insights",
        ),
        Signal.LOG,
        {"IP": "1.1.1.1"},
    ),
    "log, V2": (
        notification(context=log_v2({"endpoint": "demo"}), signalType="Log", monitoringService="Log Alerts V2"),
        Signal.LOG,
        {"endpoint": "demo"},
    ),
    "activity log": (
        notification(context=activity(), signalType="Activity Log", monitoringService="Activity Log - Administrative"),
        Signal.ACTIVITY_LOG,
        {},
    ),
    "service health": (
        notification(
            context=activity(2, title="Outage", service="Storage", impactedServices=[{"ServiceName": "Storage"}]),
            signalType="ActivityLog",
            monitoringService="ServiceHealth",
            configurationItems=None,
        ),
        Signal.ACTIVITY_LOG,
        {},
    ),
    "budget": (
        notification(
            context={"AlertCategory": "budgets", "AlertData": {"BudgetName": "b"}},
            alertRule=None,
            severity=None,
            signalType=None,
            alertTargetIDs=None,
        ),
        Signal.OTHER,
        {},
    ),
    "Prometheus": (
        notification(context={"expression": "up > 0", "labels": {"cluster": "c1"}}),
        Signal.METRIC,
        {"cluster": "c1"},
    ),
}


# ------------------------------------------------------------------------------------------------ reading
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", ["Fired", "Resolved"])
def test_every_kind_of_alert_is_read_in_both_conditions(kind: str, condition: str) -> None:
    body, signal, dimensions = copy.deepcopy(KINDS[kind])
    body["data"]["essentials"]["monitorCondition"] = condition
    alert = parse(body)
    assert (alert.condition.value, alert.signal) == (condition, signal)
    assert {each.name: each.value for each in alert.dimensions} == dimensions
    assert alert.fired_at == datetime(2026, 1, 5, 9, 0, 0, 123456, tzinfo=UTC)
    assert alert.alert_id == PREFIX + "a1"


def test_the_official_fired_sample_is_read_as_it_says() -> None:
    alert = parse(sample("common_alert.metric.fired.test_action"))
    assert (alert.rule, alert.severity, alert.condition) == ("test-metricAlertRule", "Sev3", Condition.FIRED)
    assert alert.test
    assert alert.properties == {"customKey1": "value1", "customKey2": "value2"}
    (measured,) = alert.measured
    assert (measured.what, measured.threshold, measured.value) == ("Transactions", 0.3, 78.09)
    assert alert.resolved_at is None


def test_the_official_resolved_sample_is_read_as_it_says() -> None:
    alert = parse(sample("common_alert.metric.resolved"))
    assert (alert.rule, alert.condition, alert.test) == ("WCUS-R2-Gen2", Condition.RESOLVED, False)
    assert alert.fired_at == datetime(2019, 3, 22, 13, 58, 24, 371321, tzinfo=UTC)
    assert alert.resolved_at == datetime(2019, 3, 22, 14, 3, 16, 224631, tzinfo=UTC)
    assert alert.dimensions == (Dimension("ResourceId", "3efad9dc-3d50-4eac-9c87-8b3fd6f97e4e"),)


def test_fired_and_resolved_of_one_alert_have_one_id_in_whatever_case() -> None:
    fired = parse(notification())
    resolved = parse(notification("Resolved", alertId=(PREFIX + "a1").upper()))
    other = parse(notification(id_="a2"))
    assert fired.id == resolved.id != other.id


def test_a_resolved_time_counts_only_for_an_alert_that_is_resolved() -> None:
    assert parse(notification(resolvedDateTime="2026-01-05T09:10:00Z")).resolved_at is None
    assert parse(notification("Resolved", resolvedDateTime=None)).resolved_at is None


@pytest.mark.parametrize(
    ("threshold", "value", "read"),
    [
        ("0.3", 78.09, (0.3, 78.09)),
        (10000, "7", (10000.0, 7.0)),
        ("$50.00", None, (None, None)),
        ("NaN", True, (None, None)),
        ("1e999", 10**400, (None, None)),
        ([], {}, (None, None)),
    ],
)
def test_numbers_are_read_from_text_and_from_numbers(
    threshold: object, value: object, read: tuple[float | None, float | None]
) -> None:
    (measured,) = parse(notification(context=metric({}, threshold, value))).measured
    assert (measured.threshold, measured.value) == read


@pytest.mark.parametrize(
    ("properties", "read"),
    [(None, {}), ({}, {}), ({"a": "b", "n": 1, "t": True, "o": {}}, {"a": "b", "n": "1", "t": "true"}), ([1], {})],
)
def test_custom_properties_may_be_absent_null_or_anything(properties: object, read: dict[str, str]) -> None:
    body = notification()
    assert parse(body).properties == {}
    body["data"]["customProperties"] = properties
    assert parse(body).properties == read


def test_properties_of_the_context_stand_in_for_custom_ones() -> None:
    assert parse(notification(context=log_v2({}))).properties == {"team": "ops"}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-01-05T09:00:00.9584103Z", datetime(2026, 1, 5, 9, 0, 0, 958410, tzinfo=UTC)),
        ("2026-01-05T10:00:00+01:00", datetime(2026, 1, 5, 9, 0, tzinfo=UTC)),
        ("2026-01-05T09:00:00", datetime(2026, 1, 5, 9, 0, tzinfo=UTC)),
        ("0001-01-01T00:00:00+14:00", None),
        ("yesterday", None),
        (1736067600, None),
    ],
)
def test_times_are_read_with_seven_digits_and_without_a_zone(written: object, read: datetime | None) -> None:
    assert parse(notification(firedDateTime=written)).fired_at == read


@pytest.mark.parametrize("key", [str.lower, str.upper, str.title])
def test_keys_are_found_in_any_case(key: Any) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key(name): turned(each) for name, each in value.items()}
        return [turned(each) for each in value] if isinstance(value, list) else value

    assert parse(turned(notification())) == parse(notification())


@pytest.mark.parametrize(
    ("written", "read"), [("Sev0", "Sev0"), ("sev4", "Sev4"), (3, "Sev3"), ("Sev9", None), (None, None), ([], None)]
)
def test_severities_are_read_however_they_are_written(written: object, read: str | None) -> None:
    assert parse(notification(severity=written)).severity == read


def test_the_data_alone_is_an_alert_too() -> None:
    body = notification()
    assert parse(body["data"]) == parse(body)


@pytest.mark.parametrize(
    ("rule", "target", "test"),
    [
        ("test-logAlertRule-v2", "/subscriptions/s/resourcegroups/test-RG/providers/x/y/z", True),
        ("test-mine", "/subscriptions/s/resourcegroups/mine/providers/x/y/z", False),
        ("mine", "/subscriptions/s/resourcegroups/test-RG/providers/x/y/z", False),
    ],
)
def test_what_the_test_of_an_action_group_sends_is_recognised(rule: str, target: str, test: bool) -> None:
    assert parse(notification(alertRule=rule, alertTargetIDs=[target])).test is test


# ------------------------------------------------------------------------------------------------ what is no alert
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (None, "the alert is nothing; wanted an object in the common alert schema"),
        ([], "the alert is a list"),
        ("x", "the alert is text"),
        (5, "the alert is a number"),
        ({}, "the alert has no data.essentials; .* found nothing"),
        ({"data": []}, "no data.essentials; .* found data"),
        (
            {"schemaId": "AzureMonitorMetricAlert", "data": {}},
            "schemaId is 'AzureMonitorMetricAlert'; .* turn the common",
        ),
        ({"schemaId": None, "data": {"essentials": {}}}, "schemaId is 'None'"),
        ({"data": {"essentials": {}}}, "alertId is missing; wanted the alert's resource id"),
        ({"data": {"essentials": {"alertId": 5}}}, "alertId is a number"),
        ({"data": {"essentials": {"alertId": ""}}}, "alertId is text of 0 characters"),
        ({"data": {"essentials": {"alertId": "x" * 2001}}}, "text of 2001 characters; .* at most 2000"),
        ({"data": {"essentials": {"alertId": "x"}}}, "monitorCondition is missing; wanted Fired or Resolved"),
        ({"data": {"essentials": {"alertId": "x", "monitorCondition": "Open"}}}, "monitorCondition is 'Open'"),
    ],
)
def test_what_is_no_alert_is_refused_with_what_was_wanted(body: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse(body)


@pytest.mark.parametrize("body", [body for body, _, _ in KINDS.values()])
def test_what_is_read_fits_the_published_schema(body: dict[str, Any]) -> None:
    assert jsonschema_rs.Draft202012Validator(schema()).is_valid(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


@given(st.sampled_from(sorted(KINDS)), JSON, st.integers(0, 10**6))
def test_anything_put_anywhere_is_read_or_refused(kind: str, anything: Any, seed: int) -> None:
    body = copy.deepcopy(KINDS[kind][0])
    *above, last = random.Random(seed).choice(_places(body)[1:])
    spot: Any = body
    for key in above:
        spot = spot[key]
    spot[last] = anything
    try:
        alert = parse(body)
    except BadInput:
        return
    # What was read can be kept, and is what it was when it is read back.
    kept = AlertRecord(alert, datetime(2026, 1, 1, tzinfo=UTC), "http", Cause(alert.alert_id, "alert"), fired=True)
    assert from_builtins(AlertRecord, json.loads(to_json(to_builtins(kept)))) == kept


def test_the_largest_alert_fits_a_ledger_row() -> None:
    loud = "\U0001f514" * 5000
    many = [{"name": f"{n}{loud}", "value": loud} for n in range(500)]
    context = {"condition": {"allOf": [{"dimensions": many, "searchQuery": loud} for _ in range(500)]}}
    body = notification(context=context, description=loud, alertTargetIDs=[loud] * 500, alertId=loud[:2000])
    body["data"]["customProperties"] = {f"{n}{loud}": loud for n in range(500)}
    assert len(to_json(to_builtins(parse(body)))) < 200 * 1024


def test_half_a_surrogate_and_control_characters_do_no_harm() -> None:
    alert = parse(notification(id_="\ud800", alertRule="a\x00\x1b[2Jb\r\nc", description="\udfff"))
    assert alert.rule == "a  [2Jb  c"
    assert to_json(to_builtins(alert))


# ------------------------------------------------------------------------------------------------ rules
@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        (Rule("demo-errors", AlertAction.NOTIFY), True),
        (Rule("DEMO-*", AlertAction.NOTIFY), True),
        (Rule("demo-?rrors", AlertAction.NOTIFY), True),
        (Rule("errors", AlertAction.NOTIFY), False),
        (Rule("*", AlertAction.NOTIFY, ("Sev0", "Sev1")), True),
        (Rule("*", AlertAction.NOTIFY, ("Sev2",)), False),
        (Rule("*", AlertAction.NOTIFY, dimensions={"Endpoint": "DEMO"}), True),
        (Rule("*", AlertAction.NOTIFY, dimensions={"endpoint": "d*", "region": "*"}), True),
        (Rule("*", AlertAction.NOTIFY, dimensions={"endpoint": "demo", "zone": "*"}), False),
        (Rule("*", AlertAction.NOTIFY, dimensions={"endpoint": "other"}), False),
    ],
)
def test_a_rule_fits_by_name_severity_and_every_dimension(rule: Rule, fits: bool) -> None:
    alert = parse(notification(context=metric({"endpoint": "demo", "region": "westeurope"})))
    assert rule.matches(alert) is fits


def test_the_first_rule_that_fits_acts() -> None:
    rules = [Rule("x*", AlertAction.PAUSE), Rule("demo*", AlertAction.RETRAIN), Rule("*", AlertAction.NOTIFY)]
    assert first_match(rules, parse(notification())) == 1
    assert first_match(rules[:1], parse(notification())) is None


def test_a_rule_of_hostile_stars_is_decided_at_once() -> None:
    alert = parse(notification(alertRule="a" * 300))
    assert not Rule("*a" * 200 + "b", AlertAction.NOTIFY).matches(alert)


def test_an_alert_without_severity_fits_no_rule_that_names_one() -> None:
    alert = parse(notification(severity=None, alertRule=None))
    assert not Rule("*", AlertAction.NOTIFY, ("Sev0", "Sev1", "Sev2", "Sev3", "Sev4")).matches(alert)
    assert Rule("*", AlertAction.NOTIFY).matches(alert)


def test_what_came_of_an_alert_is_not_undone() -> None:
    steps = [(a, b) for a in ResponseState for b in ResponseState if may_become(a, b)]
    assert steps == [
        (ResponseState.PLANNED, ResponseState.DONE),
        (ResponseState.PLANNED, ResponseState.REFUSED),
        (ResponseState.PLANNED, ResponseState.SKIPPED),
        (ResponseState.DONE, ResponseState.ENDED),
    ]


@given(
    st.text(min_size=1, max_size=20),
    st.sampled_from(Condition),
    st.dictionaries(st.sampled_from(["alertRule", "severity", "x"]), JSON),
    JSON,
)
def test_whatever_fits_the_published_schema_is_read(
    id_: str, condition: Condition, more: dict[str, Any], context: Any
) -> None:
    essentials = {**more, "alertId": id_, "monitorCondition": condition.value}
    assert parse({"data": {"essentials": essentials, "alertContext": context}}).condition is condition
