"""A deployment whose flow or host dies is taken up again, and alias and endpoint agree wherever that happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dropforge.adapters.registry import LedgerRegistry
from dropforge.domain.causes import Cause
from dropforge.domain.commands import Command, Kind
from dropforge.domain.endpoints import ReplicaState
from dropforge.domain.errors import Unavailable
from dropforge.domain.models import ModelVersion
from dropforge.ports import Json, Ports, Row
from dropforge.steps import alerts, commands, deploy
from tests.unit.alert_bodies import notification
from tests.unit.flows.test_commands import Crash, Crashes, CrashingLedger
from tests.unit.flows.world import YAML, World

ALERTS = "alerts: [{rule: 'demo-*', action: rollback}]\n"
# Only the first model becomes the champion by itself.
KEPT = YAML + "gate: {better: keep, first: always}\n"
STEPS = "deployment: {canary: {steps: [10], bake: 10m}}\n"
BY_HAND = Cause("request-1", "http")


def world_with(folder: Path, versions: int, yaml: str) -> World:
    world = World(folder, yaml)
    for number in range(versions):
        world.drop(f"demo/{number}.csv", f"x,y\n{number},0\n2,1\n")
        world.run()
    return world


def state(world: World) -> tuple[int | None, list[int], str]:
    """The champion, what the endpoint is to answer with, and how far it is."""
    head = world.ports.ledger.get("e.demo", "head")
    assert head is not None
    return world.champion(), [each["version"] for each in head.value["deployments"]], head.value["state"]


# ------------------------------------------------------------------------------------------------ flows that fail
def away(_: str) -> list[ReplicaState]:
    raise Unavailable("storage does not answer")


def unregistered(*_: object) -> ModelVersion:
    raise Unavailable("the registry does not answer")


def fails(world: World, until: timedelta = timedelta(minutes=5)) -> None:
    """Time passes until a flow fails."""
    with pytest.raises(Unavailable):
        world.run(until)
    for instance in world.instances.values():
        if instance.alive and instance.name in ("deploy", "respond"):
            instance.alive = False


def give(world: World, id_: str, kind: Kind, **arguments: object) -> Json:
    told = commands.accept(
        world.ports, world.settings, Command(id_, kind, "demo", dict(arguments), "ada", BY_HAND), world.now
    )
    for flow in told["start"]:
        world.start(flow)
    commands.carried(world.ports, told)
    return told


def sweep(world: World) -> None:
    """Every timer goes off, commands included."""
    world.sweep()
    for told in commands.sweep(world.ports, world.settings, world.now):
        for flow in told["start"]:
            world.start(flow)
        commands.carried(world.ports, told)


def test_a_candidate_by_hand_whose_flow_failed_is_watched_again(tmp_path: Path) -> None:
    world = world_with(tmp_path, 2, KEPT + STEPS)
    give(world, "m1", Kind.PROMOTE, version=2)
    world.run(timedelta(minutes=2))
    observe, world.serving.observe = world.serving.observe, away  # type: ignore[method-assign]
    fails(world)
    world.serving.observe = observe  # type: ignore[method-assign]
    assert state(world) == (1, [2, 1], "converging")

    world.now += timedelta(minutes=1)
    sweep(world)
    world.run()
    assert state(world) == (2, [2], "live")


def test_a_command_whose_deployment_was_never_published_is_carried_out_by_the_sweep(tmp_path: Path) -> None:
    world = world_with(tmp_path, 2, KEPT)
    give(world, "m1", Kind.PROMOTE, version=2)
    get, world.ports.registry.get = world.ports.registry.get, unregistered  # type: ignore[method-assign]
    fails(world)
    world.ports.registry.get = get  # type: ignore[method-assign]
    assert state(world) == (1, [1], "live")

    world.now += timedelta(minutes=1)
    sweep(world)
    world.run()
    assert state(world) == (2, [2], "live")
    world.started.clear()
    sweep(world)
    assert world.started == []


def test_a_command_that_never_came_to_be_does_not_undo_a_later_one(tmp_path: Path) -> None:
    world = world_with(tmp_path, 3, KEPT)
    give(world, "m1", Kind.PROMOTE, version=2)
    get, world.ports.registry.get = world.ports.registry.get, unregistered  # type: ignore[method-assign]
    fails(world)
    world.ports.registry.get = get  # type: ignore[method-assign]
    world.now += timedelta(seconds=10)
    give(world, "m2", Kind.PROMOTE, version=3)
    world.run()

    world.now += timedelta(minutes=1)
    sweep(world)
    world.run()
    assert state(world) == (3, [3], "live")


@pytest.mark.parametrize("published", [False, True])
def test_an_alerts_rollback_whose_flow_failed_is_taken_up_again(tmp_path: Path, published: bool) -> None:
    world = world_with(tmp_path, 2, YAML + ALERTS)
    told = alerts.record(world.ports, notification(), Cause("", "alert"), "http", world.now)
    observe = world.serving.observe
    if published:
        world.serving.observe = away  # type: ignore[method-assign]
    for flow in told["start"]:
        world.start(flow)
    if not published:
        plan = alerts.plan_response(world.ports, told["id"], "demo", world.settings, world.now)
        assert plan == {"action": "rollback"}
        get, world.ports.registry.get = world.ports.registry.get, unregistered  # type: ignore[method-assign]
    fails(world)
    world.serving.observe = observe  # type: ignore[method-assign]
    if not published:
        world.ports.registry.get = get  # type: ignore[method-assign]
    assert world.champion() == 2

    world.sweep()
    world.run()
    assert state(world) == (1, [1], "live")


def test_the_sweep_starts_no_deployment_that_lives_and_none_of_a_run(tmp_path: Path) -> None:
    world = world_with(tmp_path, 1, YAML + STEPS)
    world.drop("demo/b.csv", "x,y\n9,0\n2,1\n")
    world.run(timedelta(minutes=3))
    assert state(world) == (1, [2, 1], "converging")
    assert deploy.sweep(world.ports) == []
    world.run()

    world.start(deploy.by_hand(world.ports, "demo", 1, token="1", cause=BY_HAND))
    world.run(timedelta(minutes=3))
    (flow,) = deploy.sweep(world.ports)
    assert world.instances[flow["id"]].alive
    assert flow["input"] == world.instances[flow["id"]].context.asked
    world.run()
    assert deploy.sweep(world.ports) == []


# ------------------------------------------------------------------------------------------------ between the writes
class EveryCall(CrashingLedger):
    """A host that may also die, or be overtaken, before it reads."""

    def get(self, partition: str, key: str) -> Row | None:
        self._crashes.place()
        return super().get(partition, key)


def shaky(world: World, crashes: Crashes) -> Ports:
    ledger = EveryCall(world.ports.ledger, crashes)
    return replace(world.ports, ledger=ledger, registry=LedgerRegistry(ledger, world.ports.artifacts))


def published(world: World, version: int, token: str) -> Json:
    told = deploy.publish_deployment(world.ports, "demo", version, None, token, world.settings, world.now)
    world._replica_looks("demo")
    return told


def confirmed(ports: Ports, world: World, version: int, told: Json) -> Json:
    return deploy.confirm_deployment(ports, "demo", version, "demo", told["revision"], world.now)


def serves_and_comes(world: World, version: int) -> Json:
    told = published(world, version, "other")
    assert confirmed(world.ports, world, version, told)["state"] == "live"
    return told


ENDS: dict[str, Callable[[World, int, Json], object]] = {
    "comes": lambda world, version, told: confirmed(world.ports, world, version, told),
    "fails": lambda world, version, told: deploy.roll_back_deployment(
        world.ports, "demo", told["revision"], "it cannot be loaded", world.now
    ),
}


def places(tmp_path: Path, act: Callable[[World, Crashes, Ports], None]) -> int:
    """Do it in worlds of their own, with something happening at one place after the other; how many there are."""
    for place in range(1, 100):
        world = world_with(tmp_path, 3, KEPT)
        crashes = Crashes()
        crashes.at = place
        act(world, crashes, shaky(world, crashes))
        if crashes.at is not None:
            return place - 1
        champion, answers, how = state(world)
        assert ([champion], how) == (answers, "live"), f"at place {place}"
    raise AssertionError("it never ends")


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("end", sorted(ENDS))
def test_whatever_is_published_meanwhile_the_champion_is_what_answers(tmp_path: Path, version: int, end: str) -> None:
    def act(world: World, crashes: Crashes, ports: Ports) -> None:
        told = published(world, 2, "one")
        other: list[Json] = []
        crashes.instead = lambda: other.append(published(world, version, "other"))
        confirmed(ports, world, 2, told)
        for each in other:
            ENDS[end](world, version, each)

    assert places(tmp_path, act) > 8


@pytest.mark.parametrize("version", [1, 3])
def test_whatever_becomes_champion_meanwhile_is_what_answers(tmp_path: Path, version: int) -> None:
    def act(world: World, crashes: Crashes, ports: Ports) -> None:
        if version == 3:
            # The alias is to come back to where it was.
            serves_and_comes(world, 3)
        told = published(world, 2, "one")

        def meanwhile() -> None:
            confirmed(world.ports, world, version, published(world, version, "again"))

        crashes.instead = meanwhile
        assert confirmed(ports, world, 2, told)["state"] in ("live", "superseded")

    assert places(tmp_path, act) > 8


@pytest.mark.parametrize("end", sorted(ENDS))
def test_a_host_that_dies_while_it_confirms_is_healed_by_the_flow_itself(tmp_path: Path, end: str) -> None:
    def act(world: World, crashes: Crashes, ports: Ports) -> None:
        told = published(world, 2, "one")
        try:
            confirmed(ports, world, 2, told)
        except Crash:
            again = published(world, 2, "one")
            if again["state"] == "published":
                ENDS[end](world, 2, again)

    assert places(tmp_path, act) > 8


@pytest.mark.parametrize("end", sorted(ENDS))
def test_a_host_that_dies_while_it_confirms_is_healed_by_the_next_deployment(tmp_path: Path, end: str) -> None:
    def act(world: World, crashes: Crashes, ports: Ports) -> None:
        told = published(world, 2, "one")
        try:
            confirmed(ports, world, 2, told)
        except Crash:
            ENDS[end](world, 3, published(world, 3, "other"))

    assert places(tmp_path, act) > 8


def test_going_back_from_a_champion_that_is_half_confirmed_goes_to_the_one_before_it(tmp_path: Path) -> None:
    def act(world: World, crashes: Crashes, ports: Ports) -> None:
        told = published(world, 2, "one")
        try:
            confirmed(ports, world, 2, told)
        except Crash:
            world.start(deploy.by_hand(world.ports, "demo", None, token="back", cause=BY_HAND))
            world.run()
            assert world.champion() == 1

    assert places(tmp_path, act) > 8
