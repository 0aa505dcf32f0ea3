"""What replicas are told of a model version beside where it lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dropforge.domain.causes import Cause
from dropforge.domain.endpoints import Desired, ReplicaState
from dropforge.domain.models import Lineage, ModelVersion
from dropforge.domain.runs import RunResult
from dropforge.ports import Json
from dropforge.steps import books, deploy, desired
from dropforge.wire import from_builtins, to_builtins
from tests.unit.flows.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two models of a pipeline were promoted."""
    made = World(tmp_path)
    for name in "ab":
        made.drop(f"demo/{name}.csv")
        made.run()
    return made


def wanted(world: World) -> Desired:
    found = world.ports.serving.desired("demo")
    assert found is not None
    return found


def test_a_run_may_not_change_what_the_endpoint_takes(world: World) -> None:
    assert (wanted(world).signature, world.champion()) == ("same", 2)


def test_somebody_may(world: World) -> None:
    world.start(deploy.by_hand(world.ports, "demo", 1, token="1", cause=Cause("request-1", "http")))
    world.run()
    assert (wanted(world).signature, world.champion()) == ("any", 1)


def test_the_way_back_from_a_deployment_that_failed_is_open(world: World) -> None:
    def refuses(desired: Desired) -> ReplicaState:
        bad = any(each.version == 3 for each in desired.deployments)
        return world.report(desired, desired.revision - bad, "it will not do" if bad else None)

    world.replica = refuses
    world.drop("demo/c.csv")
    world.run()
    assert (wanted(world).signature, world.champion()) == ("any", 2)
    assert [each.version for each in wanted(world).deployments] == [2]


def test_an_endpoint_of_before_there_were_signatures_wants_what_it_wanted(world: World) -> None:
    def older(value: Json) -> Json:
        return {key: each for key, each in value.items() if key != "signature"} | {"revision": value["revision"] + 1}

    books.change(world.ports.ledger, books.endpoint_partition("demo"), "head", older)
    desired.tell_replicas(world.ports, "demo")
    assert wanted(world).signature == "any"


def test_golden_requests_are_named_where_the_model_lies(world: World) -> None:
    model = world.ports.registry.get("demo", 2)
    assert deploy._deployment(world.ports, model).golden is None
    told = replace(model, lineage=replace(model.lineage, golden="models/demo/run/golden.json"))
    assert deploy._deployment(world.ports, told).golden == world.ports.artifacts.uri("models/demo/run/golden.json")


def test_versions_and_results_of_before_there_were_golden_requests_are_read(world: World) -> None:
    told = to_builtins(world.ports.registry.get("demo", 2))
    del told["lineage"]["golden"]
    assert from_builtins(ModelVersion, told).lineage.golden is None
    assert from_builtins(Lineage, told["lineage"]).golden is None
    result = to_builtins(RunResult("r", "m", "0", "e", {}, {}, 1.0))
    del result["golden"]
    assert from_builtins(RunResult, result).golden is None
