"""What is run together, in which order, and what is not run at all."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import DropforgeError
from dropforge.serving import batching
from dropforge.serving.answers import Wanted
from dropforge.serving.batching import (
    BATCH_ROWS,
    DOUBTFUL,
    FEW_JOBS,
    GONE,
    RELAX_SECONDS,
    SHED_JOBS,
    Answer,
    Batcher,
    Job,
    Late,
    Queue,
    TooBusy,
)
from dropforge.serving.models import Model, ModelFailed
from dropforge.serving.protocol import Ask
from dropforge.serving.results import Rows
from dropforge.serving.statistics import Spent
from dropforge.serving.tensors import Array, Feeds

BAD = -1.0


@dataclass
class Session:
    """Answers y = 2x, row by row; fails for a batch with a -1 in it. `mixes`: adds the mean of the batch."""

    inputs: dict[str, list[Any]] = field(default_factory=lambda: {"x": ["N", 2]})
    mixes: bool = False
    seconds: float = 0.0
    ran: list[tuple[int, ...]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    waits: threading.Event | None = None

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=name, type="tensor(float)", shape=dims) for name, dims in self.inputs.items()]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="y", type="tensor(float)", shape=self.inputs["x"])]

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map={})

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        self.threads.add(threading.current_thread().name)
        if self.waits is not None:
            self.waits.wait(10)
        time.sleep(self.seconds)
        self.ran.append(feeds["x"].shape)
        if any((array == BAD).any() for array in feeds.values()):
            raise ValueError("a bad row")
        answer: Array = sum(feeds.values(), 0 * feeds["x"]) * 2
        return [answer + answer.mean(axis=0, keepdims=True) if self.mixes else answer]


class Burning(Session):
    """Takes so many seconds of processor time."""

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        until = time.thread_time() + self.seconds
        while time.thread_time() < until:
            pass
        self.threads.add(threading.current_thread().name)
        return [feeds["x"]]


def model_of(session: Session, *, batches: bool = True) -> Model:
    model = Model(Deployment("m", 1, "file:///m", "0" * 64, 1, traffic=100), session)
    model.batches = batches
    return model


@dataclass(eq=False)
class Line:
    """A connection that notes what it is given."""

    flushed: int = 0

    def flush(self) -> None:
        self.flushed += 1


@dataclass
class Spot:
    """The place of one answer."""

    connection: Line = field(default_factory=Line)
    gone: bool = False
    given: bytes | None = None

    def give(self, data: bytes) -> None:
        self.given = data


@dataclass(eq=False)
class Each:
    """A sink that tells of one answer at a time."""

    on_done: Callable[[Job, Answer], None]
    on_write: Callable[[Job, Answer], bytes] | None = None

    def write(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        for job, answer in zip(jobs, answers, strict=True):
            if self.on_write is not None:
                job.data = self.on_write(job, answer)

    def done(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        for job, answer in zip(jobs, answers, strict=True):
            self.on_done(job, answer)


NOBODY = Each(lambda job, answer: None)


class Full(ThreadPoolExecutor):
    """Threads of a process that may have no more of them, until `threads` says so."""

    threads = False

    def _adjust_thread_count(self) -> None:
        if not self.threads:
            raise RuntimeError("can't start new thread")
        super()._adjust_thread_count()  # type: ignore[misc]


class Rig:
    """A batcher on the running loop, and what became of each job."""

    def __init__(self, **limits: Any) -> None:
        self.pool = ThreadPoolExecutor(2, "infer")
        self.batcher = Batcher(asyncio.get_running_loop(), self.pool, **limits)
        self.answers: dict[int, Answer] = {}
        self.count = 0

    def put(
        self,
        queue: Queue,
        x: Array | None = None,
        *,
        more: Feeds | None = None,
        spot: Spot | None = None,
        timeout: float | None = None,
        size: int = 0,
        write: Callable[[Job, Answer], bytes] | None = None,
    ) -> int:
        number, self.count = self.count, self.count + 1
        x = np.ones((1, 2), np.float32) if x is None else x
        ask = Ask({"x": x, **(more or {})}, len(x), Wanted(queue.model.outputs, (False,)), None, timeout, size)

        def done(job: Job, answer: Answer) -> None:
            assert number not in self.answers
            self.answers[number] = answer

        self.batcher.put(queue, Job(queue.model, ask, time.perf_counter(), Each(done, write), spot))
        return number

    def has(self, number: int) -> Array:
        answer = self.answers[number]
        assert isinstance(answer, Rows), answer
        (array,) = answer.arrays
        return array

    async def all_done(self) -> None:
        async with asyncio.timeout(20):
            while len(self.answers) < self.count:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        assert (self.batcher.waiting, self.batcher.bytes) == (0, 0)


def test_who_is_told_of_an_answer_and_fails_keeps_nobody_from_the_next(caplog: pytest.LogCaptureFixture) -> None:
    def fail(job: Job, answer: Answer) -> None:
        raise ValueError("no")

    async def scenario() -> None:
        rig = Rig()
        queue, spot = quick(Queue(model_of(Session()))), Spot()
        ask = Ask({"x": rows(1, 2, 0)}, 1, Wanted(queue.model.outputs, (False,)))
        rig.batcher.put(queue, Job(queue.model, ask, 0.0, Each(fail)))
        rig.put(queue, spot=spot, write=lambda job, answer: b"written")
        await rig.all_done()
        assert spot.given == b"written"

    in_loop(scenario)
    assert "telling of an answer" in caplog.text


def in_loop(scenario: Callable[[], Any]) -> None:
    asyncio.run(scenario())


def quick(queue: Queue) -> Queue:
    """As after many quick batches of every size."""
    queue._inline_bits = 64
    return queue


def rows(count: int, width: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 1000, (count, width)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- together
@given(
    asked=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.booleans()), max_size=12),
    batches=st.booleans(),
    inline=st.booleans(),
)
def test_any_company_gets_the_answers_each_would_get_alone(
    asked: list[tuple[int, int, bool]], batches: bool, inline: bool
) -> None:
    async def scenario() -> None:
        rig, session = Rig(), Session({"x": ["N", "W"]}, mixes=not batches)
        queue = Queue(model_of(session, batches=batches))
        if inline:
            quick(queue)
        given_ = [rows(count, width, seed) for seed, (count, width, _) in enumerate(asked)]
        for x, (_, _, pause) in zip(given_, asked, strict=True):
            rig.put(queue, x)
            if pause:
                await asyncio.sleep(0)
        await rig.all_done()
        for number, x in enumerate(given_):
            (alone,) = session.run(["y"], {"x": x})
            np.testing.assert_array_equal(rig.has(number), alone)

    in_loop(scenario)


def test_what_one_turn_has_brought_is_run_together_on_the_loop_once_that_is_known_to_be_quick() -> None:
    async def scenario() -> None:
        rig, session = Rig(), Session()
        queue = quick(Queue(model_of(session)))
        for number in range(5):
            rig.put(queue, rows(2, 2, number))
        await rig.all_done()
        assert session.ran == [(10, 2)]
        assert session.threads == {threading.current_thread().name}

    in_loop(scenario)


def test_what_gathers_while_a_batch_runs_in_a_thread_is_the_next_batch() -> None:
    async def scenario() -> None:
        rig, session = Rig(), Session(waits=threading.Event())
        queue = Queue(model_of(session))
        rig.put(queue)
        await asyncio.sleep(0.01)
        for _ in range(7):
            rig.put(queue)
            await asyncio.sleep(0)
        assert session.waits is not None
        session.waits.set()
        await rig.all_done()
        assert session.ran == [(1, 2), (7, 2)]
        assert all(name.startswith("infer") for name in session.threads)

    in_loop(scenario)


def test_inputs_of_unlike_numbers_of_rows_are_not_run_with_others() -> None:
    async def scenario() -> None:
        rig, session = Rig(), Session({"x": [None, 2], "z": [None, 2]})
        queue = quick(Queue(model_of(session)))
        one = {"z": np.full((1, 2), 5, np.float32)}
        for more in (one, {"z": np.full((3, 2), 7, np.float32)}, one):
            rig.put(queue, more=more, x=np.ones((1, 2), np.float32))
        await rig.all_done()
        assert sorted(session.ran) == [(1, 2), (2, 2)]
        assert [rig.has(number).tolist() for number in (0, 2)] == [[[12, 12]]] * 2

    in_loop(scenario)


def test_batches_end_at_their_rows_and_bytes_but_for_a_request_that_is_larger_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "BATCH_BYTES", 100)

    async def scenario() -> None:
        rig, session = Rig(), Session()
        queue = quick(Queue(model_of(session)))
        for count, size in ((200, 1), (56, 1), (1, 1), (300, 1), (1, 60), (1, 40), (1, 1), (1, 500), (1, 1)):
            rig.put(queue, rows(count, 2, 0), size=size)
        await rig.all_done()
        assert [shape[0] for shape in session.ran] == [256, 1, 300, 2, 1, 1, 1]

    in_loop(scenario)


def test_one_bad_request_is_found_among_many_and_spoils_it_for_nobody() -> None:
    async def scenario() -> None:
        rig, session = Rig(), Session()
        queue = quick(Queue(model_of(session)))
        for number in range(64):
            rig.put(queue, np.full((1, 2), BAD if number == 23 else number, np.float32))
        await rig.all_done()
        assert isinstance(rig.answers.pop(23), ModelFailed)
        assert all(rig.has(number).tolist() == [[2 * number] * 2] for number in rig.answers)
        assert len(session.ran) == 13  # the batch, and two halves of each half

    in_loop(scenario)


@pytest.mark.parametrize("inline", [True, False])
def test_whatever_goes_wrong_every_job_is_answered(inline: bool, caplog: pytest.LogCaptureFixture) -> None:
    def write(job: Job, answer: Answer) -> bytes:
        if not isinstance(answer, DropforgeError):
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        return answer.message.encode()

    async def scenario() -> None:
        rig, session = Rig(), Session({"x": ["N", "W"]})
        queue = Queue(model_of(session))
        if inline:
            quick(queue)
        spots = [Spot(), Spot()]
        for spot in spots:
            rig.put(queue, spot=spot, write=write)
        await rig.all_done()
        assert [spot.given for spot in spots] == [b"the answer of m v1 cannot be written: UnicodeEncodeError"] * 2
        assert all(spot.connection.flushed for spot in spots)
        # A shape that numpy cannot even look at.
        queue.model.shape_key = None  # type: ignore[assignment, method-assign]
        for spot in spots:
            rig.put(queue, spot=spot)
        await rig.all_done()
        assert all(isinstance(rig.answers[number], ModelFailed) for number in (2, 3))

    in_loop(scenario)
    assert "Traceback" in caplog.text


# ---------------------------------------------------------------------------------------------------- not run
def test_nobody_is_asked_for_who_has_gone() -> None:
    async def scenario() -> None:
        rig, session = Rig(), Session(waits=threading.Event())
        queue = Queue(model_of(session, batches=False))
        spots = [Spot() for _ in range(4)]
        for spot in spots:
            rig.put(queue, spot=spot)
        await asyncio.sleep(0.01)
        for spot in spots[1:3]:
            spot.gone = True
        assert session.waits is not None
        session.waits.set()
        await rig.all_done()
        assert len(session.ran) == 2
        assert [rig.answers[number] is GONE for number in range(4)] == [False, True, True, False]

    in_loop(scenario)


def test_what_has_waited_longer_than_its_caller_is_not_run() -> None:
    async def scenario() -> None:
        rig, session = Rig(), Session(waits=threading.Event())
        queue = Queue(model_of(session, batches=False))
        rig.put(queue)
        late, patient = rig.put(queue, timeout=0.01), rig.put(queue, timeout=60)
        await asyncio.sleep(0.05)
        assert session.waits is not None
        session.waits.set()
        await rig.all_done()
        answer = rig.answers[late]
        assert isinstance(answer, Late) and answer.http_status == 504
        assert answer.message == "the request waited longer than its timeout of 0.01 seconds"
        assert len(session.ran) == 2
        assert isinstance(rig.answers[patient], Rows)

    in_loop(scenario)


def test_each_model_has_so_many_waiting_and_no_more() -> None:
    async def scenario() -> None:
        rig, session = Rig(waiting=3), Session(waits=threading.Event())
        queue, other = Queue(model_of(session)), Queue(model_of(Session()))
        spots = [Spot() for _ in range(5)]
        for spot in spots:
            rig.put(queue, spot=spot, write=lambda job, answer: b"written")
        assert list(rig.answers) == [3, 4]
        answer = rig.answers[3]
        assert isinstance(answer, TooBusy) and answer.http_status == 429 and answer.retryable
        await asyncio.sleep(0.01)
        assert (spots[3].given, spots[3].connection.flushed, spots[0].given) == (b"written", 1, None)
        with pytest.raises(TooBusy, match="3 requests to m v1 wait already"):
            rig.batcher.check(queue)
        rig.batcher.check(other)
        assert session.waits is not None
        session.waits.set()
        await rig.all_done()
        rig.batcher.check(queue)

    in_loop(scenario)


def test_the_bytes_that_wait_are_bounded_and_one_model_leaves_room_for_another() -> None:
    async def scenario() -> None:
        rig = Rig(waiting_bytes=1000)
        go = threading.Event()
        queue, other = (Queue(model_of(Session(waits=go))) for _ in range(2))
        rig.put(queue, size=2000)
        rig.put(queue, size=1)
        assert list(rig.answers) == [1]
        rig.put(other, size=500)
        rig.put(other, size=500)
        assert list(rig.answers) == [1, 3]
        go.set()
        await rig.all_done()

    in_loop(scenario)


def test_who_is_to_be_answered_by_a_thread_that_cannot_be_started_is_refused_and_the_next_is_not() -> None:
    async def scenario() -> None:
        rig, session, spots = Rig(), Session(), [Spot(), Spot(), Spot()]
        queue, pool = Queue(model_of(session)), Full(2, "infer")
        rig.batcher._pool = rig.pool = pool
        for spot in spots[:2]:
            rig.put(queue, spot=spot, write=lambda job, answer: b"no" if isinstance(answer, TooBusy) else b"yes")
        await rig.all_done()
        pool.threads = True
        rig.put(queue, spot=spots[2], write=lambda job, answer: b"yes")
        await rig.all_done()
        assert [(spot.given, spot.connection.flushed) for spot in spots] == [(b"no", 1), (b"no", 1), (b"yes", 1)]
        # What the pool kept of the first two is run for nobody.
        pool.shutdown()
        assert session.ran == [(1, 2)]

    in_loop(scenario)


def test_an_answer_that_cannot_be_written_is_nobody_elses_trouble(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        rig, told = Rig(), dict[int, Answer]()
        queue, spots = quick(Queue(model_of(Session()))), [Spot() for _ in range(6)]

        def write(job: Job, answer: Answer) -> bytes:
            if isinstance(answer, Rows) and answer.arrays[0][0, 0] == 4.0:
                raise ValueError("two")
            return b"written" if isinstance(answer, Rows) else b"failed"

        # Two that are told of many at once, in one batch.
        sinks = [
            Each(lambda job, answer: told.update({int(job.ask.feeds["x"][0, 0]): answer}), write) for _ in range(2)
        ]
        for number, spot in enumerate(spots):
            ask = Ask({"x": np.full((1, 2), number, np.float32)}, 1, Wanted(queue.model.outputs, (False,)))
            rig.batcher.put(queue, Job(queue.model, ask, time.perf_counter(), sinks[number % 2], spot))
        await asyncio.sleep(0.01)
        assert rig.batcher.batches == 1
        assert [spot.given for spot in spots] == [b"failed" if number == 2 else b"written" for number in range(6)]
        assert [number for number, answer in told.items() if isinstance(answer, ModelFailed)] == [2]
        assert sorted(told) == [*range(6)]

    in_loop(scenario)
    assert "an answer" in caplog.text


# ---------------------------------------------------------------------------------------------------- fairness
def test_a_flood_on_one_model_is_a_batch_ahead_of_another_and_no_more() -> None:
    async def scenario() -> None:
        rig, order = Rig(), list[str]()
        flooded, other = Session(), Session()
        flood, lone = quick(Queue(model_of(flooded))), quick(Queue(model_of(other)))

        def note(job: Job, answer: Answer) -> bytes:
            order.append("lone" if job.model is lone.model else "flood")
            return b""

        for _ in range(4 * BATCH_ROWS):
            rig.put(flood, write=note)
        rig.put(lone, write=note)
        await rig.all_done()
        assert order.index("lone") == BATCH_ROWS

    in_loop(scenario)


def test_a_slow_model_does_not_keep_a_quick_one_from_answering() -> None:
    async def scenario() -> None:
        rig = Rig()
        slow = [Queue(model_of(Session(seconds=0.5), batches=False)) for _ in range(3)]
        for queue in slow:
            rig.put(queue)
            rig.put(queue)
        lone = quick(Queue(model_of(Session())))
        began = time.perf_counter()
        number = rig.put(lone)
        while number not in rig.answers:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        assert time.perf_counter() - began < 0.4
        await rig.all_done()

    in_loop(scenario)


# ---------------------------------------------------------------------------------------------------- what is learnt
def new_queue(dims: Sequence[Any] = ("N", 2)) -> Queue:
    return Queue(model_of(Session({"x": list(dims)})))


def test_a_size_of_batch_is_slow_until_it_was_quick_for_a_while() -> None:
    queue = new_queue()
    assert not queue.is_quick(1, 100)
    for _ in range(20):
        queue.took(1, 1, 100, 0.0001)
    assert queue.is_quick(1, 10**9) and not queue.is_quick(2, 100)
    for _ in range(20):
        queue.took(1, 100, 100, 0.0005)
    assert queue.is_quick(64, 100) and not queue.is_quick(128, 100)


def test_a_model_that_was_quick_when_it_was_tried_is_quick_from_its_first_request_on() -> None:
    model = model_of(Session())
    model.tried = {1: 0.0001, 33: 0.0005, 5: 0.0002}
    queue = Queue(model)
    assert queue.is_quick(63, 100) and not queue.is_quick(64, 100)
    model.tried[5] = 0.1
    assert Queue(model).is_quick(1, 100) and not Queue(model).is_quick(5, 100)
    assert not Queue(model_of(Session({"x": ["N", "W"]}))).is_quick(1, 1)


def test_one_batch_that_was_interrupted_does_not_make_its_size_slow_and_one_that_took_long_does() -> None:
    queue = new_queue()
    for _ in range(30):
        queue.took(1, 1, 100, 0.0001)
    queue.took(1, 1, 100, 0.03)
    assert queue.is_quick(1, 100)
    queue.took(1, 1, 100, 0.3)
    assert not queue.is_quick(1, 100)
    for _ in range(60):
        queue.took(1, 1, 100, 0.0001)
    assert queue.is_quick(1, 100)


def test_what_took_long_by_the_clock_alone_is_looked_at_more_closely_before_it_is_believed() -> None:
    queue, spent = new_queue(), Spent(0.0)
    for _ in range(30):
        queue.took(1, 1, 100, 0.0001)
    spent.busy = spent.ended = 0.3
    queue.ran_here(1, 1, 100, spent, counted=False)
    assert queue.is_quick(1, 100) and queue.doubts == DOUBTFUL
    # It was an interruption: counted, the same batch is quick.
    spent.busy = 0.0001
    for left in reversed(range(DOUBTFUL)):
        queue.ran_here(1, 1, 100, spent, counted=True)
        assert queue.is_quick(1, 100) and queue.doubts == left
    spent.busy = 0.3
    queue.ran_here(1, 1, 100, spent, counted=False)
    queue.ran_here(1, 1, 100, spent, counted=True)
    assert not queue.is_quick(1, 100)


def test_a_model_that_has_become_slow_leaves_the_loop() -> None:
    async def scenario() -> None:
        rig, session = Rig(), Burning()
        queue = Queue(model_of(session, batches=False))
        for _ in range(30):
            queue.took(1, 1, 100, 0.0001)
        for number in range(40):
            rig.put(queue)
            await rig.all_done()
            if number == 9:
                assert session.threads == {threading.current_thread().name}
                session.seconds = 0.02
        assert len(session.threads) > 1

    in_loop(scenario)


def test_larger_batches_are_as_slow_as_a_smaller_one_that_has_become_slow() -> None:
    queue = new_queue()
    for count in (1, 100):
        for _ in range(30):
            queue.took(1, count, 100, 0.0001)
    queue.took(1, 1, 100, 1.0)
    assert not queue.is_quick(100, 100)


def test_where_shapes_differ_the_size_is_that_of_the_request() -> None:
    queue = new_queue(["N", "W"])
    for _ in range(30):
        queue.took(1, 1, 100, 0.0001)
    assert queue.is_quick(1, 100) and not queue.is_quick(1, 1000)


def test_a_model_that_gains_nothing_from_large_batches_gets_small_ones() -> None:
    queue = new_queue()
    for _ in range(20):
        queue.took(queue.rows, queue.rows, 100, 0.016 * queue.rows)
    assert queue.rows == 1


def test_few_requests_at_once_are_enough_to_see_that_a_model_gains_nothing() -> None:
    queue = new_queue()
    for _ in range(20):
        count = min(queue.rows, 64)
        queue.took(count, count, 100, 0.016 * count)
    assert queue.rows == 1


def test_a_model_that_gains_from_large_batches_keeps_them_however_slow_it_is() -> None:
    queue = new_queue()
    sizes = []
    for _ in range(20):
        queue.took(queue.rows, queue.rows, 100, 0.03 + 0.00001 * queue.rows)
        sizes.append(queue.rows)
    assert min(sizes) == BATCH_ROWS // 2 and sizes.count(BATCH_ROWS) == 19


def test_a_quick_model_that_was_interrupted_gets_its_large_batches_back() -> None:
    queue = new_queue()
    queue.took(BATCH_ROWS, BATCH_ROWS, 100, 0.05)
    assert queue.rows == BATCH_ROWS // 2
    queue.took(100, 100, 100, 0.001)
    assert queue.rows == BATCH_ROWS


def test_a_queue_that_is_long_for_a_moment_takes_more_and_one_that_stays_long_does_not() -> None:
    queue, job = new_queue(), Job(new_queue().model, None, 0.0, NOBODY)  # type: ignore[arg-type]
    queue.each = 0.001
    for now in (0.5, 0.55, 0.59):
        queue.began(job, now)
    assert queue.room(2048) == 2048
    queue.began(job, 0.61)
    assert queue.room(2048) == SHED_JOBS
    assert queue.room(10) == 10
    queue.each = 0.00001
    assert queue.room(2048) in (999, 1000)
    queue.began(Job(queue.model, None, 0.605, NOBODY), 0.61)  # type: ignore[arg-type]
    assert queue.room(2048) == 2048


def test_a_queue_that_became_long_before_it_was_seen_to_be_too_long_is_cut() -> None:
    async def scenario() -> None:
        rig, session = Rig(), Session(seconds=0.02)
        queue = Queue(model_of(session, batches=False))
        spots = [Spot() for _ in range(300)]
        for spot in spots:
            rig.put(queue, spot=spot, write=lambda job, answer: b"no" if isinstance(answer, TooBusy) else b"yes")
        began = time.perf_counter()
        await rig.all_done()
        # As it is, 300 would take six seconds.
        assert time.perf_counter() - began < 5
        given = [spot.given for spot in spots]
        answered = given.index(b"no")
        assert given == [b"yes"] * answered + [b"no"] * (300 - answered)
        assert SHED_JOBS <= answered < 200
        assert (rig.batcher.waiting, queue.waiting, queue.bytes) == (0, 0, 0)

    in_loop(scenario)


def test_while_some_are_refused_fewer_wait_and_that_ends_once_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(batching.time, "perf_counter", lambda: now)
    queue = Queue(model_of(Session()))
    queue.each = 0.01

    def late(seconds: float) -> Job:
        return Job(queue.model, None, now - seconds, NOBODY)  # type: ignore[arg-type]

    queue.began(late(0.02), now)
    now += 0.2
    queue.began(late(0.02), now)
    assert queue.room(2048) == SHED_JOBS
    queue.refused_at = now
    assert queue.room(2048) == FEW_JOBS
    # Short again, but only because others are sent away.
    queue.began(late(0.001), now)
    assert queue.room(2048) == FEW_JOBS
    now += RELAX_SECONDS
    assert queue.room(2048) == SHED_JOBS
    queue.began(late(0.001), now)
    assert queue.room(2048) == 2048


def test_under_three_times_its_capacity_what_is_taken_on_waits_briefly_and_the_rest_is_told_at_once() -> None:
    async def scenario() -> None:
        rig, session = Rig(), Session(seconds=0.001)
        queue = Queue(model_of(session, batches=False))
        began, waited, refused = time.perf_counter(), list[float](), 0
        while time.perf_counter() - began < 0.6:
            for _ in range(6):
                at = time.perf_counter()

                def write(job: Job, answer: Answer, at: float = at) -> bytes:
                    if not isinstance(answer, TooBusy) and at - began > 0.35:
                        waited.append(time.perf_counter() - at)
                    return b""

                rig.put(queue, write=write)
            await asyncio.sleep(0.002)
        refused = sum(isinstance(answer, TooBusy) for answer in rig.answers.values())
        await rig.all_done()
        assert refused > 100
        # 64 of a millisecond each, and a machine that is busy with other things.
        assert np.median(waited) < 0.064 * 4

    in_loop(scenario)
