"""SQL filters and actions, and correlation filters: grammar, three-valued logic, C# arithmetic, what is refused."""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.servicebus.amqp.values import Int, Symbol, Timestamp
from dropforge.servicebus.core.actions import parse_action
from dropforge.servicebus.core.operators import FilterError, like
from dropforge.servicebus.core.rules import Rule
from dropforge.servicebus.core.sql import MAX_LENGTH, parse_predicate
from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.settings import CorrelationFilter, RuleSettings, SqlFilter
from tests.unit.servicebus.core_world import message

ORDER = message(
    subject="order-7",
    message_id="m1",
    correlation_id=uuid.UUID(int=5),
    session_id="s",
    app={
        "color": "red",
        "Qty": 7,
        "small": Int(7),
        "price": 2.5,
        "express": True,
        "empty": None,
        "odd name": "x",
        "it's": "y",
        "at": Timestamp(1_000),
        "code": Symbol("abc"),
        "data": b"abc",
        "percent": "50% off_now",
    },
)


def value(expression: str, **parameters: Any) -> bool | None:
    return parse_predicate(expression, parameters)(ORDER)


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("1=1", True),
        ("1 = 0", False),
        ("color = 'red'", True),
        ("COLOR = 'red' AND qty > 3", True),
        ("color = 'RED'", False),
        ("user.color <> 'blue'", True),
        ("color != 'red'", False),
        ("sys.Label = 'order-7'", True),
        ("sys.label LIKE 'order%'", True),
        ("sys.SessionId = 's' AND sys.MessageId = 'm1'", True),
        ("sys.CorrelationId = '00000000-0000-0000-0000-000000000005'", True),
        ("[odd name] = 'x'", True),
        ("\"odd name\" = 'x'", True),
        ("[it's] = 'y'", True),
        ("color IN ('blue', 'red')", True),
        ("color NOT IN ('blue', 'red')", False),
        ("qty IN (1, 3+4)", True),
        ("express", True),
        ("express = TRUE", True),
        ("NOT express", False),
        ("qty = 7.0 AND small = qty", True),
        ("qty * 2 - 4 = 10", True),
        ("qty / 2 = 3", True),
        ("-qty / 2 = -3", True),
        ("-qty % 4 = -3", True),
        ("price / 2 = 1.25", True),
        ("+price = 25E-1", True),
        ("2 + 3 * 4 = 14", True),
        ("(2 + 3) * 4 = 20", True),
        ("color + '-' + qty = 'red-7'", True),
        ("1 < 2 OR 1/0 = 1", True),
        ("'it''s' = 'it''s'", True),
        ("'a' < 'b'", True),
        ("code = 'abc'", True),
        ("newid() <> newid()", True),
        ("property('color') = 'red' AND p('QTY') = 7", True),
        ("EXISTS(color) AND EXISTS (sys.Label)", True),
        ("EXISTS(nothing) OR EXISTS(sys.To)", False),
        ("EXISTS(empty) AND empty IS NULL", True),
        ("nothing IS NULL AND sys.To IS NULL", True),
        ("color IS NOT NULL", True),
        ("percent LIKE '50\\% off\\_now' ESCAPE '\\'", True),
        ("percent LIKE '50\\%' ESCAPE '\\'", False),
        ("percent LIKE '__\\%%' ESCAPE '\\'", True),
        ("color NOT LIKE 'b%'", True),
        ("sys.SequenceNumber = 0 AND sys.Size > 10", True),
        ("NULL = NULL", None),
        ("color = 'red' and not (qty < 3 or express = false)", True),
    ],
)
def test_an_expression_has_the_value_that_the_documentation_gives_it(expression: str, wanted: bool | None) -> None:
    assert value(expression) is wanted


@pytest.mark.parametrize(
    "unknown",
    [
        "nothing = 1",
        "nothing <> 1",
        "nothing > 1",
        "nothing + 1 = 2",
        "-nothing = 1",
        "nothing LIKE 'a'",
        "nothing NOT LIKE 'a'",
        "nothing IN (1)",
        "nothing NOT IN (1)",
        "color > 1",
        "qty < 'x'",
        "at < 5",
        "1 IN (2, NULL)",
        "property(nothing) = 1",
    ],
)
def test_an_unknown_value_makes_the_outcome_unknown_whichever_way_it_is_asked(unknown: str) -> None:
    assert value(unknown) is None
    assert value(f"NOT ({unknown})") is None


THREE = {"T": "1=1", "F": "1=0", "U": "nothing=1"}


@pytest.mark.parametrize("left", "TFU")
@pytest.mark.parametrize("right", "TFU")
def test_logic_has_the_documented_tables(left: str, right: str) -> None:
    both = "F" if "F" in left + right else "U" if "U" in left + right else "T"
    either = "T" if "T" in left + right else "U" if "U" in left + right else "F"
    meaning = {"T": True, "F": False, "U": None}
    assert value(f"{THREE[left]} AND {THREE[right]}") is meaning[both]
    assert value(f"{THREE[left]} OR {THREE[right]}") is meaning[either]


def test_values_of_different_kinds_are_not_equal_and_no_error() -> None:
    assert value("express = 1") is False
    assert value("color <> 7") is True
    assert value("data = 'abc'") is False


def test_parameters_stand_for_their_values() -> None:
    assert value("color = @c AND qty >= @n", **{"@c": "red", "n": 7}) is True
    with pytest.raises(BrokerError, match="unknown parameter '@x'"):
        value("color = @x")


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "color =",
        "= 1",
        "color = 'red",
        "(1=1",
        "1=1)",
        "color LIKE",
        "sys.Nothing = 1",
        "a b",
        "1=1 AND",
        "color NOT = 1",
        "EXISTS(1)",
        "color IS 1",
        "x IN ()",
        "f(1) = 1",
        "AND",
        "a BETWEEN 1 AND 2",
        "99999999999999999999 = 1",
        "a ; b",
        "(" * 40 + "1=1" + ")" * 40,
        "NOT " * 40 + "1=1",
        "-" * 40 + "1=1",
        "a" * (MAX_LENGTH + 1),
        "a = #",
    ],
)
def test_a_text_that_is_no_filter_is_refused_with_the_place(wrong: str) -> None:
    with pytest.raises(BrokerError, match=r"SQL expression|system property"):
        value(wrong)


@pytest.mark.parametrize(
    "failing",
    [
        "1 / 0 = 1",
        "1 % 0 = 1",
        "color * 2 = 1",
        "-color = 1",
        "9223372036854775807 + 1 = 0",
        "color LIKE 1",
        "color LIKE 'a' ESCAPE 'xy'",
        "express + 1 = 2",
    ],
)
def test_what_cannot_be_computed_fails_when_it_is_evaluated(failing: str) -> None:
    predicate = parse_predicate(failing, {})
    with pytest.raises(FilterError):
        predicate(ORDER)


@given(st.text("ab%_", max_size=8), st.text("abc", max_size=8))
def test_like_agrees_with_the_plain_recursion(pattern: str, text: str) -> None:
    def model(wanted: str, rest: str) -> bool:
        if not wanted:
            return not rest
        if wanted[0] == "%":
            return any(model(wanted[1:], rest[at:]) for at in range(len(rest) + 1))
        return bool(rest) and wanted[0] in ("_", rest[0]) and model(wanted[1:], rest[1:])

    assert like(text, pattern, "") is model(pattern, text)


def test_a_hostile_pattern_takes_no_exponential_time() -> None:
    started = time.monotonic()
    assert like("a" * 20_000, "%a" * 200 + "b", "") is False
    assert time.monotonic() - started < 5


@given(st.text(max_size=40))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        predicate = parse_predicate(text, {})
    except BrokerError:
        return
    with contextlib.suppress(FilterError):
        predicate(ORDER)


def test_a_correlation_filter_asks_for_all_its_values() -> None:
    wanted = CorrelationFilter((("Label", "order-7"), ("SessionId", "s")), (("color", "red"), ("qty", 7)))
    assert Rule(RuleSettings("r", wanted)).matches(ORDER)
    assert not Rule(RuleSettings("r", CorrelationFilter((("Label", "order"),)))).matches(ORDER)
    assert not Rule(RuleSettings("r", CorrelationFilter((), (("qty", "7"),)))).matches(ORDER)
    assert not Rule(RuleSettings("r", CorrelationFilter((), (("express", 1),)))).matches(ORDER)
    assert not Rule(RuleSettings("r", CorrelationFilter((("To", ""),)))).matches(ORDER)
    text = str(uuid.UUID(int=5))
    assert Rule(RuleSettings("r", CorrelationFilter((("CorrelationId", text),)))).matches(ORDER)


def test_an_action_sets_and_removes_and_keeps_types() -> None:
    changed = ORDER.copy()
    parse_action(
        "SET Small = small / 2; SET [new one] = color + '!', SET sys.Label = color REMOVE price; REMOVE nothing;"
        "SET sys.ReplyTo = qty; SET color = 5"
    )(changed)
    assert changed.application_property("small") == 3
    assert isinstance(changed.application_property("small"), Int)
    assert changed.application_property("new one") == "red!"
    assert (changed.subject, changed.reply_to) == ("red", "7")
    assert "price" not in changed.application_properties()
    assert changed.application_property("color") == "5"
    assert (ORDER.subject, ORDER.application_property("price")) == ("order-7", 2.5)


@pytest.mark.parametrize(
    "wrong", ["", "DELETE a", "SET a", "SET a =", "SET sys.SequenceNumber = 1", "REMOVE sys.Nothing", "REMOVE 'a'", ";"]
)
def test_a_text_that_is_no_action_is_refused(wrong: str) -> None:
    with pytest.raises(BrokerError):
        parse_action(wrong)


def test_a_rule_is_wrong_as_soon_as_it_is_made() -> None:
    with pytest.raises(BrokerError, match="'LIKE' at character 1"):
        Rule(RuleSettings("r", SqlFilter("LIKE")))


@pytest.mark.parametrize("error", [TypeError("no such type"), ValueError("no such value"), OverflowError("too large")])
def test_an_action_that_fails_in_a_way_nobody_thought_of_is_the_rule_s_own_failure(error: Exception) -> None:
    def fail(_: object) -> None:
        raise error

    rule = Rule(RuleSettings("r", SqlFilter("1 = 1"), "SET a = 1"))
    rule.act = fail
    with pytest.raises(FilterError, match=str(error)):
        rule.apply(ORDER.copy())
