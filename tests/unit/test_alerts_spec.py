"""The keys of pipeline.yaml that say what an alert does, and when a pipeline must stop."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dropforge.domain.alerts import AlertAction, Rule, Until
from dropforge.spec.load import parse, to_alert_rules
from tests.unit.test_spec import FULL, LEAST, said, with_section


def rules(*written: str) -> str:
    return LEAST + "alerts:\n" + "".join(f"  - {each}\n" for each in written)


def test_rules_become_what_the_steps_match_with() -> None:
    assert to_alert_rules(parse(FULL)) == (
        Rule("flights-*", AlertAction.ROLLBACK, ("Sev0", "Sev1"), {"endpoint": "late-flights"}),
        Rule("storage-*", AlertAction.PAUSE, until=Until.RESOLVED),
        Rule("*", AlertAction.NOTIFY),
    )
    assert to_alert_rules(parse(LEAST)) == ()


def test_a_pause_ends_by_a_person_unless_it_says_otherwise() -> None:
    (rule,) = to_alert_rules(parse(rules('{rule: "*", action: pause}')))
    assert rule.until is Until.RESUMED


def test_a_pipeline_may_rest_and_stops_after_three_failures() -> None:
    budget = parse(LEAST).budget
    assert (budget.cool_down, budget.max_failures) == (None, 3)
    assert parse(FULL).budget.cool_down == timedelta(minutes=30)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{action: pause}", "alerts[0].rule: is missing; wanted the name of the alert rule"),
        ("{rule: x}", "alerts[0].action: is missing; wanted train on the newest data"),
        (
            "{rule: x, action: retain}",
            "found 'retain'; allowed: retrain, rollback, pause, notify; did you mean 'retrain'?",
        ),
        ("{rule: '', action: pause}", "alerts[0].rule: found ''; wanted text that is not empty"),
        ("{rule: 5, action: pause}", "found 5; wanted text (YAML reads 5 as a number"),
        ("{rule: x, action: pause, severity: Sev1}", "alerts[0].severity: found 'Sev1'; wanted a list, as in [a, b]"),
        ("{rule: x, action: pause, severity: [sev1]}", "allowed: Sev0, Sev1, Sev2, Sev3, Sev4; did you mean 'Sev1'?"),
        ("{rule: x, action: pause, severity: [Sev1, Sev1]}", "alerts[0].severity[1]: found 'Sev1' twice"),
        ("{rule: x, action: pause, until: fixed}", "found 'fixed'; allowed: resolved, resumed"),
        ("{rule: x, action: retrain, until: resolved}", "alerts[0].until: found it for retrain; only a pause ends"),
        (
            "{rule: x, action: pause, dimensions: {zone: 1}}",
            "alerts[0].dimensions.zone: found 1; wanted text (YAML reads 1",
        ),
        ("{rule: x, action: pause, dimensions: [zone]}", "found a list; wanted a mapping of names to values"),
        ("{rule: x, action: pause, sevrity: [Sev1]}", "alerts[0].sevrity: unknown key; did you mean 'severity'?"),
        ("pause", "alerts[0]: found 'pause'; wanted a section. Keys here: rule, severity, dimensions, action, until"),
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused_by_key(rule: str, message: str) -> None:
    assert message in said(rules(rule))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{rule: "*", action: notify}', "{rule: x, action: retrain, severity: [Sev0], dimensions: {a: b}}"),
        ("{rule: x, action: notify, severity: [Sev0, Sev1]}", "{rule: x, action: retrain, severity: [Sev1]}"),
        ("{rule: x, action: notify, dimensions: {a: b}}", "{rule: x, action: retrain, dimensions: {a: b, c: d}}"),
    ],
)
def test_a_rule_that_could_never_act_is_refused_with_the_one_before_it(first: str, second: str) -> None:
    assert ":6: alerts[1]: never acts: alerts[0], on line 5, fits every alert that it fits" in said(
        rules(first, second)
    )
    assert len(parse(rules(second, first)).alerts) == 2


def test_two_rules_for_the_same_alerts_are_refused() -> None:
    message = said(rules("{rule: x, action: notify}", "{rule: X, action: retrain}"))
    assert "alerts[1]: never acts" in message and "Put the narrower rule first, or remove it" in message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{rule: x*, action: notify}", "{rule: y, action: retrain}"),
        ("{rule: x, action: notify, severity: [Sev0]}", "{rule: x, action: retrain}"),
        ("{rule: x, action: notify, severity: [Sev0]}", "{rule: x, action: retrain, severity: [Sev0, Sev1]}"),
        ("{rule: x, action: notify, dimensions: {a: b}}", "{rule: x, action: retrain, dimensions: {a: c}}"),
        ("{rule: x, action: notify, dimensions: {a: b}}", "{rule: x, action: retrain}"),
    ],
)
def test_rules_that_leave_something_to_each_other_are_taken(first: str, second: str) -> None:
    assert len(parse(rules(first, second)).alerts) == 2


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("budget: {cool_down: 0s}", "budget.cool_down: found '0s'; wanted at least 1s and at most 366d"),
        ("budget: {cool_down: 5}", "budget.cool_down: found 5; wanted a whole number with a unit"),
        ("budget: {max_failures: 0}", "budget.max_failures: found 0; wanted at least 1"),
        ("alerts: {rule: x}", "alerts: found a mapping; wanted a list"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(section: str, message: str) -> None:
    assert message in said(with_section(section))
