"""Copies of requests for a candidate, and what is said about its answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropforge.domain.endpoints import Mirrored
from dropforge.serving import mirror
from dropforge.serving.batching import Job
from dropforge.serving.mirror import Difference, Lane, compare
from dropforge.serving.models import Model, load
from dropforge.serving.protocol import Ask
from dropforge.serving.results import Batch, Rows
from dropforge.serving.tensors import Array
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.test_batching import NOBODY


def array(values: Any, dtype: Any = np.float32) -> Array:
    return np.array(values, dtype)


# ------------------------------------------------------------------------------------------------ comparing
def test_equal_answers_agree() -> None:
    labels, chances = array([1, 0], np.int64), array([[0.1, 0.9], [0.8, 0.2]])
    assert compare([labels, chances], [labels, chances]) == Difference(False, 2, 0, 0.0)


def test_another_label_is_a_flip() -> None:
    found = compare([array(["yes", "no", "no"], object)], [array(["yes", "yes", "no"], object)])
    assert found == Difference(True, 3, 1, 0.0)


def test_another_likeliest_class_is_a_flip_and_another_chance_is_none() -> None:
    found = compare([array([[0.1, 0.9], [0.8, 0.2]])], [array([[0.6, 0.4], [0.7, 0.3]])])
    assert (found.disagrees, found.rows, found.flipped) == (True, 2, 1)
    assert found.largest == pytest.approx(0.5)
    same = compare([array([[0.8, 0.2]])], [array([[0.6, 0.4]])])
    assert (same.disagrees, same.flipped) == (False, 0)


def test_a_single_chance_decides_at_one_half() -> None:
    assert compare([array([[0.4], [0.6]])], [array([[0.45], [0.3]])]).flipped == 1


def test_a_row_that_two_outputs_decide_otherwise_is_one_flip() -> None:
    one = [array([1, 1], np.int64), array([[0.1, 0.9], [0.2, 0.8]])]
    other = [array([0, 1], np.int64), array([[0.9, 0.1], [0.2, 0.8]])]
    assert compare(one, other).flipped == 1


@pytest.mark.parametrize(("value", "disagrees"), [(100.05, False), (100.2, True), (np.nan, True), (np.inf, True)])
def test_numbers_disagree_from_a_thousandth_on(value: float, disagrees: bool) -> None:
    found = compare([array([[100.0, 3.0]])], [array([[value, 3.0]])])
    assert (found.disagrees, found.rows) == (disagrees, 0)
    assert np.isfinite(found.largest)


def test_nan_is_like_nan_and_infinity_like_infinity() -> None:
    odd = array([np.nan, np.inf, -np.inf, 7.0])
    assert compare([odd], [odd.copy()]) == Difference(False)


def test_answers_of_other_shapes_or_kinds_disagree() -> None:
    assert compare([array([1.0, 2.0])], [array([1.0])]).disagrees
    assert compare([array([1.0])], [array([1], np.int64)]).disagrees


def test_scalars_and_no_rows_are_compared_too() -> None:
    assert compare([array(3, np.int64)], [array(4, np.int64)]) == Difference(True, 1, 1)
    assert compare([array([], np.int64)], [array([], np.int64)]) == Difference(False, 0, 0)


@pytest.mark.parametrize(("value", "found"), [(300.0, Difference(False)), (np.nan, Difference(True))])
def test_a_single_number_is_compared_too(value: float, found: Difference) -> None:
    assert compare([array(300.0)], [array(value)]) == found
    assert compare([array(3.0)], [array(5.0)]) == Difference(True, largest=2.0)


# ------------------------------------------------------------------------------------------------ lanes
class Hanging:
    """A model that answers nobody until it is let."""

    def __init__(self, model: Model) -> None:
        self.entered, self.let = threading.Event(), threading.Event()
        run = model.run

        def wait(outputs: Any, feeds: Any) -> list[Array]:
            self.entered.set()
            assert self.let.wait(30)
            return run(outputs, feeds)

        model.run = wait  # type: ignore[method-assign]


@pytest.fixture
def models(tmp_path: Path) -> Iterator[tuple[Model, Model]]:
    yield load(deployment(tmp_path, onnx_models.scaled(2), 1)), load(deployment(tmp_path, onnx_models.scaled(3), 2))


def job(model: Model, value: float = 1.0, rows: int = 1) -> tuple[Job, Rows]:
    """A request that a model has answered."""
    feeds = {"x": np.full((rows, 3), value, np.float32)}
    ask = Ask(feeds, rows, model.codec._all)
    return Job(model, ask, 0.0, NOBODY), Batch(model.run(["y"], feeds), whole=True).of_all()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


async def until(what: Callable[[], object]) -> None:
    while not what():  # noqa: ASYNC110 - what is waited for tells nobody
        await asyncio.sleep(0.002)


def ran(lane: Lane, copies: int) -> bool:
    return lane.since.counts.requests == copies


@pytest.mark.parametrize("batches", [False, True])
def test_every_copy_is_run_and_compared(models: tuple[Model, Model], batches: bool) -> None:
    champion, candidate = models
    candidate.batches = batches

    async def scenario() -> None:
        lane = Lane(candidate, 100)
        for n in range(100):
            lane.offer(*job(champion, n), busy=False)
        await until(lambda: lane.since.counts.requests == 100)
        assert lane.since.told() == Mirrored(run=100, disagreed=99, max_difference=99.0)
        assert lane.total.told() == lane.since.told()
        lane.close()

    run(scenario)


def test_a_percent_of_the_requests_is_copied_and_none_of_its_own(models: tuple[Model, Model]) -> None:
    champion, candidate = models

    async def scenario() -> None:
        lane = Lane(candidate, 20)
        for _ in range(500):
            lane.offer(*job(champion), busy=False)
            lane.offer(*job(candidate), busy=False)
        await until(lambda: lane.since.counts.requests >= 99)
        await asyncio.sleep(0.01)
        assert abs(lane.since.counts.requests - 100) <= 1
        lane.close()

    run(scenario)


def test_a_candidate_that_hangs_costs_its_copies_and_nothing_else(models: tuple[Model, Model]) -> None:
    champion, candidate = models
    hanging = Hanging(candidate)

    async def scenario() -> None:
        lane = Lane(candidate, 100)
        lane.offer(*job(champion), busy=False)
        await until(hanging.entered.is_set)
        one = job(champion)
        for _ in range(1000):
            lane.offer(*one, busy=False)
        assert lane.since.dropped == {"slow": 1001 - mirror.WAITING}
        hanging.let.set()
        await until(lambda: lane.since.counts.requests == mirror.WAITING)
        # And goes on.
        lane.offer(*one, busy=False)
        await until(lambda: lane.since.counts.requests == mirror.WAITING + 1)
        lane.close()

    run(scenario)


def test_what_waits_is_bounded_in_bytes_too(models: tuple[Model, Model]) -> None:
    champion, candidate = models
    hanging = Hanging(candidate)

    async def scenario() -> None:
        lane = Lane(candidate, 100)
        large = job(champion, rows=500_000)
        for _ in range(12):
            lane.offer(*large, busy=False)
        assert lane.since.dropped == {"slow": 6}
        hanging.let.set()
        await until(lambda: lane.since.counts.requests == 6)
        lane.close()

    run(scenario)


def test_a_busy_server_makes_no_copies(models: tuple[Model, Model]) -> None:
    champion, candidate = models

    async def scenario() -> None:
        lane = Lane(candidate, 100)
        lane.offer(*job(champion), busy=True)
        assert lane.since.told() == Mirrored(dropped=1)
        assert lane.since.dropped == {"busy": 1}

    run(scenario)


def test_a_candidate_that_fails_or_takes_other_inputs_is_counted(models: tuple[Model, Model], tmp_path: Path) -> None:
    champion, _ = models
    other = load(deployment(tmp_path, onnx_models.picky(5), 2))
    odd = load(deployment(tmp_path, onnx_models.scaled(1), 3))

    def crash(outputs: Any, feeds: Any) -> list[Array]:
        raise MemoryError("no room")

    odd.run = crash  # type: ignore[method-assign]

    async def scenario() -> None:
        for model in (other, odd):
            lane = Lane(model, 100)
            for _ in range(3):
                lane.offer(*job(champion), busy=False)
            await until(partial(ran, lane, 3))
            assert lane.since.told() == Mirrored(run=3, failed=3)
            lane.close()

    run(scenario)


def test_an_answer_that_cannot_be_compared_is_that_of_a_copy_that_failed(models: tuple[Model, Model]) -> None:
    champion, candidate = models
    candidate.run = lambda outputs, feeds: [*feeds.values()] * 2  # type: ignore[method-assign]

    async def scenario() -> None:
        lane = Lane(candidate, 100)
        for number in (1, 2):
            lane.offer(*job(champion), busy=False)
            await until(partial(ran, lane, number))
        assert lane.since.told() == Mirrored(run=2, failed=2)
        await until(lambda: (lane._waiting, lane._bytes) == (0, 0))
        lane.close()

    run(scenario)


def test_a_lane_that_is_closed_lets_its_thread_and_its_model_go(models: tuple[Model, Model]) -> None:
    champion, candidate = models

    async def scenario() -> None:
        lane = Lane(candidate, 100)
        lane.offer(*job(champion), busy=False)
        await until(lambda: lane.since.counts.requests == 1)
        lane.close()
        await until(lambda: not any(thread.name == f"mirror {candidate}" for thread in threading.enumerate()))
        lane.offer(*job(champion), busy=False)
        assert lane.since.dropped == {"slow": 1}

    run(scenario)


def test_a_thread_with_nothing_to_do_ends_and_another_takes_its_place(
    models: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "IDLE_SECONDS", 0.02)
    champion, candidate = models

    async def scenario() -> None:
        lane = Lane(candidate, 100)
        for number in (1, 2, 3):
            lane.offer(*job(champion), busy=False)
            await until(partial(ran, lane, number))
            await until(lambda: lane._thread is None)
        lane.close()

    run(scenario)
