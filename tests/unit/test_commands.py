"""What is a command and what is not: the parser and the published schema say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge.adapters.memory.ledger import MemoryLedger
from dropforge.domain.causes import Cause, follow, hops_of, told_id
from dropforge.domain.commands import FORMS, Command, Kind, example, schema, schema_text
from dropforge.domain.errors import BadCommand, BadInput, Reused
from dropforge.steps import books, commands
from tests.unit.flows.world import World

DOCS = Path(__file__).parents[2] / "docs"
CAUSE = Cause("m1", "command")
VALIDATOR = jsonschema_rs.Draft202012Validator(schema())


def parse(body: object, **more: Any) -> Command:
    return commands.parse(body, id="m1", by="service bus", cause=more.pop("cause", CAUSE), **more)


def refusal(body: object) -> str:
    with pytest.raises(BadCommand) as found:
        parse(body)
    return found.value.message


# ------------------------------------------------------------------------------------------------ the schema
def test_the_published_schema_is_the_one_the_code_makes() -> None:
    assert (DOCS / "commands.schema.json").read_text() == schema_text(), "run `python -m dropforge.domain.commands`"


@pytest.mark.parametrize("kind", Kind)
def test_every_command_has_an_example_that_is_one(kind: Kind) -> None:
    assert VALIDATOR.is_valid(example(kind))
    assert parse(example(kind)).kind is kind
    assert f"`{kind.value}`" in (DOCS / "commands.md").read_text()


@pytest.mark.parametrize("kind", Kind)
def test_every_argument_is_documented(kind: Kind) -> None:
    text = (DOCS / "commands.md").read_text()
    for name, argument in FORMS[kind].arguments.items():
        assert f"`{name}`" in text
        assert argument.description


ANY = st.none() | st.booleans() | st.integers(-2, 10**10) | st.just(1.5) | st.text("aä /\n\x00-", max_size=5)
ARGUMENTS = st.dictionaries(st.sampled_from(["version", "run", "reason", "arrival", "x"]), ANY, max_size=2)
BODIES = st.fixed_dictionaries(
    {
        "command": st.sampled_from([*(kind.value for kind in Kind), "fly", None, 3]),
        "pipeline": st.sampled_from(["flights", "a", "Flights", "a\n", "", "-", None, 1]),
    },
    optional={
        "arguments": ARGUMENTS | ANY,
        "by": ANY,
        "correlationId": ANY,
        "causationId": ANY,
        "hops": ANY,
        "extra": ANY,
    },
)


@settings(max_examples=400)
@given(body=BODIES)
def test_the_parser_takes_what_the_schema_takes_and_nothing_else(body: dict[str, Any]) -> None:
    try:
        parse(body)
    except BadCommand as error:
        assert not VALIDATOR.is_valid(body), error
    else:
        assert VALIDATOR.is_valid(body)


# ------------------------------------------------------------------------------------------------ understanding
def test_a_command_is_what_its_message_says() -> None:
    found = parse(
        {
            "command": "promote",
            "pipeline": "flights",
            "arguments": {"version": 3},
            "by": "anna",
            "correlationId": "t-1",
        },
        reply_to="answers",
        reply_session="anna",
    )
    assert found == Command(
        "m1",
        Kind.PROMOTE,
        "flights",
        {"version": 3},
        "service bus: anna",
        Cause("m1", "command", "t-1"),
        "answers",
        "anna",
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "JSON array"),
        (None, "JSON null"),
        ({"command": "fly", "pipeline": "a"}, "choose one of train, evaluate, promote"),
        ({"pipeline": "a"}, "`command` is null"),
        ({"command": "train", "pipeline": "A b"}, "must be the name of a pipeline"),
        ({"command": "train", "pipeline": "a", "version": 3}, '"version" is no key of a command'),
        ({"command": "promote", "pipeline": "a"}, "`promote` needs `arguments.version`: The model version."),
        ({"command": "promote", "pipeline": "a", "arguments": {"version": "3"}}, 'is "3"; it must be a whole number'),
        ({"command": "promote", "pipeline": "a", "arguments": {"version": True}}, "it must be a whole number"),
        ({"command": "promote", "pipeline": "a", "arguments": {"version": 0}}, "from 1 to"),
        ({"command": "train", "pipeline": "a", "arguments": {"version": 3}}, "no argument of `train`; it takes none"),
        ({"command": "cancel", "pipeline": "a", "arguments": {"run": "a b"}}, "without spaces"),
        ({"command": "pause", "pipeline": "a", "arguments": {"reason": "\ud800"}}, "a text of 1 to 2000"),
        ({"command": "train", "pipeline": "a", "arguments": [1]}, "`arguments` is a JSON array"),
        ({"command": "train", "pipeline": "a", "by": 3}, "`by` is 3"),
        ({"command": "train", "pipeline": "a", "hops": "2"}, '`hops` is "2"'),
        ({"command": "train", "pipeline": "a", "correlationId": "x" * 129}, "1 to 128 characters"),
    ],
)
def test_what_is_wrong_is_said_with_the_key_and_the_choices(body: object, said: str) -> None:
    assert said in refusal(body)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"hops": NaN}', "no JSON number"),
        (b'{"a": 1, "a": 2}', "one key twice"),
        (b'{"hops": ' + b"9" * 10_000 + b"}", "not JSON"),
    ],
)
def test_what_is_no_json_is_no_command(raw: bytes, said: str) -> None:
    with pytest.raises(BadCommand, match=said):
        commands.read(raw)


def test_a_bad_command_says_under_which_reason_it_is_dead_lettered() -> None:
    assert BadCommand("x").dead_letter_reason == Reused("x").dead_letter_reason == "BadCommand"


# ------------------------------------------------------------------------------------------------ loops
@pytest.mark.parametrize(
    ("body", "cause", "hops"),
    [
        ({}, CAUSE, 0),
        ({"hops": 3}, CAUSE, 3),
        ({"causationId": told_id("ab12", 4)}, CAUSE, 4),
        ({"causationId": told_id("ab12", 4), "hops": 2}, CAUSE, 4),
        ({"causationId": "somebody-else's", "hops": 2}, CAUSE, 2),
        ({"hops": 1}, Cause("m1", "command", None, 5), 5),
        ({"hops": None, "causationId": None}, CAUSE, 0),
    ],
)
def test_the_most_hops_anything_says_count(body: dict[str, Any], cause: Cause, hops: int) -> None:
    assert parse({"command": "train", "pipeline": "a", **body}, cause=cause).cause.hops == hops


@pytest.mark.parametrize(("given_hops", "hops"), [(None, 0), (3, 3), ("3", 3), ("0", 0), (0, 0)])
def test_hops_come_as_number_or_text(given_hops: object, hops: int) -> None:
    assert follow("r1", "http", hops=given_hops).hops == hops


@pytest.mark.parametrize("bad", [-1, 1001, "-1", "1.5", "", "x", True, 2.0, [], "9" * 5000, "٣"])
def test_hops_that_are_no_number_are_refused(bad: object) -> None:
    with pytest.raises(BadInput, match="hops"):
        follow("r1", "http", hops=bad)


@pytest.mark.parametrize("id_", [None, "", "abc", "abc.", ".3", "abc.-3", "abc.12345", 3])
def test_an_id_that_the_platform_did_not_make_says_nothing_of_hops(id_: object) -> None:
    assert hops_of(id_) == 0


# ------------------------------------------------------------------------------------------------ rejecting
NOW = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.fixture
def reject(tmp_path: Path) -> tuple[World, Callable[..., None]]:
    world = World(tmp_path)

    def rejected(raw: bytes, reply_to: str | None = "answers") -> None:
        error = BadCommand("no such command")
        commands.reject(
            world.ports, id_="m1", raw=raw, by="service bus", error=error, now=NOW, reply_to=reply_to, correlation="t-1"
        )

    return world, rejected


def test_a_rejected_command_is_written_down_and_answered_once(reject: tuple[World, Callable[..., None]]) -> None:
    world, rejected = reject
    for _ in range(3):
        rejected(b'{"command": "fly"}')
    (row,) = books.every(world.ports.ledger, books.COMMANDS, "rejected/")
    assert row.value["body"] == '{"command": "fly"}'
    assert row.value["error"] == {"type": "BadCommand", "status": 400, "detail": "no such command"}
    (reply,) = world.replies.sent
    assert (reply.queue, reply.correlation_id, reply.body["state"]) == ("answers", "t-1", "rejected")
    assert reply.body["error"]["detail"] == "no such command"


def test_two_bad_commands_with_one_id_are_both_answered(reject: tuple[World, Callable[..., None]]) -> None:
    world, rejected = reject
    rejected(b"a")
    rejected(b"b")
    assert len(world.replies.sent) == 2


@pytest.mark.parametrize("raw", [b"", b"\xff\x00", b"x" * 300_000, json.dumps({"a": "\ud800"}).encode()])
def test_any_bytes_can_be_rejected(reject: tuple[World, Callable[..., None]], raw: bytes) -> None:
    world, rejected = reject
    rejected(raw, None)
    assert isinstance(world.ports.ledger, MemoryLedger)
    assert len(list(books.every(world.ports.ledger, books.COMMANDS, "rejected/"))) == 1
    assert world.replies.sent == []
