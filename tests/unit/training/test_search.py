"""What a sweep tries next."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from dropforge.domain.runs import SweepPlan
from dropforge.training.contract import NodeFailed
from dropforge.training.search import Trial, count, propose
from dropforge.training.typed import typed_parameters
from tests.unit.training.bench import spec

SPACE = {
    "lr": {"min": 1e-4, "max": 0.1, "log": True, "int": False},
    "depth": {"min": 2, "max": 8, "log": False, "int": True},
    "kind": {"choice": ["a", 3, True]},
}


def plan(sampler: str, trials: int = 30, space: dict[str, dict[str, Any]] = SPACE) -> SweepPlan:
    return SweepPlan(trials, 1, sampler, space)


def search(sampler: str, seed: int, trials: int = 30) -> list[Trial]:
    """A search for the smallest `lr`."""
    tried: list[Trial] = []
    for number in range(trials):
        parameters = propose(plan(sampler), seed, number, tried)
        tried.append(Trial(number, parameters, None if number == 1 else -parameters["lr"], 0.0))
    return tried


@pytest.mark.parametrize("sampler", ["random", "bayesian"])
def test_equal_seeds_try_equal_parameters_within_their_bounds(sampler: str) -> None:
    tried = search(sampler, 7, 14)

    assert tried == search(sampler, 7, 14) != search(sampler, 8, 14)
    assert all(list(each.parameters) == list(SPACE) for each in tried)
    assert all(1e-4 <= each.parameters["lr"] <= 0.1 for each in tried)
    assert {type(each.parameters["depth"]) for each in tried} == {int}
    assert all(2 <= each.parameters["depth"] <= 8 for each in tried)
    assert {each.parameters["kind"] for each in tried} == {"a", 3, True}


def test_a_bayesian_search_learns_from_what_it_tried() -> None:
    learnt, drawn = (
        statistics.median(each.parameters["lr"] for each in search(sampler, 0)[15:])
        for sampler in ("bayesian", "random")
    )

    assert learnt < drawn / 3


def test_a_grid_is_every_combination_once() -> None:
    axes = {"a": {"choice": [1, 2]}, "b": {"choice": ["x", "y", "z"]}}

    points = [propose(plan("grid", 99, axes), 0, number, []) for number in range(count(plan("grid", 99, axes)))]

    assert [tuple(point.values()) for point in points] == [(1, "x"), (1, "y"), (1, "z"), (2, "x"), (2, "y"), (2, "z")]
    assert count(plan("grid", 4, axes)) == 4


# ------------------------------------------------------------------------------------------------ from a command line
def typed(trial: str | None, *pairs: str) -> dict[str, Any] | None:
    run = spec(Path("/table"), sweep=plan("random"))
    return typed_parameters(trial, pairs, run)


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        (("lr=0.01", "depth=3", "kind=a"), {"lr": 0.01, "depth": 3, "kind": "a"}),
        (("lr=1e-2", "depth=3.0", "kind=3.0"), {"lr": 0.01, "depth": 3, "kind": 3}),
        (("kind=True", "lr=0.1", "depth=8"), {"lr": 0.1, "depth": 8, "kind": True}),
        # A service that works with logarithms comes out beside the bound now and then.
        (("kind=true", "lr=0.10000000000000009", "depth=8"), {"lr": 0.1, "depth": 8, "kind": True}),
    ],
)
def test_text_becomes_the_value_that_the_pipeline_names(pairs: tuple[str, ...], found: dict[str, Any]) -> None:
    assert typed(None, *pairs) == found
    assert typed('{"lr": 0.01, "depth": 3, "kind": "a"}') == {"lr": 0.01, "depth": 3, "kind": "a"}
    assert [type(each) for each in (typed(None, *pairs) or {}).values()] == [type(each) for each in found.values()]


def test_without_parameters_there_is_no_trial() -> None:
    assert typed(None) is None


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (("lr=0.01",), r"found the parameters \['lr'\]; a trial of this sweep has \['depth', 'kind', 'lr'\]"),
        (("lr=1", "depth=3", "kind=a"), "the sweep tries numbers from 0.0001 to 0.1"),
        (("lr=fast", "depth=3", "kind=a"), "found lr='fast'"),
        (("lr=0.01", "depth=3.5", "kind=a"), "the sweep tries whole numbers"),
        (("lr=0.01", "depth=3", "kind=b"), r"found kind='b'; the sweep tries \['a', 3, True\]"),
        (("lr",), "wanted name=value"),
    ],
)
def test_what_the_sweep_does_not_try_is_refused(pairs: tuple[str, ...], said: str) -> None:
    with pytest.raises(NodeFailed, match=said):
        typed(None, *pairs)


def test_a_trial_of_a_run_without_a_sweep_is_refused() -> None:
    with pytest.raises(NodeFailed, match="the run spec has no sweep"):
        typed_parameters("{}", (), spec(Path("/table")))
