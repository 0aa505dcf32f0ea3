"""What a look at a dropped file finds: every broken rule with its rows, and never an exception."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from dropforge.adapters.tabular.kinds import kind_of
from dropforge.domain.datasets import Column
from dropforge.domain.errors import BadInput
from dropforge.ports import ColumnRule
from tests.unit.looks import Look, checked, only, types


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """Checks content as a file; rules are given by name."""
    return lambda content, kind="csv", **rules: checked(tmp_path / "drop", content, kind, **rules)


# ------------------------------------------------------------------------------------------------ rules
RULED = (
    ColumnRule("origin", "string", nullable=False, allowed=("EWR", "JFK")),
    ColumnRule("distance", "float", min=0, max=10_000),
    ColumnRule("mail", pattern=r"[a-z]+@[a-z]+"),
    ColumnRule("id", "int", unique=True),
)


def test_every_broken_rule_is_one_problem_with_its_rows_and_values(look: Look) -> None:
    content = "origin,distance,mail,id\nEWR,5,a@b,1\nXXX,-1,nope,1\n,99999,c@d,\nJFK,0,xe@f!,2\n"
    check = look(content, columns=RULED, min_rows=5)

    assert [(each.rule, each.column, each.count, each.rows, each.values) for each in check.problems] == [
        ("nullable", "origin", 1, (3,), ("",)),
        ("allowed", "origin", 1, (2,), ("XXX",)),
        ("min", "distance", 1, (2,), ("-1",)),
        ("max", "distance", 1, (3,), ("99999",)),
        ("pattern", "mail", 2, (2, 4), ("nope", "xe@f!")),
        ("unique", "id", 1, (2,), ("1",)),
        ("min_rows", None, 1, (), ()),
    ]
    assert check.problems[1].message == "column 'origin': wanted one of 'EWR', 'JFK', found 'XXX'"
    assert check.problems[2].message == "column 'distance': wanted at least 0, found '-1'"


def test_at_most_twenty_rows_and_values_are_named(look: Look) -> None:
    problem = only(look("a\n" + "-1\n" * 500, columns=(ColumnRule("a", "int", min=0),)))

    assert problem.count == 500 and problem.rows == tuple(range(1, 21)) and len(problem.values) == 20


def test_at_most_fifty_problems_are_listed(look: Look) -> None:
    names = [f"c{index}" for index in range(200)]
    check = look(
        ",".join(names) + "\n" + ",".join("x" * 200) + "\n", columns=tuple(ColumnRule(n, "int") for n in names)
    )

    assert len(check.problems) == 50
    assert check.problems[-1].rule == "more" and check.problems[-1].count == 151


def test_long_and_strange_values_are_shown_on_one_short_line(look: Look) -> None:
    problem = only(look('a\n"x\ny' + "z" * 500 + '"\n', columns=(ColumnRule("a", "int"),)))

    assert problem.values[0].startswith("x\\nyzz") and len(problem.values[0]) == 80


@pytest.mark.parametrize(
    ("declared", "good", "bad"),
    [
        ("int", ["1", "-5", "3.0", " 7", "NULL", ""], ["1.5", "x", "1e30", "9223372036854775808", "2013-01-01"]),
        ("float", ["1", "1.5", "1e3", "-0.1", "nan"], ["1,5", "x", "1.2.3", "true"]),
        ("bool", ["true", "False", "1", "0"], ["yes", "2", "x"]),
        ("date", ["2013-01-31", "2013-01-31 00:00:00"], ["2013-02-30", "31.01.2013", "2013-01-31 05:00", "5"]),
        (
            "timestamp",
            ["2013-01-31", "2013-01-31 05:00", "2013-01-31T05:00:00.1234567Z"],
            ["x", "5", "2013-01-31 25:00"],
        ),
        ("string", ["", "x", "1", "é"], []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_are_cast_to_the_declared_type_or_named(
    look: Look, declared: str, good: list[str], bad: list[str]
) -> None:
    rows = "".join(f'{index},"{value}"\n' if value else f"{index},\n" for index, value in enumerate([*good, *bad]))
    check = look("n,a\n" + rows, columns=(ColumnRule("a", declared),))

    assert types(check) == {"n": "int64", "a": kind_of(declared)}
    assert [value for problem in check.problems for value in problem.values] == bad
    assert all(problem.rule == "type" and "as declared" in problem.message for problem in check.problems)


def test_a_misfit_is_not_a_missing_value_as_well(look: Look) -> None:
    problem = only(look("n,a\n1,x\n", columns=(ColumnRule("a", "int", nullable=False),)))

    assert problem.rule == "type"


def test_rules_that_no_column_of_that_type_can_keep_are_problems(look: Look) -> None:
    rules = (ColumnRule("a", min=1), ColumnRule("b", "int", allowed=("x",)), ColumnRule("c", pattern="("))
    check = look("a,b,c\nx,1,y\n", columns=rules)

    assert [(problem.rule, problem.column) for problem in check.problems] == [
        ("min", "a"),
        ("allowed", "b"),
        ("pattern", "c"),
    ]


def test_patterns_match_as_a_whole_also_those_that_only_python_knows(look: Look) -> None:
    rules = (ColumnRule("a", "string", pattern="a|ab"), ColumnRule("b", "string", pattern=r"(?!x)\w+"))
    check = look("a,b\nab,y\nabc,xy\n", columns=rules)

    assert [(problem.column, problem.rows) for problem in check.problems] == [("a", (2,)), ("b", (2,))]


# ------------------------------------------------------------------------------------------------ table and roles
def test_a_missing_column_is_named_with_what_was_found(look: Look) -> None:
    check = look("a, b\n1,2\n", columns=(ColumnRule("b"),), known=(Column("a", "int64"), Column("c", "string")))

    assert [problem.message for problem in check.problems] == [
        "column 'b' is missing; found: 'a', ' b'",
        "column 'c' is missing; found: 'a', ' b'",
    ]


@pytest.mark.parametrize("role", ["label", "event_time"])
def test_a_missing_label_or_event_time_says_where_to_set_it(look: Look, role: str) -> None:
    problem = only(look("a,b\n1,2\n", **{role: "z"}))

    assert (problem.rule, problem.column) == (role, "z")
    assert problem.message.endswith(f"is missing; found: 'a', 'b'; set dataset.{role} in pipeline.yaml")


def test_labels_may_come_later(look: Look) -> None:
    assert look("a,late\n1,\n2,\n", label="late").problems == ()
    assert look("a,late\n1,\n", label="late", known=(Column("a", "int64"), Column("late", "int64"))).problems == ()
    assert only(look("a,late\n1,\n2,\n")).message.endswith("set dataset.label in pipeline.yaml")


def test_what_does_not_fit_the_table_is_named(look: Look) -> None:
    known = (
        Column("a", "int64"),
        Column("t", "timestamp"),
        Column("_source", "string"),
        Column("_arrived_at", "timestamp"),
    )
    check = look("a,t\n1,2013-01-01\n1.5,x\n", known=known)

    assert [problem.message for problem in check.problems] == [
        "column 'a': wanted a whole number (int64 as in the table), found '1.5'",
        "column 't': wanted a time such as 2013-01-31T09:30:00Z (timestamp as in the table), found 'x'",
    ]


def test_a_declared_type_other_than_the_tables_is_a_problem(look: Look) -> None:
    problem = only(look("a\n1\n", columns=(ColumnRule("a", "float"),), known=(Column("a", "int64"),)))

    assert "declared double, and the table holds int64" in problem.message


@pytest.mark.parametrize(("policy", "columns"), [("keep", ["a", "z"]), ("drop", ["a"]), ("refuse", ["a"])])
def test_extra_columns_go_as_the_rules_say(look: Look, policy: str, columns: list[str]) -> None:
    check = look("a,z\n1,2\n", known=(Column("a", "int64"),), extra_columns=policy)

    assert list(types(check)) == columns
    assert [problem.rule for problem in check.problems] == (["extra_columns"] if policy == "refuse" else [])


def test_with_nothing_declared_and_no_table_nothing_is_extra(look: Look) -> None:
    assert list(types(look("a,z\n1,2\n", extra_columns="refuse"))) == ["a", "z"]
    assert list(types(look("a,z\n1,2\n", extra_columns="drop", label="z"))) == ["a", "z"]


def test_a_dropped_column_may_hold_anything(look: Look) -> None:
    table = pa.table({"a": [1], "list": [[1]], "": [0]})

    assert look(table, "parquet", known=(Column("a", "int64"),), extra_columns="drop").problems == ()


def test_event_times_are_utc_and_every_row_has_one(look: Look) -> None:
    times = ["2013-01-02 05:00", "2013-01-01", "2013-01-01T01:00:00+02:00", "", "01/02/2013", "1385856000"]
    check = look("at,n\n" + "".join(f"{time},1\n" for time in times), event_time="at")

    assert types(check)["at"] == "timestamp"
    assert (check.event_time_min, check.event_time_max) == ("2012-12-31T23:00:00+00:00", "2013-01-02T05:00:00+00:00")
    problem = only(check)
    assert (problem.rule, problem.count, sorted(problem.rows)) == ("event_time", 3, [4, 5, 6])


@pytest.mark.parametrize("declared", ["string", "date", "timestamp"])
def test_an_event_time_of_another_declared_type_is_read_as_a_time(look: Look, declared: str) -> None:
    rules = {"columns": (ColumnRule("at", declared),), "event_time": "at"}

    assert look("at,n\n2013-01-01,1\n2013-01-03,1\n", **rules).event_time_max == "2013-01-03T00:00:00+00:00"
    assert only(look("at,n\nsoon,1\n", **rules)).rule == "event_time"


@pytest.mark.parametrize("time", ["0000-01-01", "0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59-05:00"])
def test_an_event_time_that_no_calendar_of_ours_has_is_a_problem(look: Look, time: str) -> None:
    problem = only(look(f"at,n\n2013-01-01,1\n{time},1\n", event_time="at"))

    assert (problem.rule, problem.rows, problem.values) == ("event_time", (2,), (time,))
    assert "wanted a time in the years 1 to 9999" in problem.message


FAR = pa.array([10**7, 10**7], pa.date32())
BERLIN = pa.array([0, 1], pa.timestamp("ns", "Europe/Berlin"))


@pytest.mark.parametrize(
    ("values", "rule", "shown"),
    [
        (FAR, ColumnRule("a", unique=True), "29349-01-26"),
        (FAR, ColumnRule("a", "int"), "29349-01-26"),
        (FAR.dictionary_encode(), ColumnRule("a", "int"), "29349-01-26"),
        (pa.array([10**18], pa.timestamp("ms")), ColumnRule("a", "int"), "<value out of range: 1000000000000000000>"),
        (BERLIN, ColumnRule("a", "int"), "1970-01-01 00:00:00.000000000Z"),
        (pa.array([0], pa.timestamp("s", "Mars/Olympus")), ColumnRule("a", "int"), "1970-01-01 00:00:00.000Z"),
        (pa.array(["x"], pa.string_view()), ColumnRule("a", "int"), "x"),
        (pa.array(["x"], pa.string_view()), ColumnRule("a", pattern="y"), "x"),
    ],
)
def test_values_that_python_has_no_words_for_are_named(
    look: Look, values: pa.Array, rule: ColumnRule, shown: str
) -> None:
    assert only(look(pa.table({"a": values}), "parquet", columns=(rule,))).values[0] == shown


def test_a_file_larger_than_allowed_is_not_read(look: Look) -> None:
    problem = only(look("a\n" + "1\n" * 100, max_bytes=100))

    assert problem.rule == "max_bytes" and "wanted at most 100 bytes (dataset.max_bytes), found 202" in problem.message


def test_an_unknown_type_name_is_the_callers_mistake(look: Look) -> None:
    with pytest.raises(BadInput, match="unknown column type 'number'; choose one of"):
        look("a\n1\n", columns=(ColumnRule("a", "number"),))
