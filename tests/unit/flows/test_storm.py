"""Storms end: budgets, cool-down, breaker and hops hold, nothing that is held is lost, and the rehearsal says so before."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.domain.causes import Cause
from dropforge.domain.errors import BadInput, BadSpec, NotFound
from dropforge.domain.runs import RunState
from dropforge.ports import Insert, Json, Replace
from dropforge.steps import alerts, control, intake, pipelines, train
from tests.unit.alert_bodies import metric, notification
from tests.unit.flows.world import START, YAML, World, bundle_of


def budget(**keys: object) -> str:
    return f"budget: {{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}\n"


RETRAIN = 'alerts:\n  - {rule: "demo-*", action: retrain}\n'


def drop(world: World, name: str, text: str = "x,y\n1,0\n2,1\n") -> None:
    world.drop(f"demo/{name}.csv", text)
    world.run(timedelta(minutes=2))


def tell(world: World, body: Any, hops: int = 0) -> Json:
    told = alerts.record(world.ports, body, Cause("", "alert", hops=hops), "http", world.now)
    for flow in told["start"]:
        world.start(flow)
    return told


def wait(world: World, **time: float) -> None:
    """Time passes, whether there is anything to do in it or not."""
    until = world.now + timedelta(**time)
    world.run(timedelta(**time))
    world.now = max(world.now, until)


def resume(world: World) -> None:
    for flow in pipelines.resume(world.ports, "demo"):
        world.start(flow)


def starts(world: World) -> list[datetime]:
    return [run.planned_at for run in world.runs()]


# ------------------------------------------------------------------------------------------------ cool-down, budget
def test_two_runs_start_no_closer_than_the_cool_down(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + budget(cool_down="6h"))
    for name in "abcd":
        drop(world, name)
    assert len(world.runs()) == 1
    world.run(timedelta(days=1))
    first, second = world.runs()
    assert second.planned_at == first.planned_at + timedelta(hours=6)
    # What came during the rest is one run of the newest data.
    assert second.spec.dataset_version == 4


def test_a_request_waits_for_the_cool_down_too_and_says_until_when(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + budget(cool_down="6h"))
    drop(world, "a")
    until = world.runs()[0].planned_at + timedelta(hours=6)
    told = train.ask(world.ports, "demo", "t", Cause("r", "http"), world.now)
    assert told["waits_for"] == f"budget.cool_down holds it until {until.isoformat()}"
    for flow in told["start"]:
        world.start(flow)
    world.run(timedelta(days=1))
    assert starts(world)[1] == until


def test_an_evaluation_does_not_wait_for_the_cool_down_of_a_training_in_line_before_it(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + budget(cool_down="6h"))
    drop(world, "a")
    wait(world, minutes=1)
    for told in (
        train.ask(world.ports, "demo", "t", Cause("r", "http"), world.now),
        train.ask_evaluation(world.ports, "demo", None, "e", Cause("r", "http"), world.now),
    ):
        for flow in told["start"]:
            world.start(flow)
    world.run(timedelta(minutes=5))
    assert [run.spec.challenger is not None for run in world.runs()] == [False, True]
    world.run(timedelta(days=1))
    assert len(world.runs()) == 3


def test_minutes_of_failed_runs_count_too(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + budget(training_minutes_per_day=30, max_failures=9))
    world.trainer = None
    drop(world, "a")
    world.now += timedelta(minutes=31)
    world.compute.begin(world.head()["run"])
    world.now += timedelta(minutes=31)
    world.compute.fail(world.head()["run"], "ran for long, and then this")
    world.run(timedelta(minutes=5))
    (failed,) = world.runs()
    assert failed.seconds == 31 * 60
    drop(world, "b")
    assert len(world.runs()) == 1
    world.run(timedelta(days=2))
    assert len(world.runs()) == 2


def test_a_thousand_alerts_are_a_few_runs(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + RETRAIN + budget(cool_down="1h"))
    drop(world, "a")
    for number in range(1000):
        tell(world, notification(id_=str(number)))
        if number % 100 == 0:
            world.run(timedelta(minutes=1))
    world.run(timedelta(days=3))
    assert len(world.runs()) == 2
    seen, after = alerts.page(world.ports, limit=1000)
    assert after is None and len(seen) == 1000
    assert {each["responses"][0]["state"] for each in seen} == {"done"}


# ------------------------------------------------------------------------------------------------ breaker
def fails(world: World, run: str) -> None:
    world.compute.fail(run, "the training command exited with code 1: ValueError: no")


def test_failures_in_a_row_stop_training_until_a_person_resets_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.trainer = fails
    for name in "abcde":
        drop(world, name)
    assert [run.state for run in world.runs()] == [RunState.FAILED] * 3
    trouble = control.trouble(world.ports.ledger, "p.demo") or ""
    assert "3 runs in a row left no usable model" in trouble and "ValueError: no" in trouble and "`resume`" in trouble
    # Files are still taken in.
    assert world.head()["version"] == 5
    world.trainer = lambda w, run: w.succeed(run, better=True)
    world.sweep()
    world.run()
    assert len(world.runs()) == 3
    resume(world)
    world.run()
    assert world.runs()[-1].spec.dataset_version == 5
    assert control.trouble(world.ports.ledger, "p.demo") is None


def test_new_code_alone_does_not_close_the_breaker(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + budget(max_failures=1))
    world.trainer = fails
    drop(world, "a")
    mended = bundle_of({"pipeline.yaml": YAML + budget(max_failures=1), "train.py": "2"})
    world.trainer = lambda w, run: w.succeed(run, better=True)
    assert pipelines.apply(world.ports, "demo", mended, world.now)["start"] == []
    resume(world)
    world.run()
    assert [run.state for run in world.runs()] == [RunState.FAILED, RunState.SUCCEEDED]


def test_a_run_that_a_person_cancelled_is_no_failure(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + budget(max_failures=1))
    world.trainer = lambda w, run: w.compute.cancel(run)
    for name in "abc":
        drop(world, name)
    assert len(world.runs()) == 3
    assert not control.is_broken(world.ports.ledger, "p.demo")


def test_a_refused_model_is_no_failure(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + budget(max_failures=1))
    world.trainer = lambda w, run: w.succeed(run, better=False)
    for name in "abc":
        drop(world, name)
    assert len(world.runs()) == 3


def test_the_breaker_opens_at_the_same_run_when_every_step_runs_twice(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.times, world.trainer = 2, fails
    for name in "abcde":
        drop(world, name)
    assert len(world.runs()) == 3


def test_an_alert_asks_in_vain_while_the_breaker_is_open(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + RETRAIN + budget(max_failures=1))
    world.trainer = fails
    drop(world, "a")
    told = tell(world, notification())
    world.run()
    (response,) = alerts.shown(alerts.read(world.ports, told["id"]))["responses"]
    assert response["state"] == "refused" and "training is stopped" in response["detail"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["drop", "alert", "fail", "succeed", "resume", "hour"]), max_size=25))
def test_whatever_storm_comes_the_limits_hold(tmp_path: Path, storm: list[str]) -> None:
    world = World(tmp_path, YAML + RETRAIN + budget(cool_down="2h", runs_per_day=3, max_failures=2))
    in_a_row = 0
    for number, event in enumerate(storm):
        match event:
            case "drop":
                world.drop(f"demo/{number:02}.csv", f"x,y\n{number},0\n2,1\n")
            case "alert":
                tell(world, notification(id_=str(number)))
            case "fail":
                world.trainer = fails
            case "succeed":
                world.trainer = lambda w, run: w.succeed(run, better=True)
            case "resume":
                resume(world)
        world.run(timedelta(hours=1) if event == "hour" else timedelta(minutes=5))
    world.run(timedelta(days=4))
    begun = starts(world)
    assert all(later - earlier >= timedelta(hours=2) for earlier, later in pairwise(begun))
    assert all(sum(at <= each < at + timedelta(days=1) for each in begun) <= 3 for at in begun)
    for run in world.runs():
        in_a_row = in_a_row + 1 if run.state is RunState.FAILED else 0
    assert control.is_broken(world.ports.ledger, "p.demo") or in_a_row < 2
    # Nothing that may be trained on is left lying.
    held = control.is_broken(world.ports.ledger, "p.demo") or not world.head()["version"]
    assert held or (train.wake_training(world.ports, "demo") is None and world.head()["asked"] == [])


# ------------------------------------------------------------------------------------------------ loops
def test_a_flow_that_feeds_itself_stops_at_the_limit_and_says_so(tmp_path: Path) -> None:
    """Somebody listens to RunFinished and asks for the next run because of it, naming its hops."""
    world = World(tmp_path)
    drop(world, "a")
    cause, rounds = Cause("ada", "http"), 0
    while True:
        told = train.ask(world.ports, "demo", f"round {rounds}", cause, world.now)
        for flow in told["start"]:
            world.start(flow)
        world.run()
        event = world.events.of("RunFinished")[-1]
        cause, rounds = Cause(event.id, "http", hops=event.hops), rounds + 1
        if cause.hops > world.settings.max_hops:
            break
    with pytest.raises(Exception, match="6 hops from where it began"):
        train.ask(world.ports, "demo", "one more", cause, world.now)
    assert rounds == 6 and len(world.runs()) == 7
    (noted,) = control.read(world.ports.ledger, "p.demo")["refused"]
    assert event.id in noted["what"]


def test_data_that_came_round_too_often_is_kept_and_not_trained_on_by_itself(tmp_path: Path) -> None:
    world = World(tmp_path)
    drop(world, "a")
    row = world.ports.ledger.get("p.demo", "dataset/00000001")
    assert row is not None
    looped = {**row.value, "version": 2, "cause": {"id": "e", "door": "storage", "correlation": None, "hops": 6}}
    head = world.head()
    world.ports.ledger.commit("p.demo", [Insert("dataset/00000002", looped)])
    kept = world.ports.ledger.get("p.demo", "head")
    assert kept is not None
    world.ports.ledger.commit("p.demo", [Replace("head", {**head, "version": 2}, kept.etag)])
    world.sweep()
    world.run()
    assert len(world.runs()) == 1
    assert "6 hops" in control.read(world.ports.ledger, "p.demo")["refused"][0]["reason"]
    # A person may.
    told = train.ask(world.ports, "demo", "t", Cause("r", "http"), world.now)
    for flow in told["start"]:
        world.start(flow)
    world.run()
    assert len(world.runs()) == 2


# ------------------------------------------------------------------------------------------------ the rehearsal
def rehearse(world: World, days: int = 7, spec: str | None = None) -> Json:
    told = alerts.dry_run(world.ports, "demo", days, world.now, spec)
    (one,) = told["pipelines"]
    return one  # type: ignore[no-any-return]


def command(world: World, name: str) -> None:
    """A command as the ledger keeps it."""
    value = {"id": name, "command": name, "asked_at": world.now.isoformat(), "outcome": {"state": "done"}}
    world.ports.ledger.commit("p.demo", [Insert(f"command/{name}", value)])


def test_the_rehearsal_of_what_is_applied_says_what_was_done(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + RETRAIN + budget(cool_down="1h"))
    for number in range(6):
        if number % 2:
            tell(world, notification(id_=str(number)))
        else:
            drop(world, str(number))
        wait(world, minutes=40)
    wait(world, hours=6)
    told = rehearse(world)
    assert told["events"] == {"alerts": 3, "unmatched_alerts": 0, "drops": 3, "dataset_versions": 3, "commands": 0}
    assert told["runs"] == len(world.runs())
    assert told["rules"][0] == {"rule": "demo-*", "action": "retrain", "matched": 3, **_counts(told, "alert")}
    assert told["held_by"]["cool_down"] > 0


def _counts(told: Json, kind: str) -> dict[str, int]:
    results = [each["result"] for each in told["log"] if each["event"] == kind and each["rule"] is not None]
    return {result: results.count(result) for result in set(results)}


def test_other_rules_can_be_tried_before_they_are_applied(tmp_path: Path) -> None:
    world = World(tmp_path)
    drop(world, "a")
    for number in range(10):
        wait(world, minutes=1)
        tell(world, notification(id_=str(number), severity=f"Sev{number % 2}"))
    tell(world, notification(id_="other", alertRule="somebody-elses"))
    before = world.ports.ledger.scan("p.demo")
    assert rehearse(world)["rules"] == []
    assert rehearse(world)["events"]["unmatched_alerts"] == 11
    tried = (
        YAML
        + 'alerts:\n  - {rule: "demo-*", severity: [Sev0], action: rollback}\n  - {rule: "demo*", action: notify}\n'
    )
    told = rehearse(world, spec=tried)
    rollback, notify = told["rules"]
    assert (rollback["matched"], rollback["acted"], rollback["refused"]) == (5, 1, 4)
    assert (notify["matched"], notify["acted"]) == (5, 5)
    assert told["held_by"] == {"rollback_rest": 4}
    assert told["events"]["unmatched_alerts"] == 1
    assert world.ports.ledger.scan("p.demo") == before


def test_a_breaker_that_would_have_opened_is_seen(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + budget(max_failures=9))
    world.trainer = fails
    for name in "abcd":
        drop(world, name)
        wait(world, hours=1)
    told = rehearse(world, spec=YAML + budget(max_failures=2))
    assert (told["runs"], told["broken"]) == (2, True)
    assert told["held_by"] == {"breaker": 2}
    assert "opens the breaker" in told["log"][1]["detail"]


def test_pauses_and_commands_are_played_too(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + 'alerts:\n  - {rule: "demo-*", action: pause, until: resolved}\n')
    drop(world, "a")
    wait(world, minutes=1)
    # A batch that is cut already is finished while the pipeline is paused.
    world.drop("demo/b.csv")
    assert intake.cut_batch(world.ports, "demo", world.now) == 2
    tell(world, notification())
    wait(world, minutes=1)
    assert world.head()["version"] == 2
    tell(world, notification("Resolved", resolvedDateTime=world.now.isoformat()))
    for name in ("train", "pause", "resume"):
        wait(world, minutes=10)
        command(world, name)
    wait(world, minutes=1)
    told = rehearse(world)
    actions = [(each["event"], each["action"], each["result"]) for each in told["log"]]
    assert ("alert", "pause", "acted") in actions
    assert ("data", "train", "delayed") in actions
    assert ("resolved", "resume", "acted") in actions
    assert actions[-3:] == [
        ("command", "train", "acted"),
        ("command", "pause", "acted"),
        ("command", "resume", "acted"),
    ]
    assert told["runs"] == 3


def test_only_the_days_asked_about_are_played(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + RETRAIN)
    drop(world, "a")
    tell(world, notification(id_="old"))
    world.run(timedelta(days=1))
    world.now = START + timedelta(days=10)
    tell(world, notification(id_="new"))
    world.run()
    assert rehearse(world, 7)["events"]["alerts"] == 1
    assert rehearse(world, 30)["events"]["alerts"] == 2


@pytest.mark.parametrize(
    ("pipeline", "days", "spec", "error"),
    [
        ("demo", 0, None, BadInput),
        ("demo", 367, None, BadInput),
        ("dmeo", 7, None, NotFound),
        ("other", 7, YAML, BadInput),
        ("demo", 7, "name: demo", BadSpec),
    ],
)
def test_a_rehearsal_of_nothing_is_refused(
    tmp_path: Path, pipeline: str, days: int, spec: str | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        alerts.dry_run(World(tmp_path).ports, pipeline, days, START, spec)


def test_every_pipeline_is_rehearsed_when_none_is_named(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + RETRAIN)
    other = (YAML + RETRAIN).replace("name: demo", "name: other")
    pipelines.apply(world.ports, "other", bundle_of({"pipeline.yaml": other, "train.py": "1"}), world.now)
    tell(world, notification(context=metric({})))
    told = alerts.dry_run(world.ports, None, 7, world.now + timedelta(minutes=1))
    assert [each["pipeline"] for each in told["pipelines"]] == ["demo", "other"]
    assert [each["rules"][0]["refused"] for each in told["pipelines"]] == [1, 1]
