"""Going back to an earlier champion: which one that is, once and again, and while a candidate is on its way."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from dropforge.domain.causes import Cause
from dropforge.domain.errors import Refused
from dropforge.ports import Json
from dropforge.steps import alerts, deploy
from tests.unit.alert_bodies import notification
from tests.unit.flows.world import YAML, World

ALERTS = "alerts: [{rule: 'demo-*', action: rollback}]\n"
CANARY = YAML + ALERTS + "deployment: {canary: {steps: [10], bake: 10m}}\n"
BY_HAND = Cause("request-1", "http")


def world_with(folder: Path, versions: int, yaml: str = YAML + ALERTS) -> World:
    """So many models were promoted, one after the other."""
    world = World(folder, yaml)
    for number in range(versions):
        world.drop(f"demo/{number}.csv", f"x,y\n{number},0\n2,1\n")
        world.run()
    return world


def candidate(folder: Path) -> World:
    """Version 2 is the champion, and version 3 has a part of its traffic."""
    world = world_with(folder, 2, CANARY)
    world.drop("demo/c.csv", "x,y\n9,0\n2,1\n")
    world.run(timedelta(minutes=3))
    assert (world.champion(), served(world)) == (2, [3, 2])
    return world


def served(world: World) -> list[int]:
    found = world.serving.desired("demo")
    assert found is not None
    return [each.version for each in found.deployments]


def back(world: World, token: str) -> tuple[int | None, list[int]]:
    world.start(deploy.by_hand(world.ports, "demo", None, token=token, cause=BY_HAND))
    world.run()
    return world.champion(), served(world)


def fire(world: World, id_: str) -> Json:
    """An alert comes in; what became of it."""
    told = alerts.record(world.ports, notification(id_=id_), Cause("", "alert"), "http", world.now)
    for flow in told["start"]:
        world.start(flow)
    world.run(timedelta(minutes=5))
    (response,) = alerts.shown(alerts.read(world.ports, told["id"]))["responses"]
    return response  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ once and again
def test_going_back_twice_goes_back_two_champions_and_not_to_the_one_that_was_taken_off(tmp_path: Path) -> None:
    world = world_with(tmp_path, 3)
    assert back(world, "1") == (2, [2])
    assert back(world, "2") == (1, [1])
    with pytest.raises(Refused, match="no earlier champion of 'demo' to roll back to"):
        deploy.by_hand(world.ports, "demo", None, token="3", cause=BY_HAND)


def test_a_version_that_was_taken_off_and_promoted_again_is_on_top_again(tmp_path: Path) -> None:
    world = world_with(tmp_path, 3)
    back(world, "1")
    world.start(deploy.by_hand(world.ports, "demo", 3, token="2", cause=BY_HAND))
    world.run()
    assert world.champion() == 3
    assert back(world, "3") == (2, [2])


def test_alerts_that_go_on_never_put_back_what_the_first_one_took_off(tmp_path: Path) -> None:
    world = world_with(tmp_path, 3)
    champions = []
    for number in range(3):
        fire(world, f"a{number}")
        champions.append(world.champion())
        world.now += timedelta(minutes=16)
    assert champions == [2, 1, 1]


def test_asked_twice_before_the_first_has_gone_back_it_goes_back_once(tmp_path: Path) -> None:
    world = world_with(tmp_path, 3)
    for token in "12":
        world.start(deploy.by_hand(world.ports, "demo", None, token=token, cause=BY_HAND))
        deploy.publish_asked(
            world.ports, deploy.by_hand(world.ports, "demo", None, token=token, cause=BY_HAND), world.now
        )
    world.run()
    assert (world.champion(), served(world)) == (2, [2])
    (event,) = world.events.of("ModelRolledBack")
    assert (event.data["version"], event.data["rolled_back"]) == (2, 3)


# ------------------------------------------------------------------------------------------------ candidates
def test_going_back_while_a_candidate_is_on_its_way_ends_the_candidate_alone(tmp_path: Path) -> None:
    world = candidate(tmp_path)
    promotions = len(world.events.of("ModelPromoted"))
    assert back(world, "1") == (2, [2])
    (event,) = world.events.of("ModelRolledBack")
    assert (event.data["version"], event.data["rolled_back"]) == (2, 3)
    assert len(world.events.of("ModelPromoted")) == promotions
    assert back(world, "2") == (1, [1])


def test_an_alert_while_a_candidate_is_on_its_way_ends_the_candidate_alone(tmp_path: Path) -> None:
    world = candidate(tmp_path)
    assert fire(world, "a1")["state"] == "done"
    assert (world.champion(), served(world)) == (2, [2])


def test_an_alert_about_a_candidate_that_the_platform_took_back_takes_nothing_else_back(tmp_path: Path) -> None:
    world = candidate(tmp_path)
    head = world.ports.ledger.get("e.demo", "head")
    assert head is not None
    deploy.roll_back_deployment(world.ports, "demo", head.value["revision"], "version 3 failed 50 of 60", world.now)
    world.run(timedelta(minutes=3))

    told = fire(world, "a1")
    assert told["state"] == "refused"
    assert "the platform took the last deployment of 'demo' back" in told["detail"]
    assert (world.champion(), served(world)) == (2, [2])

    world.now += timedelta(minutes=15)
    assert fire(world, "a2")["state"] == "done"
    assert (world.champion(), served(world)) == (1, [1])
