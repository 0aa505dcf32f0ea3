"""Runs that somebody asks for: forced trainings and evaluations, once each, in line with what comes by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.adapters.memory.compute import MemoryCompute
from dropforge.adapters.registry import LedgerRegistry
from dropforge.domain.causes import Cause
from dropforge.domain.errors import NotFound, Refused
from dropforge.domain.names import id_of
from dropforge.domain.runs import RunOutcome, RunSpec, RunState, SweepPlan
from dropforge.ports import Insert, Json, Ports
from dropforge.steps import asked, books, control, pipelines, train
from dropforge.wire import from_builtins, to_builtins
from tests.unit.flows.world import YAML, World

BY_ADA = Cause("request-1", "http")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def ask(world: World, token: str = "t1", cause: Cause = BY_ADA) -> Json:
    told = train.ask(world.ports, "demo", token=token, cause=cause, now=world.now)
    for flow in told["start"]:
        world.start(flow)
    return told


def evaluate(world: World, version: int | None = None, token: str = "e1") -> Json:
    told = train.ask_evaluation(world.ports, "demo", version, token=token, cause=BY_ADA, now=world.now)
    for flow in told["start"]:
        world.start(flow)
    return told


def drop(world: World, *names: str) -> None:
    for name in names:
        world.drop(f"demo/{name}.csv")
        world.run()


def finish(world: World) -> None:
    """The live run ends well."""
    world.trainer = lambda w, run: w.succeed(run, better=True)
    world.succeed(world.head()["run"], better=True)
    world.run()


# ------------------------------------------------------------------------------------------------ forced trainings
def test_a_training_that_is_asked_for_runs_on_data_that_was_trained_on_before(world: World) -> None:
    drop(world, "a")
    told = ask(world)
    assert (told["run"], told["state"], told["waits_for"]) == (None, "accepted", None)
    world.run()
    first, second = world.runs()
    assert (first.spec.dataset_version, second.spec.dataset_version) == (1, 1)
    assert second.cause == BY_ADA
    assert second.spec.run.startswith("demo-1-") and len(second.spec.run) == len("demo-1-abcdef")
    assert world.champion() == 2
    assert ask(world)["run"] == second.spec.run


def test_the_same_request_again_is_the_same_run_at_any_time(world: World) -> None:
    drop(world, "a")
    for _ in range(3):
        ask(world)
    world.run()
    for _ in range(3):
        assert ask(world)["state"] == "accepted"
        world.run()
    assert len(world.runs()) == 2


def test_another_request_is_another_run(world: World) -> None:
    drop(world, "a")
    for token in ("t1", "t2", "t3"):
        ask(world, token)
        world.run()
    assert len({run.spec.run for run in world.runs()}) == 4


def test_requests_during_a_run_become_one_run_after_it(world: World) -> None:
    drop(world, "a")
    world.trainer = None
    ask(world, "t1")
    world.run(timedelta(minutes=1))
    live = world.head()["run"]
    told = [ask(world, token) for token in ("t2", "t3", "t4")]
    assert [each["state"] for each in told] == ["accepted", "joined", "joined"]
    assert told[0]["waits_for"] == f"run {live} goes first"
    assert len(world.head()["asked"]) == 1
    finish(world)
    assert len(world.runs()) == 3
    became = {ask(world, token)["run"] for token in ("t2", "t3", "t4")}
    assert became == {world.runs()[-1].spec.run}
    assert world.head()["asked"] == []


def test_a_request_that_waits_takes_in_what_is_dropped_meanwhile(world: World) -> None:
    drop(world, "a")
    world.trainer = None
    ask(world, "t1")
    world.run(timedelta(minutes=1))
    ask(world, "t2")
    world.drop("demo/b.csv")
    world.run(timedelta(minutes=5))
    finish(world)
    # One run serves both the request and the new data.
    assert [run.spec.dataset_version for run in world.runs()] == [1, 1, 2]


def test_a_run_has_the_furthest_cause_of_those_who_joined_it(world: World) -> None:
    drop(world, "a")
    world.trainer = None
    ask(world, "t1")
    world.run(timedelta(minutes=1))
    ask(world, "t2")
    ask(world, "t3", Cause("event-7", "http", hops=3))
    finish(world)
    assert world.runs()[-1].cause == Cause("event-7", "http", hops=3)


def test_flow_waiting_for_finds_the_flow_of_a_run_that_was_asked_for(world: World) -> None:
    drop(world, "a")
    world.trainer = None
    ask(world)
    world.run(timedelta(minutes=1))
    run = world.head()["run"]
    event = {"runId": run, "runStatus": "Completed"}
    kind = "Microsoft.MachineLearningServices.RunStatusChanged"
    assert train.flow_waiting_for(world.ports, kind, event) == "train-demo-2"


@pytest.mark.parametrize(
    ("job", "of_a_run", "of_a_sweep"),
    [("", True, True), ("_2", True, False), ("_0", True, False), ("_a2", True, True), ("_a2_2", True, False)],
)
def test_flow_waiting_for_wakes_nobody_for_a_trial_of_a_sweep(
    world: World, job: str, of_a_run: bool, of_a_sweep: bool
) -> None:
    drop(world, "a")
    world.trainer = None
    ask(world)
    world.run(timedelta(minutes=1))
    run, kind = world.head()["run"], "Microsoft.MachineLearningServices.RunCompleted"
    assert (train.flow_waiting_for(world.ports, kind, {"runId": run + job}) is not None) is of_a_run

    found = train.record(world.ports, "demo", run)
    plan = SweepPlan(3, 1, "random", {"depth": {"min": 1, "max": 9}})
    partition, key = books.partition_of("demo"), books.run_key(run)
    swept = to_builtins(replace(found, spec=replace(found.spec, sweep=plan)))
    books.change(world.ports.ledger, partition, key, lambda _: swept)
    assert (train.flow_waiting_for(world.ports, kind, {"runId": run + job}) is not None) is of_a_sweep


def test_a_request_without_data_is_refused_and_says_what_to_do(world: World) -> None:
    with pytest.raises(Refused, match="no dataset version yet; drop a file into demo/"):
        ask(world)
    with pytest.raises(NotFound, match="there are demo"):
        train.ask(world.ports, "dmeo", "t", BY_ADA, world.now)


def test_a_request_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, YAML.replace("  command", "  min_rows: 10\n  command"))
    drop(world, "a")
    assert world.runs() == []
    with pytest.raises(Refused, match=r"has 2 rows, and training.min_rows is 10"):
        ask(world)


def test_a_request_to_a_paused_pipeline_is_refused_and_one_that_waits_goes_on_later(world: World) -> None:
    drop(world, "a")
    world.trainer = None
    ask(world, "t1")
    world.run(timedelta(minutes=1))
    ask(world, "t2")
    control.pause(world.ports, "demo", "ada", "stop", world.now)
    with pytest.raises(Refused, match="paused by ada"):
        ask(world, "t3")
    finish(world)
    assert len(world.runs()) == 2
    for flow in pipelines.resume(world.ports, "demo"):
        world.start(flow)
    world.run()
    assert len(world.runs()) == 3


def test_the_line_is_short_and_says_so_when_it_is_full(world: World) -> None:
    drop(world, *"abcdefghijklmnopqrstuvw")
    world.trainer = None
    ask(world)
    world.run(timedelta(minutes=1))
    for version in range(1, asked.MOST + 1):
        evaluate(world, version, f"e{version}")
    assert evaluate(world, 1, "again")["state"] == "joined"
    with pytest.raises(Refused, match=f"{asked.MOST} runs that were asked for wait already"):
        evaluate(world, asked.MOST + 1, "one too many")


def test_an_id_that_is_taken_is_passed_over(world: World) -> None:
    drop(world, "a")
    by_itself = world.runs()[0].spec.run
    first = world.ports.ledger.get("p.demo", f"run/{by_itself}")
    assert first is not None
    key = books.pipeline(world.ports.ledger, "demo").training_key
    taken = f"demo-1-{id_of(key, 'asked/' + id_of('train', 't1'), '0')[:6]}"
    world.ports.ledger.commit("p.demo", [Insert(f"run/{taken}", first.value)])
    ask(world)
    world.run()
    assert ask(world)["run"] not in (None, taken, by_itself)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["t1", "t2", "t3", "drop", "run", "minute"]), max_size=14), st.integers(1, 2))
def test_every_request_becomes_exactly_one_run_and_no_two_are_live(
    tmp_path: Path, steps: list[str], times: int
) -> None:
    world = World(tmp_path)
    world.times = times
    drop(world, "0")
    tokens = set()
    for number, step in enumerate(steps):
        if step == "drop":
            world.drop(f"demo/{number:02}.csv", f"x,y\n{number},0\n2,1\n")
        elif step in ("run", "minute"):
            world.run(timedelta(minutes=1) if step == "minute" else timedelta(hours=12))
        else:
            ask(world, step)
            tokens.add(step)
    world.run()
    runs = {run.spec.run for run in world.runs()}
    assert all(ask(world, token)["run"] in runs for token in tokens)
    assert len(runs) <= 1 + len(tokens) + steps.count("drop")
    assert len(world.compute.submitted) == len(runs)
    assert world.head()["asked"] == [] and world.head()["run"] is None


# ------------------------------------------------------------------------------------------------ evaluations
def test_a_run_names_the_columns_that_each_model_was_trained_with(tmp_path: Path) -> None:
    world = World(tmp_path, YAML.replace("python train.py", "python train.py\n  features: [x]"))
    drop(world, "a")
    assert world.ports.registry.get("demo", 1).lineage.features == ("x",)

    evaluate(world, 1)
    world.run()
    measured = world.compute.submitted[-1].challenger
    assert measured is not None and measured.features == ("x",)


def test_of_a_model_from_before_its_columns_were_kept_its_run_is_asked(tmp_path: Path) -> None:
    world = World(tmp_path, YAML.replace("python train.py", "python train.py\n  features: [x]"))
    drop(world, "a")

    def older(value: Json) -> Json:
        lineage = {key: each for key, each in value["lineage"].items() if key != "features"}
        return {**value, "lineage": lineage}

    books.change(world.ports.ledger, "m.demo", "version/000001", older)
    # Another process, which has not read the version before.
    registry = LedgerRegistry(world.ports.ledger, world.ports.artifacts)
    assert registry.get("demo", 1).lineage.features == ()
    world.ports = replace(world.ports, registry=registry)

    drop(world, "b")
    champion = world.compute.submitted[-1].champion
    assert champion is not None and champion.features == ("x",)


def test_a_run_that_was_submitted_before_champions_had_columns_is_the_same_run(world: World) -> None:
    drop(world, "a")
    drop(world, "b")
    spec = world.compute.submitted[-1]
    assert spec.champion is not None and spec.champion.features == ()

    told = to_builtins(spec)
    del told["champion"]["features"]
    assert from_builtins(RunSpec, told) == spec


def test_an_evaluation_measures_an_old_version_against_the_champion_and_changes_nothing(world: World) -> None:
    drop(world, "a", "b")
    assert world.champion() == 2
    evaluate(world, 1)
    world.run()
    run = world.runs()[-1]
    assert run.spec.challenger is not None and run.spec.champion is not None
    assert (run.spec.challenger.version, run.spec.champion.version, run.spec.dataset_version) == (1, 2, 2)
    assert (run.outcome, run.model_version, run.decision) == (RunOutcome.EVALUATED, 1, "evaluated")
    assert run.verdict is not None and run.verdict["outcome"] == "better"
    assert world.champion() == 2
    assert len(world.ports.registry.list("demo")) == 2
    assert len(world.events.of("ModelRegistered")) == 2
    assert [event.data["outcome"] for event in world.events.of("RunFinished")][-1] == "evaluated"


def test_without_a_version_the_newest_is_measured_and_the_champion_against_the_baseline(world: World) -> None:
    drop(world, "a")
    evaluate(world)
    world.run()
    spec = world.runs()[-1].spec
    assert spec.challenger is not None and (spec.challenger.version, spec.champion) == (1, None)


def test_an_evaluation_leaves_new_data_to_be_trained_on(world: World) -> None:
    drop(world, "a")
    world.trainer = None
    evaluate(world)
    world.run(timedelta(minutes=1))
    world.drop("demo/b.csv")
    world.run(timedelta(minutes=5))
    finish(world)
    assert [(run.outcome, run.spec.dataset_version) for run in world.runs()] == [
        (RunOutcome.PROMOTED, 1),
        (RunOutcome.EVALUATED, 1),
        (RunOutcome.PROMOTED, 2),
    ]


def test_the_same_evaluation_is_asked_once_and_joined_while_it_waits(world: World) -> None:
    drop(world, "a", "b")
    world.trainer = None
    evaluate(world, 1, "e1")
    world.run(timedelta(minutes=1))
    assert evaluate(world, 1, "e1")["run"] == world.head()["run"]
    assert evaluate(world, 1, "e2")["state"] == "accepted"
    assert evaluate(world, 1, "e3")["state"] == "joined"
    assert evaluate(world, 2, "e4")["state"] == "accepted"
    finish(world)
    assert len(world.runs()) == 5


def test_an_evaluation_of_nothing_is_refused(world: World) -> None:
    with pytest.raises(Refused, match="no model yet"):
        evaluate(world)
    drop(world, "a")
    with pytest.raises(NotFound, match="no version 9"):
        evaluate(world, 9)


def test_an_evaluation_that_fails_says_why_and_opens_no_breaker(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + "budget: {max_failures: 1}\n")
    drop(world, "a")
    world.trainer = lambda w, run: w.compute.fail(run, "the model wants a column that is gone")
    evaluate(world)
    world.run()
    run = world.runs()[-1]
    assert (run.state, run.outcome, run.reason) == (
        RunState.FAILED,
        RunOutcome.NO_MODEL,
        "the model wants a column that is gone",
    )
    assert not control.is_broken(world.ports.ledger, "p.demo")


def test_an_evaluation_helps_a_person_whose_breaker_is_open(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + "budget: {max_failures: 1}\n")
    drop(world, "a")
    world.trainer = lambda w, run: w.compute.fail(run, "no")
    drop(world, "b")
    assert control.is_broken(world.ports.ledger, "p.demo")
    with pytest.raises(Refused, match="training is stopped"):
        ask(world)
    world.trainer = lambda w, run: w.succeed(run, better=True)
    evaluate(world)
    world.run()
    assert world.runs()[-1].outcome is RunOutcome.EVALUATED


def test_a_spec_of_before_evaluations_is_equal_to_the_same_spec_of_today(world: World) -> None:
    drop(world, "a")
    spec = world.runs()[0].spec
    written = to_builtins(spec)
    assert written.pop("challenger") is None
    assert from_builtins(type(spec), written) == spec


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x,y\n1,0\n", "x,y,gate\n2,1,5\n"),
        ("x,y\n1,0\n", "gate,x,y\n5,2,1\n"),
        ("x,_z,y\n1,2,0\n", "x,_z,y,_gate\n2,3,1,5\n"),
        ("x,y,at\n1,0,2026-01-01\n", "x,y,at,gate\n1,0,2026-01-02,5\n"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_label_that_nobody_named_is_the_last_column_of_the_first_file(
    tmp_path: Path, first: str, second: str, together: bool
) -> None:
    world = World(tmp_path, YAML.replace("  label: y\n", "  event_time: at\n" if ",at" in first else ""))
    world.drop("demo/a.csv", first)
    if not together:
        world.run()
    world.drop("demo/b.csv", second)
    world.run()
    assert {each.spec.label for each in world.runs()} == {"y"}


def test_a_label_that_nobody_named_may_begin_with_an_underscore(tmp_path: Path) -> None:
    world = World(tmp_path, YAML.replace("  label: y\n", ""))
    world.drop("demo/a.csv", "x,_y\n1,0\n")
    world.run()
    assert world.runs()[-1].spec.label == "_y"


def test_a_label_that_nobody_named_is_the_last_column_of_an_evaluation_too(tmp_path: Path) -> None:
    world = World(tmp_path, YAML.replace("  label: y\n", ""))
    drop(world, "a")
    evaluate(world)
    world.run()
    assert world.runs()[-1].spec.label == "y"


# ------------------------------------------------------------------------------------------------ cancelling
def test_a_run_that_is_cancelled_before_it_reaches_the_compute_never_starts(world: World) -> None:
    drop(world, "a")
    ask(world)
    plan = train.plan_run(world.ports, "demo", world.settings, world.now)
    train.cancel_run(world.ports, "demo", plan["run"])
    world.run()
    run = world.runs()[-1]
    assert (run.state, run.reason) == (RunState.CANCELLED, "cancelled before it started")
    assert run.outcome is RunOutcome.NO_MODEL
    assert [each.run for each in world.compute.submitted] == [world.runs()[0].spec.run]
    assert not any(instance.alive for instance in world.instances.values())


@dataclass
class CancelledAtTheDoor:
    """A compute that hears of a run just after somebody has cancelled it."""

    inner: MemoryCompute
    ports: Ports

    def submit(self, spec: RunSpec) -> None:
        train.cancel_run(self.ports, spec.pipeline, spec.run)
        self.inner.submit(spec)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_run_that_is_cancelled_while_it_is_handed_over_is_ended(world: World) -> None:
    drop(world, "a")
    world.trainer = None
    ask(world)
    plan = train.plan_run(world.ports, "demo", world.settings, world.now)
    late = replace(world.ports, compute=CancelledAtTheDoor(world.compute, world.ports))
    train.submit_run(late, "demo", plan["run"])
    assert world.compute.status(plan["run"]).state is RunState.CANCELLED
    world.run()
    assert world.runs()[-1].state is RunState.CANCELLED


def test_cancelling_a_run_that_trains_ends_it_and_the_pipeline_goes_on(world: World) -> None:
    world.trainer = None
    world.drop("demo/a.csv")
    world.run(timedelta(minutes=1))
    run = world.head()["run"]
    for _ in range(2):
        train.cancel_run(world.ports, "demo", run)
    world.trainer = lambda w, run: w.succeed(run, better=True)
    world.run()
    drop(world, "b")
    assert [each.state for each in world.runs()] == [RunState.CANCELLED, RunState.SUCCEEDED]
