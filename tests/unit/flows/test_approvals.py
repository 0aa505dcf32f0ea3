"""Questions put to people: one answer counts, in time, from who may give it; and nobody's answer is the default."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from dropforge.domain.errors import BadInput, NotFound, Refused
from dropforge.domain.runs import RunOutcome
from dropforge.ports import Json
from dropforge.steps import approvals, reports
from tests.unit.flows.world import YAML, World

HOUR = timedelta(hours=1)


def asking(folder: Path, **gate: str) -> tuple[World, Json]:
    """A world in which a run asks, and its question."""
    said = {"first": "ask", "ask_timeout": "1h", **gate}
    world = World(folder, YAML + f"gate: {{{', '.join(f'{key}: {value}' for key, value in said.items())}}}\n")
    world.drop("demo/a.csv")
    world.run(timedelta(minutes=5))
    (question,) = approvals.open_questions(world.ports, "demo")
    return world, question


def answer(world: World, question: Json, given: str, by: str, reason: str | None = None) -> None:
    wake = approvals.answer(world.ports, "demo", question["run"], given, by, world.now, reason)
    world.raise_event(wake["flow"], wake["event"])


def test_a_question_says_what_who_and_until_when(tmp_path: Path) -> None:
    world, question = asking(tmp_path, approvers="[ada, bob]")
    assert question["state"] == "open"
    assert question["allowed"] == ["approve", "reject"]
    assert question["approvers"] == ["ada", "bob"]
    assert question["default"] == "reject"
    assert question["question"].startswith("Promote version 1 of demo?")
    assert "flow" not in question
    assert approvals.question(world.ports, "demo", question["run"]) == question


def test_an_answer_is_kept_with_who_gave_it_and_why(tmp_path: Path) -> None:
    world, question = asking(tmp_path)
    answer(world, question, "approve", "ada", "looked at the slices")
    world.run()
    told = approvals.question(world.ports, "demo", question["run"])
    assert (told["state"], told["answer"], told["by"], told["reason"]) == (
        "answered", "approve", "ada", "looked at the slices",
    )  # fmt: skip
    assert world.champion() == 1
    assert approvals.open_questions(world.ports, "demo") == []
    found, _ = reports.questions(world.ports, "demo", "all")
    assert [each["run"] for each in found] == [question["run"]]


@pytest.mark.parametrize(("default", "champion"), [("reject", None), ("approve", 1)])
def test_nobodys_answer_is_the_default(tmp_path: Path, default: str, champion: int | None) -> None:
    world, question = asking(tmp_path, ask_default=default)
    world.run()
    told = approvals.question(world.ports, "demo", question["run"])
    assert (told["state"], told["answer"], told["by"]) == ("expired", default, approvals.NOBODY)
    assert world.champion() == champion


@pytest.mark.parametrize("given", ["approve", "reject"])
def test_a_late_answer_is_refused_with_what_was_decided(tmp_path: Path, given: str) -> None:
    world, question = asking(tmp_path)
    # The flow has not looked yet, and the time is over already.
    late = world.now + 2 * HOUR
    with pytest.raises(Refused, match="was answered with 'reject' by nobody: the question expired"):
        approvals.answer(world.ports, "demo", question["run"], given, "ada", late)
    world.run()
    assert world.runs()[-1].outcome is RunOutcome.REJECTED


def test_a_second_answer_counts_for_nothing_and_the_same_again_is_no_error(tmp_path: Path) -> None:
    world, question = asking(tmp_path)
    answer(world, question, "approve", "ada")
    answer(world, question, "approve", "bob")
    with pytest.raises(Refused, match="was answered with 'approve' by ada"):
        answer(world, question, "reject", "bob")
    world.run()
    assert approvals.question(world.ports, "demo", question["run"])["by"] == "ada"
    assert world.champion() == 1


def test_only_those_who_are_named_may_answer(tmp_path: Path) -> None:
    world, question = asking(tmp_path, approvers="[ada@example.com]")
    for other in ("bob", "holder of a key (approver)", "ada", "service bus"):
        with pytest.raises(Refused, match=r"may be answered by ada@example\.com"):
            answer(world, question, "approve", other)
    answer(world, question, "approve", "ada@example.com (with key approver)")
    world.run()
    assert world.champion() == 1


def test_a_flow_that_was_woken_without_an_answer_goes_on_waiting_for_one(tmp_path: Path) -> None:
    world, question = asking(tmp_path)
    (flow,) = (each for each in world.instances.values() if each.alive and each.name == "train")
    world.raise_event(flow.id, f"answer-{question['run']}")
    world.run(timedelta(minutes=10))
    assert world.champion() is None
    assert world.runs()[-1].outcome is RunOutcome.WAITING_FOR_ANSWER
    answer(world, question, "approve", "ada")
    world.run()
    assert world.champion() == 1


def test_what_is_not_asked_or_no_answer_is_refused(tmp_path: Path) -> None:
    world, question = asking(tmp_path)
    with pytest.raises(BadInput, match="'maybe' is not one of approve, reject"):
        answer(world, question, "maybe", "ada")
    with pytest.raises(NotFound, match="asks nothing"):
        approvals.answer(world.ports, "demo", "demo-9-abcdef", "approve", "ada", world.now)


def test_asking_twice_is_asking_once(tmp_path: Path) -> None:
    world, question = asking(tmp_path)
    again = approvals.ask(world.ports, "demo", question["run"], "another-flow", world.now + HOUR)
    assert again["expires_at"] == question["expires_at"]
    assert len(approvals.open_questions(world.ports, "demo")) == 1
