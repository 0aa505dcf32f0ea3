"""What people are shown: pages that miss nothing and repeat nothing, and why things are as they are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dropforge.domain.causes import Cause
from dropforge.domain.errors import NotFound
from dropforge.ports import Json, Ports
from dropforge.steps import approvals, pipelines, reports, train
from tests.unit.flows.world import YAML, World, bundle_of

Listing = Callable[..., reports.Page]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Five dataset versions, a run on each, and a second run on the last."""
    made = World(tmp_path)
    for number in range(5):
        made.drop(f"demo/{number}.csv", f"x,y\n{number},0\n2,1\n")
        made.run()
    made.start(train.ask(made.ports, "demo", "again", Cause("c1", "http"), made.now)["start"][0])
    made.run()
    for name in ("aa", "zz"):
        text = YAML.replace("name: demo", f"name: {name}")
        pipelines.apply(made.ports, name, bundle_of({"pipeline.yaml": text, "train.py": "1"}), made.now)
    return made


def paged(listing: Listing, ports: Ports, *args: Any, limit: int) -> list[Json]:
    found, after = [], ""
    for _ in range(100):
        page, following = listing(ports, *args, limit=limit, after=after)
        assert len(page) <= limit
        found += page
        if following is None:
            return found
        assert following != after
        after = following
    raise AssertionError("a hundred pages and no end")


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("listing", "args", "key", "many"),
    [
        (reports.pipelines, (), "pipeline", 3),
        (reports.arrivals, ("demo",), "id", 5),
        (reports.arrivals, ("demo", "accepted"), "id", 5),
        (reports.arrivals, ("demo", "quarantined"), "id", 0),
        (reports.datasets, ("demo",), "version", 5),
        (reports.runs, ("demo",), "run", 6),
        (reports.models, ("demo",), "version", 6),
        (reports.endpoints, (), "endpoint", 1),
    ],
)
def test_pages_of_any_size_hold_everything_once(
    world: World, listing: Listing, args: tuple[Any, ...], key: str, many: int, limit: int
) -> None:
    whole, following = listing(world.ports, *args, limit=1000)
    assert (len(whole), following) == (many, None)
    assert [each[key] for each in paged(listing, world.ports, *args, limit=limit)] == [each[key] for each in whole]


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 50])
def test_pages_hold_every_open_question_of_all_pipelines_once(world: World, limit: int) -> None:
    runs = [run.spec.run for run in world.runs()]
    for run in runs:
        approvals.ask(world.ports, "demo", run, f"train-{run}", world.now)
    found = paged(reports.questions, world.ports, None, limit=limit)
    assert [each["run"] for each in found] == sorted(runs)
    with pytest.raises(NotFound, match="no pipeline 'nope'"):
        reports.questions(world.ports, None, after="nope/demo-1-0")


def test_the_newest_come_first(world: World) -> None:
    assert [each["version"] for each in reports.datasets(world.ports, "demo")[0]] == [5, 4, 3, 2, 1]
    assert [each["version"] for each in reports.models(world.ports, "demo")[0]] == [6, 5, 4, 3, 2, 1]
    planned = [each["planned_at"] for each in reports.runs(world.ports, "demo")[0]]
    assert planned == sorted(planned, reverse=True)


def test_a_page_ends_where_it_has_looked_at_enough_and_the_next_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "LOOKED_AT", 2)
    assert reports.arrivals(world.ports, "demo", "quarantined") != ([], None)
    assert paged(reports.arrivals, world.ports, "demo", "quarantined", limit=50) == []
    assert len(paged(reports.arrivals, world.ports, "demo", limit=50)) == 5


def test_runs_are_found_over_many_versions_without_any(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "LOOKED_AT", 10)
    assert len(paged(reports.runs, world.ports, "demo", limit=50)) == 6


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "99999999999", "x/y"])
@pytest.mark.parametrize("listing", [reports.datasets, reports.runs, reports.models])
def test_a_place_that_no_list_has_is_not_found(world: World, listing: Listing, after: str) -> None:
    with pytest.raises(NotFound):
        listing(world.ports, "demo", after=after)


@pytest.mark.parametrize(
    "listing", [reports.arrivals, reports.datasets, reports.runs, reports.models, reports.questions]
)
def test_a_list_of_a_pipeline_there_is_none_of_is_not_found(world: World, listing: Listing) -> None:
    with pytest.raises(NotFound, match="no pipeline 'nope'; there are aa, demo, zz"):
        listing(world.ports, "nope")


# ------------------------------------------------------------------------------------------------ why, commands
def test_why_walks_back_to_files_causes_and_the_answer(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + "gate: {first: ask, ask_timeout: 1h}\n")
    world.drop("demo/a.csv")
    world.run(timedelta(minutes=5))
    (asked,) = approvals.open_questions(world.ports, "demo")
    wake = approvals.answer(world.ports, "demo", asked["run"], "approve", "ada", world.now, "looks good")
    world.raise_event(wake["flow"], wake["event"])
    world.run()
    told = reports.why(world.ports, "demo", None)
    assert [each["url"].rsplit("/", 1)[-1] for each in told["files"]] == ["a.csv"]
    assert (told["approval"]["answer"], told["approval"]["by"], told["approval"]["reason"]) == (
        "approve", "ada", "looks good",
    )  # fmt: skip
    kinds = [each["what"].partition(" ")[0] for each in told["causes"]]
    assert kinds == sorted(kinds, key=["dataset", "run", "deployment"].index)
    assert all(each["cause"]["door"] for each in told["causes"])


def test_why_and_run_of_a_pipeline_there_is_none_of_say_so(world: World) -> None:
    for look in (lambda: reports.why(world.ports, "nope", None), lambda: reports.run_logs(world.ports, "nope", "r")):
        with pytest.raises(NotFound, match="no pipeline 'nope'; there are aa, demo, zz"):
            look()
    with pytest.raises(NotFound, match="pipeline 'aa' has no champion yet"):
        reports.why(world.ports, "aa", None)


def test_counting_very_many_files_is_not_done_for_every_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_KEEP_FROM_SECONDS", 0.0)
    monkeypatch.setattr(reports, "_KEEP_FACTOR", 1e9)
    assert reports.status(world.ports, "demo")["files"]["accepted"] == 5
    world.drop("demo/more.csv", "x,y\n9,0\n")
    world.run()
    assert reports.status(world.ports, "demo")["files"]["accepted"] == 5
    reports._kept.clear()
    assert reports.status(world.ports, "demo")["files"]["accepted"] == 6
    reports._kept.clear()


def test_a_command_that_nobody_gave_is_not_found(world: World) -> None:
    for pipeline in (None, "demo"):
        with pytest.raises(NotFound):
            reports.command(world.ports, "nobody-gave-it", pipeline)
