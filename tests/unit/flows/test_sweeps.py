"""A pipeline with a sweep: what its runs are asked for, and whose parameters its models show."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropforge.domain.causes import Cause
from dropforge.domain.runs import SweepPlan
from dropforge.domain.verdicts import BlockScore, Evidence
from dropforge.steps import train
from dropforge.wire import to_json
from tests.unit.flows.world import YAML, World

SWEPT = YAML.replace(
    "command: python train.py",
    "command: python train.py\n  parameters: {epochs: 3}\n  sweep: {trials: 4, parameters: {lr: {choice: [0.1, 0.2]}}}",
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, SWEPT)
    made.trainer = found_best
    return made


def found_best(world: World, run: str) -> None:
    """The run ends well; trial 1 was the best."""
    blocks = tuple(BlockScore(f"b{n}", None, 100, 0.5, 0.4) for n in range(10))
    evidence = Evidence("log_loss", True, "baseline", None, blocks, 900, 1000, 0, None, None)
    told = {"parameters": {"epochs": 3, "lr": 0.2}, "sweep": {"trials": 2, "best": 1}}
    world.compute.succeed(run, model=run.encode(), evidence=to_json(evidence), environment=told)


def test_every_training_searches_and_the_model_shows_what_was_found(world: World) -> None:
    world.drop("demo/a.csv")
    world.run()

    (asked,) = world.compute.submitted
    assert asked.parameters == {"epochs": 3}
    assert asked.sweep == SweepPlan(4, 1, "random", {"lr": {"choice": [0.1, 0.2]}})
    lineage = world.ports.registry.get("demo", 1).lineage
    assert lineage.parameters == {"epochs": 3, "lr": 0.2}
    assert lineage.environment["sweep"]["best"] == 1


def test_who_only_measures_a_model_searches_for_nothing(world: World) -> None:
    world.drop("demo/a.csv")
    world.run()

    flow = train.ask_evaluation(world.ports, "demo", 1, "token", Cause("ada", "http"), world.now)
    for each in flow["start"]:
        world.start(each)
    world.run()

    assert world.compute.submitted[-1].challenger is not None
    assert world.compute.submitted[-1].sweep is None
