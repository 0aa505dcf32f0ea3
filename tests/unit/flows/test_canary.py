"""A promoted model gets the traffic in steps: flows and steps that ship, in a world in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dropforge.domain.causes import Cause
from dropforge.domain.endpoints import Desired, Mirrored, ReplicaState, VersionState
from dropforge.domain.runs import RunOutcome
from dropforge.steps import canary, deploy, reports
from tests.unit.flows.world import START, YAML, World

CANARY = YAML + "deployment: {timeout: 30s, canary: {steps: [5, 25], bake: 2m, min_requests: 100}}\n"
MIRROR = YAML + "deployment: {canary: {steps: [50], bake: 1m, mirror: 20}}\n"


class Replica:
    """Answers a thousand requests a look, as the traffic says; the candidate (v2) fails a share of its own."""

    def __init__(self, world: World, *, failing: float = 0.0, requests: int = 1000) -> None:
        self.world, self.failing, self.requests = world, failing, requests
        self.started_at = START
        self.seen: list[tuple[int, tuple[tuple[int, int, int], ...]]] = []

    def __call__(self, desired: Desired) -> ReplicaState:
        split = tuple((each.version, each.traffic, each.mirror) for each in desired.deployments)
        if not self.seen or self.seen[-1][0] != desired.revision:
            self.seen.append((desired.revision, split))
        states = []
        for version, traffic, mirror in split:
            asked, copies = self.requests * traffic // 100, self.requests * mirror // 100
            share = self.failing if version == 2 else 0.0
            states.append(
                VersionState(
                    version,
                    traffic,
                    asked,
                    int(asked * share),
                    mirror=mirror,
                    mirrored=Mirrored(copies, int(copies * share)),
                )
            )
        served = self.world.serves(desired)
        return replace(served, states=tuple(states), started_at=self.started_at)


def promoted(world: World, replica: Replica) -> None:
    """The second model of the pipeline is promoted."""
    for name in "ab":
        world.replica = replica
        world.drop(f"demo/{name}.csv")
        world.run()


def test_the_traffic_moves_in_steps_each_a_revision_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path, CANARY)
    replica = Replica(world, requests=4000)
    world.replica = replica
    world.drop("demo/a.csv")
    world.run()
    assert replica.seen == [(1, ((1, 100, 0),))]
    begun = world.now
    world.drop("demo/b.csv")
    world.run()
    assert replica.seen[1:] == [
        (2, ((2, 5, 0), (1, 95, 0))),
        (3, ((2, 25, 0), (1, 75, 0))),
        (4, ((2, 100, 0),)),
    ]
    assert world.champion() == 2 and world.runs()[-1].outcome is RunOutcome.PROMOTED
    assert timedelta(minutes=4) < world.now - begun < timedelta(minutes=5)
    (told,) = [each for each in world.events.of("ModelPromoted") if each.data["version"] == 2]
    assert told.data["revision"] == 4


def test_a_candidate_that_fails_is_rolled_back_at_once_with_the_reason(tmp_path: Path) -> None:
    world = World(tmp_path, CANARY)
    replica = Replica(world, failing=0.4)
    begun = world.now
    promoted(world, replica)
    assert world.now - begun < timedelta(minutes=1)
    assert [split for _, split in replica.seen] == [((1, 100, 0),), ((2, 5, 0), (1, 95, 0)), ((1, 100, 0),)]
    assert world.champion() == 1
    assert world.runs()[-1].outcome is RunOutcome.ROLLED_BACK
    endpoint = reports.status(world.ports, "demo")["endpoint"]
    assert endpoint["reason"].startswith("at 5 percent of the traffic, version 2 failed 20 of 50 requests; version 1")
    (told,) = world.events.of("ModelRolledBack")
    assert (told.data["version"], told.data["rolled_back"]) == (1, 2)


def test_with_a_mirror_a_candidate_that_fails_never_gets_any_traffic(tmp_path: Path) -> None:
    world = World(tmp_path, MIRROR)
    replica = Replica(world, failing=0.4)
    promoted(world, replica)
    assert [split for _, split in replica.seen] == [((1, 100, 0),), ((2, 0, 20), (1, 100, 0)), ((1, 100, 0),)]
    assert world.champion() == 1


def test_with_a_mirror_a_good_candidate_gets_copies_first(tmp_path: Path) -> None:
    world = World(tmp_path, MIRROR)
    replica = Replica(world)
    promoted(world, replica)
    assert [split for _, split in replica.seen][1:] == [
        ((2, 0, 20), (1, 100, 0)),
        ((2, 50, 20), (1, 50, 0)),
        ((2, 100, 0),),
    ]
    assert world.champion() == 2


def test_an_endpoint_that_nobody_asks_is_deployed_all_the_same_only_later(tmp_path: Path) -> None:
    world = World(tmp_path, CANARY)
    begun = world.now
    promoted(world, Replica(world, requests=0))
    assert world.champion() == 2
    assert timedelta(minutes=12) < world.now - begun < timedelta(minutes=14)


def test_rolling_back_by_hand_goes_by_no_steps(tmp_path: Path) -> None:
    world = World(tmp_path, CANARY)
    replica = Replica(world, requests=4000)
    promoted(world, replica)
    world.start(deploy.by_hand(world.ports, "demo", None, token="1", cause=Cause("request-1", "http")))
    world.run()
    assert world.champion() == 1
    assert replica.seen[-1] == (5, ((1, 100, 0),))
    assert len(replica.seen) == 5


def test_a_replica_that_was_started_again_meanwhile_fails_the_candidate(tmp_path: Path) -> None:
    world = World(tmp_path, CANARY)
    replica = Replica(world)

    def crashing(desired: Desired) -> ReplicaState:
        if world.now - START > timedelta(seconds=60):
            replica.started_at = START + timedelta(seconds=55)
        return replica(desired)

    world.replica = crashing
    for name in "ab":
        world.drop(f"demo/{name}.csv")
        world.run()
    assert world.champion() == 1
    reason = reports.status(world.ports, "demo")["endpoint"]["reason"]
    assert reason == "replica r1 was started again while version 2 was watched"


def test_replicas_that_vanish_while_it_is_watched_fail_the_candidate(tmp_path: Path) -> None:
    world = World(tmp_path, CANARY)
    replica = Replica(world)
    world.replica = replica
    world.drop("demo/a.csv")
    world.run()

    def vanishing(desired: Desired) -> ReplicaState:
        # What is observed of a revision nobody serves.
        state = replica(desired)
        return state if world.log[-1] != "observe_canary" else replace(state, revision=1)

    world.replica = vanishing
    world.drop("demo/b.csv")
    world.run()
    assert world.champion() == 1
    assert "no replica that serves it reports" in reports.status(world.ports, "demo")["endpoint"]["reason"]


def test_a_newer_deployment_takes_the_place_of_one_that_is_being_watched(tmp_path: Path) -> None:
    world = World(tmp_path, CANARY)
    replica = Replica(world, requests=4000)
    world.replica = replica
    world.drop("demo/a.csv")
    world.run()
    world.drop("demo/b.csv")
    world.run(timedelta(seconds=40))
    assert world.serving.desired("demo").deployments[0].traffic == 5  # type: ignore[union-attr]
    world.start(deploy.by_hand(world.ports, "demo", 1, token="5", cause=Cause("request-1", "http")))
    world.run()
    assert world.champion() == 1
    assert replica.seen[-1][1] == ((1, 100, 0),)
    assert not any(instance.alive for instance in world.instances.values())


@pytest.mark.parametrize("yaml", [CANARY, MIRROR])
def test_a_host_that_dies_after_every_effect_ends_in_the_same_state(tmp_path: Path, yaml: str) -> None:
    ends = []
    for times in (1, 2, 3):
        world = World(tmp_path, yaml)
        world.times = times
        replica = Replica(world, requests=4000)
        promoted(world, replica)
        ends.append((world.champion(), replica.seen, world.log))
    assert ends[1:] == [ends[0]] * 2
    assert ends[0][0] == 2


def test_a_stage_of_a_deployment_that_is_over_is_not_moved_on_from(tmp_path: Path) -> None:
    world = World(tmp_path, CANARY)
    promoted(world, Replica(world, requests=4000))
    assert canary.advance_deployment(world.ports, "demo", 2, world.now)["state"] == "superseded"
    assert canary.observe_canary(world.ports, "demo", 2, world.now)["state"] == "superseded"


def test_without_a_canary_the_flow_asks_for_what_it_always_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    promoted(world, Replica(world))
    asked = [name for name in world.log if "deployment" in name or "canary" in name]
    assert asked == ["publish_deployment", "observe_deployment", "confirm_deployment"] * 2
