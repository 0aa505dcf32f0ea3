"""An alert comes in, through whichever door and however often: each pipeline's first rule that fits acts, once."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.domain.causes import Cause
from dropforge.domain.errors import BadInput, NotFound
from dropforge.domain.runs import RunOutcome
from dropforge.ports import Json
from dropforge.steps import alerts, books, control, pipelines
from tests.unit.alert_bodies import log_v2, metric, notification, sample
from tests.unit.flows.world import YAML, World, bundle_of

CAUSE = Cause("", "alert")


def ruled(*rules: str, more: str = "") -> str:
    return YAML + "alerts:\n" + "".join(f"  - {each}\n" for each in rules) + more


def world_of(folder: Path, *rules: str, more: str = "") -> World:
    return World(folder, ruled(*rules, more=more))


def tell(world: World, body: Any, *, hops: int = 0, door: str = "http") -> Json:
    told = alerts.record(world.ports, body, Cause("", "alert", hops=hops), door, world.now)
    for flow in told["start"]:
        world.start(flow)
    return told


def states(world: World, id_: str) -> list[tuple[str, str, str]]:
    told = alerts.shown(alerts.read(world.ports, id_))
    return [(each["pipeline"], each["action"], each["state"]) for each in told["responses"]]


def paused(world: World) -> bool:
    return control.is_paused(world.ports.ledger, "p.demo")


def trained(world: World, files: str = "a") -> None:
    """One model after another is dropped, trained and promoted."""
    for name in files:
        world.drop(f"demo/{name}.csv")
        world.run()


RETRAIN = '{rule: "demo-*", action: retrain}'
ROLLBACK = '{rule: "demo-*", action: rollback}'
PAUSE = '{rule: "demo-*", action: pause, until: resolved}'
NOTIFY = '{rule: "demo-*", action: notify}'


# ------------------------------------------------------------------------------------------------ the actions
def test_retrain_trains_again_on_the_newest_data_because_of_the_alert(tmp_path: Path) -> None:
    world = world_of(tmp_path, RETRAIN)
    trained(world)
    told = tell(world, notification())
    world.run()
    assert states(world, told["id"]) == [("demo", "retrain", "done")]
    first, second = world.runs()
    assert (second.spec.dataset_version, second.outcome) == (1, RunOutcome.PROMOTED)
    assert second.cause is not None
    assert (second.cause.door, second.cause.id) == ("alert", told["alert_id"])
    assert first.cause != second.cause
    assert told["start"][0]["id"] == f"respond-{told['id']}-demo"
    assert not any(instance.alive for instance in world.instances.values())


def test_rollback_puts_the_champion_before_back(tmp_path: Path) -> None:
    world = world_of(tmp_path, ROLLBACK)
    trained(world, "abc")
    assert world.champion() == 3
    told = tell(world, notification())
    world.run()
    assert states(world, told["id"]) == [("demo", "rollback", "done")]
    assert world.champion() == 2
    (response,) = alerts.shown(alerts.read(world.ports, told["id"]))["responses"]
    assert response["detail"] == "puts version 2 back"


def test_a_storm_about_one_bad_model_puts_one_champion_back(tmp_path: Path) -> None:
    world = world_of(tmp_path, ROLLBACK)
    trained(world, "abc")
    ids = []
    for number in range(5):
        ids.append(tell(world, notification(id_=f"a{number}"))["id"])
        world.run(timedelta(minutes=1))
    assert world.champion() == 2
    assert [states(world, each)[0][2] for each in ids] == ["done"] + ["refused"] * 4


def test_rollback_without_an_earlier_champion_is_refused_and_says_so(tmp_path: Path) -> None:
    world = world_of(tmp_path, ROLLBACK)
    told = tell(world, notification())
    world.run()
    (response,) = alerts.shown(alerts.read(world.ports, told["id"]))["responses"]
    assert response["state"] == "refused" and "no earlier champion" in response["detail"]


def test_pause_holds_the_pipeline_until_its_alert_is_resolved(tmp_path: Path) -> None:
    world = world_of(tmp_path, PAUSE)
    told = tell(world, notification())
    world.run()
    assert paused(world)
    assert "alert rule 'demo-errors'" in control.read(world.ports.ledger, "p.demo")["paused"]["by"]
    trained(world)
    assert world.runs() == []
    tell(world, notification("Resolved"), door="event grid")
    world.run()
    assert states(world, told["id"]) == [("demo", "pause", "ended")]
    assert len(world.runs()) == 1


def test_a_pause_until_resumed_is_not_ended_by_resolved(tmp_path: Path) -> None:
    world = world_of(tmp_path, PAUSE.replace("resolved", "resumed"))
    told = tell(world, notification())
    world.run()
    tell(world, notification("Resolved"))
    world.run()
    assert paused(world)
    assert states(world, told["id"]) == [("demo", "pause", "done")]
    pipelines.resume(world.ports, "demo")
    assert not paused(world)


def test_a_pipeline_that_a_person_let_go_on_is_not_paused_again_by_the_same_alert(tmp_path: Path) -> None:
    world = world_of(tmp_path, PAUSE)
    tell(world, notification())
    world.run()
    pipelines.resume(world.ports, "demo")
    tell(world, notification())
    world.sweep()
    world.run()
    assert not paused(world)


def test_another_alerts_resolved_ends_no_pause(tmp_path: Path) -> None:
    world = world_of(tmp_path, PAUSE)
    tell(world, notification())
    world.run()
    tell(world, notification("Resolved", id_="a2"))
    world.run()
    assert paused(world)


def test_notify_tells_others_once(tmp_path: Path) -> None:
    world = world_of(tmp_path, NOTIFY)
    told = tell(world, notification())
    world.run()
    tell(world, notification())
    world.run()
    (event,) = world.events.of("AlertReceived")
    assert event.subject == f"pipelines/demo/alerts/{told['id']}"
    assert event.data["rule"] == "demo-errors" and event.data["severity"] == "Sev1"
    assert event.data["dimensions"] == [{"name": "endpoint", "value": "demo"}]
    assert event.hops == 1


def test_only_the_first_rule_that_fits_acts(tmp_path: Path) -> None:
    world = world_of(
        tmp_path, '{rule: "demo-*", severity: [Sev0], action: rollback}', NOTIFY, '{rule: "*", action: pause}'
    )
    told = tell(world, notification())
    world.run()
    assert states(world, told["id"]) == [("demo", "notify", "done")]


def test_each_pipeline_answers_by_its_own_rules(tmp_path: Path) -> None:
    world = world_of(tmp_path, NOTIFY)
    other = ruled('{rule: "*", dimensions: {endpoint: demo}, action: pause}').replace("name: demo", "name: other")
    pipelines.apply(world.ports, "other", bundle_of({"pipeline.yaml": other, "train.py": "1"}), world.now)
    told = tell(world, notification())
    world.run()
    assert states(world, told["id"]) == [("demo", "notify", "done"), ("other", "pause", "done")]
    assert not paused(world) and control.is_paused(world.ports.ledger, "p.other")


# ------------------------------------------------------------------------------------------------ once
def test_an_alert_is_answered_once_however_often_and_wherever_it_comes_in(tmp_path: Path) -> None:
    world = world_of(tmp_path, RETRAIN)
    trained(world)
    first = tell(world, notification())
    assert not first["repeated"]
    for door in ("http", "event grid"):
        assert tell(world, notification(), door=door)["repeated"]
    world.run()
    for _ in range(2):
        again = tell(world, notification())
        assert (again["repeated"], again["start"]) == (True, [])
        world.run()
    assert len(world.runs()) == 2
    assert [each for each in world.started if each.startswith("respond-")] == [f"respond-{first['id']}-demo"]


def test_two_hosts_that_take_in_one_alert_name_the_same_flow(tmp_path: Path) -> None:
    world = world_of(tmp_path, RETRAIN)
    told = [alerts.record(world.ports, notification(), CAUSE, "http", world.now) for _ in range(2)]
    assert told[0]["start"] == told[1]["start"] != []


def test_many_hosts_at_once_write_one_alert_and_name_one_flow(tmp_path: Path) -> None:
    world = world_of(tmp_path, PAUSE)
    bodies = [notification(), notification(), notification("Resolved"), notification()] * 8
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda body: alerts.record(world.ports, body, CAUSE, "http", world.now), bodies))
    assert sum(not each["repeated"] for each in told) == 2  # the first Fired and the first Resolved
    assert len({flow["id"] for each in told for flow in each["start"]}) == 1
    assert len(world.ports.ledger.scan(books.ALERTS, "alert/")) == 1
    assert len(world.ports.ledger.scan(books.ALERTS, "recent/")) == 1


def test_a_test_notification_is_answered_as_any_alert(tmp_path: Path) -> None:
    world = world_of(tmp_path, '{rule: "test-*", action: notify}')
    told = tell(world, sample("common_alert.metric.fired.test_action"))
    world.run()
    assert told["test"] and states(world, told["id"]) == [("demo", "notify", "done")]


@pytest.mark.parametrize("rule", [RETRAIN, ROLLBACK, PAUSE, PAUSE.replace("resolved", "resumed"), NOTIFY])
@pytest.mark.parametrize("times", [1, 2])
def test_every_order_of_every_delivery_ends_in_the_same_state(tmp_path: Path, rule: str, times: int) -> None:
    """Fired from two doors and Resolved, in any order, with a flow that runs between any two of them or not; and with
    every step run twice, as after a crash between effect and record."""
    bodies = [notification(), notification(), notification("Resolved")]
    ends = set()
    for order in itertools.permutations(range(3)):
        for between in (True, False):
            world = world_of(tmp_path, rule)
            trained(world, "ab")
            world.times = times
            for index in order:
                tell(world, bodies[index])
                if between:
                    world.run(timedelta(minutes=1))
            world.run()
            assert not world.ports.ledger.scan(books.ALERTS, "open/")
            ends.add((len(world.runs()), world.champion(), paused(world), len(world.events.of("AlertReceived"))))
    assert len(ends) == 1
    expected = {
        RETRAIN: (3, 3, False, 0),
        ROLLBACK: (2, 1, False, 0),
        PAUSE: (2, 2, False, 0),
        NOTIFY: (2, 2, False, 1),
    }
    assert ends == {expected.get(rule, (2, 2, True, 0))}


def test_resolved_never_starts_work(tmp_path: Path) -> None:
    for rule in (RETRAIN, ROLLBACK, PAUSE, NOTIFY):
        world = world_of(tmp_path, rule)
        trained(world, "ab")
        before = (world.champion(), len(world.runs()))
        told = tell(world, notification("Resolved"))
        world.run()
        world.sweep()
        world.run()
        assert told["start"] == [] and told["responses"] == []
        assert (world.champion(), len(world.runs())) == before
        assert not paused(world) and world.events.of("AlertReceived") == []


def test_resolved_that_comes_between_the_pause_and_its_record_ends_it(tmp_path: Path) -> None:
    world = world_of(tmp_path, PAUSE)
    told = alerts.record(world.ports, notification(), CAUSE, "http", world.now)
    done = alerts.act_on_alert(world.ports, told["id"], "demo", world.now)
    assert paused(world)
    # Resolved finds no pause that is written down as done, and nothing to end.
    alerts.record(world.ports, notification("Resolved"), CAUSE, "http", world.now)
    alerts.conclude_response(world.ports, told["id"], "demo", done["detail"], world.now)
    assert not paused(world)
    assert states(world, told["id"]) == [("demo", "pause", "ended")]


def test_a_flow_that_a_crash_swallowed_is_started_by_the_sweep(tmp_path: Path) -> None:
    world = world_of(tmp_path, NOTIFY)
    alerts.record(world.ports, notification(), CAUSE, "http", world.now)
    world.run()
    assert world.events.of("AlertReceived") == []
    world.sweep()
    world.run()
    assert len(world.events.of("AlertReceived")) == 1
    assert alerts.sweep(world.ports) == []


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["Fired", "Resolved"])), max_size=12), st.data())
def test_any_stream_of_alerts_leaves_nothing_open_and_no_pause_of_a_resolved_one(
    tmp_path: Path, stream: list[tuple[str, str]], data: st.DataObject
) -> None:
    world = world_of(tmp_path, PAUSE)
    for id_, condition in stream:
        tell(world, notification(condition, id_=id_))
        if data.draw(st.booleans()):
            world.run(timedelta(minutes=1))
    world.run()
    fired = {id_ for id_, condition in stream if condition == "Fired"}
    resolved = {id_ for id_, condition in stream if condition == "Resolved"}
    assert paused(world) is bool(fired - resolved)
    assert not world.ports.ledger.scan(books.ALERTS, "open/")


# ------------------------------------------------------------------------------------------------ kept and shown
def test_an_alert_that_no_rule_fits_is_kept_and_shown(tmp_path: Path) -> None:
    world = world_of(tmp_path, RETRAIN)
    told = tell(world, notification(alertRule="somebody-elses", context=log_v2({"a": "b"}), signalType="Log"))
    assert told["start"] == []
    ((shown,), following) = alerts.page(world.ports)
    assert following is None
    assert (shown["rule"], shown["signal"], shown["state"], shown["responses"]) == (
        "somebody-elses",
        "log",
        "fired",
        [],
    )
    assert shown["measured"][0] == {
        "what": "AppRequests | where Success == false",
        "operator": "GreaterThan",
        "threshold": 5.0,
        "value": 12.0,
    }


def test_alerts_are_shown_newest_first_in_pages_that_miss_none(tmp_path: Path) -> None:
    world = world_of(tmp_path, RETRAIN)
    told = []
    for number in range(7):
        rule = "demo-errors" if number % 2 else "other"
        told.append(tell(world, notification(id_=str(number), alertRule=rule))["id"])
        world.now += timedelta(seconds=1)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page, after = alerts.page(world.ports, limit=3, after=after)
        seen += [each["id"] for each in page]
    assert seen == told[::-1]
    mine, _ = alerts.page(world.ports, "demo")
    assert [each["id"] for each in mine] == told[5::-2]


def test_rules_that_come_later_answer_no_alert_of_before(tmp_path: Path) -> None:
    world = World(tmp_path)
    tell(world, notification())
    applied = bundle_of({"pipeline.yaml": ruled(NOTIFY), "train.py": "1"})
    pipelines.apply(world.ports, "demo", applied, world.now)
    assert tell(world, notification())["start"] == []


def test_what_is_no_alert_is_refused_and_an_event_of_it_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(BadInput, match="schemaId"):
        tell(world, {"schemaId": "AzureMonitorMetricAlert"})
    assert alerts.page(world.ports) == ([], None)
    for _ in range(2):
        alerts.keep_misfit(world.ports, "e1", "topic", {"x": "y" * 10_000}, "no alert", world.now)
    ((kept,), _) = alerts.misfits(world.ports)
    assert (kept["event"], kept["reason"], len(kept["body"])) == ("e1", "no alert", alerts.MAX_MISFIT)


def test_an_unknown_alert_and_one_that_asks_nothing_are_not_found(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(NotFound):
        alerts.read(world.ports, "nobody")
    told = tell(world, notification())
    with pytest.raises(NotFound, match="asks nothing of pipeline 'demo'"):
        alerts.plan_response(world.ports, told["id"], "demo", world.settings, world.now)


def test_an_alert_that_came_round_too_often_is_refused_and_noted_in_the_status(tmp_path: Path) -> None:
    world = world_of(tmp_path, RETRAIN)
    trained(world)
    told = tell(world, notification(), hops=6)
    world.run()
    assert states(world, told["id"]) == [("demo", "retrain", "refused")]
    assert len(world.runs()) == 1
    (noted,) = control.read(world.ports.ledger, "p.demo")["refused"]
    assert "6 hops" in noted["reason"]


def test_the_hops_of_an_alert_go_on_with_the_run_it_started(tmp_path: Path) -> None:
    world = world_of(tmp_path, RETRAIN)
    trained(world)
    tell(world, notification(), hops=4)
    world.run()
    assert world.runs()[-1].cause is not None and world.runs()[-1].cause.hops == 4
    assert max(event.hops for event in world.events.of("RunFinished")) == 5


def test_a_dimension_without_a_value_fits_no_rule_that_names_one(tmp_path: Path) -> None:
    world = world_of(tmp_path, '{rule: "*", dimensions: {endpoint: demo}, action: notify}')
    assert tell(world, notification(context=metric({})))["start"] == []
    assert tell(world, notification(id_="a2", context=metric({"Endpoint": "Demo"})))["start"] != []
