"""Commands in the world in memory: each has one effect and one answer, whatever crashes and however often it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.adapters.memory.ledger import MemoryLedger
from dropforge.domain.causes import Cause
from dropforge.domain.commands import Command, Kind
from dropforge.domain.errors import Reused, Unavailable
from dropforge.domain.events import Reply
from dropforge.domain.names import id_of
from dropforge.ports import Json, Row, Write
from dropforge.steps import approvals, books, commands, control, reports
from tests.unit.flows.world import YAML, World

ASK = YAML + "gate: {first: ask, ask_timeout: 1h}\n"
CAUSE = Cause("m1", "command", "ticket-7")


class Crash(Exception):
    """The host dies here."""


class Crashes:
    """Counts the places where a host could die, and dies at one of them."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.seen = 0
        # What somebody else does at that place instead of dying.
        self.instead: Callable[[], object] | None = None

    def place(self) -> None:
        self.seen += 1
        if self.at is None or self.seen != self.at:
            return
        self.at = None
        if self.instead is None:
            raise Crash
        self.instead()


class CrashingLedger:
    """A ledger whose host may die before and after each commit."""

    def __init__(self, ledger: Any, crashes: Crashes) -> None:
        self._ledger, self._crashes = ledger, crashes

    def get(self, partition: str, key: str) -> Row | None:
        return self._ledger.get(partition, key)  # type: ignore[no-any-return]

    def scan(self, partition: str, prefix: str = "", after: str = "", limit: int = 1000) -> list[Row]:
        return self._ledger.scan(partition, prefix, after, limit)  # type: ignore[no-any-return]

    def count(self, partition: str, prefix: str, limit: int) -> int:
        return self._ledger.count(partition, prefix, limit)  # type: ignore[no-any-return]

    def commit(self, partition: str, writes: Sequence[Write]) -> None:
        self._crashes.place()
        self._ledger.commit(partition, writes)
        self._crashes.place()


class Desk:
    """A door in the world: takes commands in as functions/commands.py does, and may die on the way."""

    def __init__(self, folder: Path, yaml: str = YAML) -> None:
        self.world = World(folder, yaml)
        self.crashes = Crashes()
        self.told: list[Reply] = []
        self.ports = replace(
            self.world.ports, ledger=CrashingLedger(self.world.ports.ledger, self.crashes), replies=self
        )

    def send(self, reply: Reply) -> None:
        self.crashes.place()
        self.told.append(reply)
        self.crashes.place()

    def give(self, command: Command) -> Json:
        told = commands.accept(self.ports, self.world.settings, command, self.world.now)
        self.carry_out(told)
        return told

    def carry_out(self, told: Json) -> None:
        for flow in told["start"]:
            self.crashes.place()
            self.world.start(flow)
        for wake in told["raise"]:
            self.crashes.place()
            self.world.raise_event(wake["flow"], wake["event"])
        self.crashes.place()
        commands.carried(self.ports, told)

    def ask(self, kind: Kind, id_: str = "m1", pipeline: str = "demo", **arguments: object) -> Json:
        return self.give(command(kind, id_, pipeline, **arguments))

    def rows(self) -> dict[str, Json]:
        """Everything the ledger holds."""
        ledger = self.world.ports.ledger
        assert isinstance(ledger, MemoryLedger)
        found = {}
        for partition in ("p.demo", "e.demo", "m.demo", books.COMMANDS):
            for row in books.every(ledger, partition, ""):
                found[f"{partition} {row.key}"] = row.value
        return found


def command(kind: Kind, id_: str = "m1", pipeline: str = "demo", **arguments: object) -> Command:
    return Command(id_, kind, pipeline, dict(arguments), "service bus: anna", CAUSE, "answers", "anna")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def dropped(desk: Desk, *names: str) -> Desk:
    for name in names:
        desk.world.drop(f"demo/{name}.csv")
        desk.world.run()
    return desk


# ------------------------------------------------------------------------------------------------ one by one
def test_promote_puts_that_version_behind_the_endpoint(desk: Desk) -> None:
    dropped(desk, "a", "b")
    told = desk.ask(Kind.PROMOTE, version=1)
    desk.world.run()
    assert (told["state"], told["result"]["version"], desk.world.champion()) == ("done", 1, 1)


def test_rollback_puts_the_champion_before_back_and_says_so(desk: Desk) -> None:
    dropped(desk, "a", "b")
    told = desk.ask(Kind.ROLLBACK)
    desk.world.run()
    assert (told["result"]["version"], desk.world.champion()) == (1, 1)
    (event,) = desk.world.events.of("ModelRolledBack")
    assert (event.data["version"], event.data["rolled_back"], event.data["pipeline"]) == (1, 2, "demo")
    assert event.cause == CAUSE


def test_rollback_means_the_version_it_meant_when_it_was_taken_in(desk: Desk) -> None:
    dropped(desk, "a", "b")
    desk.ask(Kind.ROLLBACK)
    desk.world.run()
    again = desk.ask(Kind.ROLLBACK)
    desk.world.run()
    assert (again["repeated"], again["result"]["version"], desk.world.champion()) == (True, 1, 1)


def test_nothing_to_roll_back_to_is_an_answer_and_no_failure(desk: Desk) -> None:
    told = desk.ask(Kind.ROLLBACK)
    assert told["state"] == "refused"
    assert told["error"]["type"] == "Refused"
    assert "no earlier champion" in told["error"]["detail"]
    assert desk.told[0].body["error"] == told["error"]


def test_a_promotion_taken_in_twice_is_one_deployment(desk: Desk) -> None:
    dropped(desk, "a", "b")
    desk.ask(Kind.PROMOTE, version=1)
    desk.world.run()
    desk.ask(Kind.PROMOTE, "m2", version=2)
    desk.world.run()
    told = commands.accept(desk.ports, desk.world.settings, command(Kind.PROMOTE, version=1), desk.world.now)
    assert told["start"] == []
    assert desk.world.champion() == 2


def test_a_flow_started_again_long_after_does_not_undo_what_came_later(desk: Desk) -> None:
    dropped(desk, "a", "b")
    told = commands.accept(desk.ports, desk.world.settings, command(Kind.PROMOTE, version=1), desk.world.now)
    desk.carry_out(told)
    desk.world.run()
    desk.ask(Kind.PROMOTE, "m2", version=2)
    desk.world.run()
    desk.carry_out(told)
    desk.world.run()
    assert desk.world.champion() == 2
    assert desk.world.instances[told["start"][0]["id"]].result["state"] == "superseded"


def test_a_flow_started_again_while_the_replicas_are_down_does_not_undo_what_is_live(desk: Desk) -> None:
    dropped(desk, "a", "b")
    told = commands.accept(desk.ports, desk.world.settings, command(Kind.PROMOTE, version=1), desk.world.now)
    desk.carry_out(told)
    desk.world.run()
    desk.world.now += timedelta(days=1)
    desk.world.replica = lambda desired: desk.world.report(desired, 0, "out of memory")
    desk.carry_out(told)
    desk.world.run()
    assert desk.world.champion() == 1
    assert desk.world.instances[told["start"][0]["id"]].result["state"] == "live"
    assert not desk.world.events.of("ModelRolledBack")


def test_train_runs_again_on_data_that_was_trained_on(desk: Desk) -> None:
    dropped(desk, "a")
    told = desk.ask(Kind.TRAIN)
    desk.world.run()
    assert told["state"] == "done"
    assert len(desk.world.runs()) == 2
    assert {run.spec.dataset_version for run in desk.world.runs()} == {1}
    assert CAUSE in [run.cause for run in desk.world.runs()]


def test_evaluate_promotes_nothing(desk: Desk) -> None:
    dropped(desk, "a", "b")
    told = desk.ask(Kind.EVALUATE, version=1)
    desk.world.run()
    assert told["state"] == "done"
    assert desk.world.champion() == 2
    assert [run.decision for run in desk.world.runs()][-1] == "evaluated"


@pytest.mark.parametrize(("kind", "champion"), [(Kind.APPROVE, 1), (Kind.REJECT, None)])
def test_an_answer_wakes_the_run_that_asked(tmp_path: Path, kind: Kind, champion: int | None) -> None:
    desk = Desk(tmp_path, ASK)
    desk.world.drop("demo/a.csv")
    desk.world.run(timedelta(minutes=10))
    (run,) = desk.world.runs()
    told = desk.ask(kind, run=run.spec.run, reason="looked at the slices")
    desk.world.run(timedelta(minutes=10))
    assert told["result"] == {"run": run.spec.run, "answer": kind.value}
    assert desk.world.champion() == champion
    answered = approvals.question(desk.world.ports, "demo", run.spec.run)
    assert (answered["by"], answered["reason"]) == ("service bus: anna", "looked at the slices")


def test_cancel_ends_the_run(desk: Desk) -> None:
    desk.world.trainer = None
    desk.world.drop("demo/a.csv")
    desk.world.run(timedelta(minutes=10))
    (run,) = desk.world.runs()
    assert desk.ask(Kind.CANCEL, run=run.spec.run)["state"] == "done"
    desk.world.run(timedelta(minutes=10))
    assert desk.world.runs()[0].state.value == "cancelled"
    assert desk.ask(Kind.CANCEL, "m2", run="demo-9-nobody")["error"]["type"] == "NotFound"


def test_replay_checks_the_quarantined_files_again(desk: Desk) -> None:
    desk.world.drop("demo/bad.csv", "")
    desk.world.run()
    told = desk.ask(Kind.REPLAY)
    assert len(told["result"]["replayed"]) == 1
    desk.world.run()
    (arrival,) = told["result"]["replayed"]
    assert books.arrival(desk.world.ports.ledger, "p.demo", arrival).replays == 1
    assert desk.ask(Kind.REPLAY, "m2", arrival="0" * 32)["error"]["type"] == "NotFound"


def test_reconcile_takes_in_what_no_event_told_of(desk: Desk) -> None:
    desk.world.drop("demo/a.csv", announce=0)
    told = desk.ask(Kind.RECONCILE)
    desk.world.run()
    assert (told["result"]["listed"], told["result"]["found"]) == (1, 1)
    assert desk.world.manifests() == [["demo/a.csv"]]


def test_pause_holds_the_pipeline_and_resume_lets_what_waited_go_on(desk: Desk) -> None:
    told = desk.ask(Kind.PAUSE, reason="wrong units")
    assert told["result"]["paused"]["reason"] == "wrong units"
    assert told["result"]["paused"]["by"] == "service bus: anna"
    dropped(desk, "a")
    assert desk.world.manifests() == []
    assert desk.ask(Kind.RESUME, "m2")["state"] == "done"
    desk.world.run()
    assert desk.world.manifests() == [["demo/a.csv"]]


def test_a_command_that_comes_again_does_not_undo_the_one_after_it(desk: Desk) -> None:
    places = _places(Desk(desk.world.folder), command(Kind.PAUSE))
    for at in range(1, places + 1):
        again = Desk(desk.world.folder)
        _die_at(again, at, command(Kind.PAUSE))
        again.ask(Kind.RESUME, "m2")
        paused_once = _paused_before(again)
        again.ask(Kind.PAUSE)
        assert control.is_paused(again.world.ports.ledger, "p.demo") is not paused_once


def _paused_before(desk: Desk) -> bool:
    row = desk.world.ports.ledger.get("p.demo", f"command/{id_of('m1')}")
    return row is not None and row.value["outcome"] is not None


# ------------------------------------------------------------------------------------------------ answers
def test_the_answer_is_for_the_queue_and_the_session_that_asked(desk: Desk) -> None:
    dropped(desk, "a", "b")
    told = desk.ask(Kind.PROMOTE, version=1)
    (reply,) = desk.told
    assert (reply.queue, reply.session_id, reply.correlation_id) == ("answers", "anna", "ticket-7")
    assert reply.body == {key: told[key] for key in ("id", "command", "pipeline", "state", "result", "error")}


def test_without_a_correlation_id_the_answer_carries_the_commands(desk: Desk) -> None:
    desk.give(replace(command(Kind.ROLLBACK), cause=Cause("m1", "command")))
    assert desk.told[0].correlation_id == "m1"


def test_who_names_no_queue_gets_no_answer(desk: Desk) -> None:
    desk.give(replace(command(Kind.ROLLBACK), reply_to=None))
    assert desk.told == []


def test_a_pipeline_there_is_none_of_is_an_answer_and_stays_one(desk: Desk) -> None:
    told = desk.ask(Kind.TRAIN, pipeline="other")
    assert (told["state"], told["error"]["type"], told["error"]["status"]) == ("refused", "NotFound", 404)
    again = desk.ask(Kind.TRAIN, pipeline="other")
    assert (again["repeated"], {**again, "repeated": False}) == (True, told)
    assert len(desk.told) == 1


def test_an_id_that_was_another_commands_is_refused(desk: Desk) -> None:
    desk.ask(Kind.PAUSE)
    with pytest.raises(Reused, match="'m1' was used"):
        desk.ask(Kind.RESUME)
    with pytest.raises(Reused, match="an id of its own"):
        desk.ask(Kind.PAUSE, reason="another one")


def test_a_world_that_does_not_answer_is_no_outcome(desk: Desk) -> None:
    desk.crashes.at, desk.crashes.instead = 2, _unavailable
    with pytest.raises(Unavailable):
        desk.ask(Kind.ROLLBACK)
    assert desk.ask(Kind.ROLLBACK)["state"] == "refused"


def _unavailable() -> None:
    raise Unavailable("the ledger does not answer")


def test_a_command_from_a_loop_is_refused_and_shown(desk: Desk) -> None:
    limit = desk.world.settings.max_hops
    told = desk.give(replace(command(Kind.TRAIN), cause=Cause("m1", "command", None, limit + 1)))
    assert told["state"] == "refused"
    assert "loop" in told["error"]["detail"]
    assert control.read(desk.world.ports.ledger, "p.demo")["refused"]
    assert desk.give(replace(command(Kind.PAUSE, "m2"), cause=Cause("m2", "command", None, limit)))["state"] == "done"


def test_what_a_command_did_can_be_looked_up(desk: Desk) -> None:
    desk.ask(Kind.ROLLBACK)
    assert commands.record(desk.world.ports, "demo", "m1")["outcome"]["state"] == "refused"


# ------------------------------------------------------------------------------------------------ the sweep
def test_the_sweep_carries_out_what_a_crash_left(desk: Desk) -> None:
    dropped(desk, "a", "b")
    commands.accept(desk.ports, desk.world.settings, command(Kind.PROMOTE, version=1), desk.world.now)
    assert commands.sweep(desk.ports, desk.world.settings, desk.world.now) == []
    desk.world.now += timedelta(minutes=1)
    for told in commands.sweep(desk.ports, desk.world.settings, desk.world.now):
        desk.carry_out(told)
    desk.world.run()
    assert desk.world.champion() == 1
    assert commands.sweep(desk.ports, desk.world.settings, desk.world.now) == []


# ------------------------------------------------------------------------------------------------ the law
def _two_versions(desk: Desk) -> None:
    dropped(desk, "a", "b")
    desk.world.drop("demo/bad.csv", "")
    desk.world.run()


def _a_live_run(desk: Desk) -> None:
    desk.world.trainer = None
    desk.world.drop("demo/a.csv")
    desk.world.run(timedelta(minutes=10))


def _a_question(desk: Desk) -> None:
    desk.world.drop("demo/a.csv")
    desk.world.run(timedelta(minutes=10))


def _paused(desk: Desk) -> None:
    control.pause(desk.world.ports, "demo", "tom", "holiday", desk.world.now)
    desk.world.drop("demo/a.csv")
    desk.world.run(timedelta(minutes=10))


def _an_untold_file(desk: Desk) -> None:
    desk.world.drop("demo/a.csv", announce=0)


RUN = "demo-1-run"
CASES: dict[str, tuple[str, Callable[[Desk], None], Kind, Json]] = {
    "train": (YAML, _two_versions, Kind.TRAIN, {}),
    "evaluate": (YAML, _two_versions, Kind.EVALUATE, {"version": 1}),
    "promote": (YAML, _two_versions, Kind.PROMOTE, {"version": 1}),
    "rollback": (YAML, _two_versions, Kind.ROLLBACK, {}),
    "approve": (ASK, _a_question, Kind.APPROVE, {"run": RUN}),
    "reject": (ASK, _a_question, Kind.REJECT, {"run": RUN}),
    "cancel": (YAML, _a_live_run, Kind.CANCEL, {"run": RUN}),
    "replay": (YAML, _two_versions, Kind.REPLAY, {}),
    "reconcile": (YAML, _an_untold_file, Kind.RECONCILE, {}),
    "pause": (YAML, _two_versions, Kind.PAUSE, {"reason": "wrong units"}),
    "resume": (YAML, _paused, Kind.RESUME, {}),
    "refused": (YAML, _a_live_run, Kind.ROLLBACK, {}),
    "unknown": (YAML, _a_live_run, Kind.PROMOTE, {"version": 9}),
}


def _prepared(folder: Path, case: str) -> tuple[Desk, Command]:
    yaml, prepare, kind, arguments = CASES[case]
    desk = Desk(folder, yaml)
    prepare(desk)
    if arguments.get("run") == RUN:
        arguments = {**arguments, "run": desk.world.runs()[0].spec.run}
    desk.crashes.seen = 0
    return desk, command(kind, **arguments)


def _finished(desk: Desk) -> tuple[dict[str, Json], list[Json], dict[str, Any]]:
    """What there is once everything has come to rest: rows, distinct replies, distinct events."""
    desk.world.run(timedelta(minutes=30))
    replies = {reply.id: reply for reply in desk.told}
    assert all(reply == replies[reply.id] for reply in desk.told)
    events = {event.id: event.data for event in desk.world.events.published}
    rows = desk.rows()
    _forget_counts(rows)
    bodies = [reply.body for reply in replies.values()]
    _forget_counts({reply["id"]: {"outcome": reply} for reply in bodies})
    return rows, bodies, events


def _forget_counts(rows: dict[str, Json]) -> None:
    """How many files were new is what the pass that is answered for found: a pass that nobody heard of took the rest."""
    for row in rows.values():
        outcome = row.get("outcome")
        if isinstance(outcome, dict) and outcome["command"] == "reconcile":
            del outcome["result"]["found"]


def _places(desk: Desk, asked: Command) -> int:
    desk.crashes.seen = 0
    desk.give(asked)
    return desk.crashes.seen


def _die_at(desk: Desk, at: int, asked: Command) -> None:
    desk.crashes.seen, desk.crashes.at, desk.crashes.instead = 0, at, None
    try:
        desk.give(asked)
    except Crash:
        return
    finally:
        desk.crashes.at = None


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_crashes_and_redeliveries_change_nothing(tmp_path: Path, case: str, data: st.DataObject) -> None:
    calm, asked = _prepared(tmp_path, case)
    places = _places(calm, asked)
    wanted = _finished(calm)

    desk, asked = _prepared(tmp_path, case)
    for at in data.draw(st.lists(st.integers(1, places), min_size=1, max_size=2)):
        _die_at(desk, at, asked)
    for _ in range(data.draw(st.integers(1, 3))):
        desk.give(asked)
    assert _finished(desk) == wanted
    assert len(wanted[1]) == 1


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_two_hosts_at_once_change_nothing(tmp_path: Path, case: str, data: st.DataObject) -> None:
    calm, asked = _prepared(tmp_path, case)
    places = _places(calm, asked)
    wanted = _finished(calm)

    desk, asked = _prepared(tmp_path, case)
    desk.crashes.at = data.draw(st.integers(1, places))
    desk.crashes.instead = lambda: desk.give(asked)
    desk.give(asked)
    assert _finished(desk) == wanted


def test_a_deployment_that_another_one_replaced_is_over(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + "gate: {better: keep, first: always}\n")
    for number in range(3):
        world.drop(f"demo/{number}.csv", f"x,y\n{number},0\n2,1\n")
        world.run()

    def work(id_: str) -> Any:
        return reports.command(world.ports, id_)["work"]

    for id_, version in (("p2", 2), ("p3", 3)):
        command = Command(id_, Kind.PROMOTE, "demo", {"version": version}, "me", CAUSE)
        for flow in commands.accept(world.ports, world.settings, command, world.now)["start"]:
            world.start(flow)
        if id_ == "p3":
            assert (work("p3")["over"], work("p3")["state"]) == (False, "waiting")
        world.run()
        assert (work(id_)["over"], work(id_)["state"]) == (True, "live")
    assert (work("p2")["over"], work("p2")["state"]) == (True, "superseded")
