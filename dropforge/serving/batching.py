"""Requests that came in together are run together: what one turn of the event loop has read is the batch.

No timer and no thread waits for more: an idle server answers a lone request at once, a busy one finds its batch in what has
gathered meanwhile. A batch that will be quick, as those of its size have been, runs on the loop; any other in a thread, one
of each model at a time, and what gathers while it runs is the next. Models take turns, and have queues of their own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import accumulate, repeat
from math import inf
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np

from dropforge.domain.errors import DropforgeError
from dropforge.serving.models import Model, ModelFailed
from dropforge.serving.protocol import Ask
from dropforge.serving.results import Batch, Rows
from dropforge.serving.statistics import Spent
from dropforge.serving.tensors import Feeds
from dropforge.serving.workers import cores

log = logging.getLogger(__name__)

# A batch of a model on the loop holds up everything else for no longer than this. Where there is one core, one in a thread
# takes that from everything else as well, and costs more.
INLINE_SECONDS = 0.002 if cores() > 1 else 0.005
# What a size of batch that was never run is taken to need; and what no interruption of the process takes.
UNKNOWN_SECONDS = 0.01
CERTAIN_SECONDS = 0.05
# Batches whose processor time is counted after one seemed to take long by the clock: to ask for it takes as long as a small
# model, and the clock alone may only have seen an interruption.
DOUBTFUL = 16
# A batch takes longer than its model did when that was tried alone: requests are put together and answers written.
TRIED = 2.0
# Limits of a batch. One that takes longer has to gain from its size.
BATCH_ROWS = 256
BATCH_BYTES = 64 * 1024**2
BATCH_SECONDS = 0.02
# A queue whose oldest request waits this long each time is overloaded, once it has been so for a while. So many requests,
# or what is done in that time, wait in it then, and no more. Fewer do while others are refused: who is told to come again at
# once loses nothing by it, and who is taken on is answered sooner. That ends when nobody was refused for a while.
LATE_SECONDS = 0.01
BURST_SECONDS = 0.1
SHED_JOBS = 64
FEW_JOBS = 24
RELAX_SECONDS = 0.5

Answer: TypeAlias = "Rows | DropforgeError"


class Late(DropforgeError):
    """The caller's own deadline passed before the model could be asked."""

    http_status = 504


class TooBusy(DropforgeError):
    """No further request is taken on now."""

    http_status = 429
    retryable = True


GONE = Late("nobody waits for the answer any more")


class Sender(Protocol):
    """A connection, as far as answers are concerned."""

    def flush(self) -> None:
        """Send the answers that were given, once for many."""


class Place(Protocol):
    """Where an answer goes."""

    @property
    def connection(self) -> Sender: ...

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""

    def give(self, data: bytes) -> None:
        """The answer. Sent with the next `flush` of the connection."""


class Sink(Protocol):
    """What becomes of answers. Told of many at once: a call for each would cost as much as all the rest."""

    def write(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        """Make each job's `data` of its answer, or of what went wrong; on the thread that ran the model."""

    def done(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        """They are answered; on the event loop."""


class Job(msgspec.Struct, eq=False):
    """A request that waits for its model."""

    model: Model
    ask: Ask
    began: float
    sink: Sink
    # Where the answer goes, if it goes to a connection; nobody is asked for who has gone.
    owed: Place | None = None
    # What the server wants to remember of it.
    about: Any = None
    data: bytes | None = None

    def __repr__(self) -> str:
        # What callers sent has no place in a log.
        return f"Job({self.model})"


class Queue:
    """The jobs that wait for one model, and what its batches have taken so far."""

    __slots__ = (
        "_content",
        "_inline_bits",
        "_larger",
        "_late_since",
        "_seconds",
        "busy",
        "bytes",
        "doubts",
        "each",
        "jobs",
        "model",
        "refused_at",
        "rows",
        "sheds",
        "turn",
        "waiting",
    )

    def __init__(self, model: Model, rows: int = BATCH_ROWS) -> None:
        self.model = model
        self.jobs: deque[Job] = deque()
        # Taken on and not answered; and the bytes of their requests.
        self.waiting = self.bytes = 0
        self.turn = self.busy = False
        # What a batch holds at most.
        self.rows = rows
        # How long batches took lately, at most, by the power of two of their weight. It starts high: a size that was not
        # seen yet has to show that it is fast.
        self._seconds = [UNKNOWN_SECONDS] * 64
        self._inline_bits = -1
        # An integer may say how often a model goes round: what made-up ones took tells nothing.
        if model.one_shape and all(tensor.kind.dtype.kind == "f" for tensor in model.inputs):
            self._seen(model.tried)
        # Seconds a row of a larger batch took, when that was cut down because it took long.
        self._larger = 0.0
        # For so many batches the size is not tried again.
        self._content = 0
        # So many batches are not taken to be quick by the clock alone.
        self.doubts = 0
        # Seconds for each job, lately.
        self.each = 0.0
        # Since when the oldest has waited for long whenever a batch was taken; and whether that is no burst any more.
        self._late_since: float | None = None
        self.sheds = False
        # When somebody was refused last.
        self.refused_at = -inf

    def _seen(self, tried: Mapping[int, float]) -> None:
        """What the model took when it was tried: from its first request on it is known."""
        for rows, seconds in sorted(tried.items()):
            lately = self._seconds[rows.bit_length()] = TRIED * seconds
            if lately > INLINE_SECONDS:
                break
            self._inline_bits = rows.bit_length()

    def is_quick(self, rows: int, size: int) -> bool:
        """Whether a batch of so many rows and bytes may be run on the loop."""
        return (rows if self.model.one_shape else size).bit_length() <= self._inline_bits

    def ran_here(self, jobs: int, rows: int, size: int, spent: Spent, counted: bool) -> None:
        """A batch was run on the loop, and its processor time counted, or not."""
        if counted or spent.busy <= INLINE_SECONDS or not self.model.runs_here:
            self.doubts -= counted
            self.took(jobs, rows, size, spent.busy, spent.ended - spent.began)
        else:
            self.doubts = DOUBTFUL

    def took(self, jobs: int, rows: int, size: int, seconds: float, until_done: float = 0.0) -> None:
        """A batch was run, and kept its thread for so long; and with all interruptions it took until then."""
        self.each += 0.1 * ((until_done or seconds) / jobs - self.each)
        bits = (rows if self.model.one_shape else size).bit_length()
        # One that took long is remembered for dozens that did not; one alone may only have been interrupted.
        before = self._seconds[bits]
        lately = self._seconds[bits] = max(
            seconds if seconds > CERTAIN_SECONDS else min(seconds, 2 * before), 0.9 * before
        )
        if lately <= INLINE_SECONDS:
            self._inline_bits = max(bits, self._inline_bits)
        elif bits <= self._inline_bits:
            # Larger ones are no faster.
            self._seconds[bits:] = [max(each, lately) for each in self._seconds[bits:]]
            self._inline_bits = bits - 1
        if seconds > BATCH_SECONDS or (seconds < BATCH_SECONDS / 4 and 2 * rows > self.rows):
            self._fit(rows, seconds)

    def _fit(self, rows: int, seconds: float) -> None:
        """Let batches be as large as they gain from it: of a model that takes its time for each row, a large one only
        makes everybody wait."""
        each = seconds / rows
        if seconds <= BATCH_SECONDS:
            self.rows, self._larger = min(2 * self.rows, BATCH_ROWS), 0.0
        elif self._larger and 2 * rows > self.rows and each > 1.25 * self._larger:
            # It does gain: as large as before, for a while.
            self.rows, self._larger, self._content = min(2 * self.rows, BATCH_ROWS), 0.0, 100
        elif self._content:
            self._content -= 1
        elif rows > 1:
            self.rows, self._larger = min(rows, self.rows) // 2, each

    def began(self, job: Job, now: float) -> None:
        """The oldest job is taken. A queue may be long for a moment; one that stays long only makes everybody late."""
        if now - job.began < LATE_SECONDS:
            self._late_since, self.sheds = None, self.sheds and now - self.refused_at < RELAX_SECONDS
        elif self._late_since is None:
            self._late_since = now
        else:
            self.sheds = self.sheds or now - self._late_since > BURST_SECONDS

    def room(self, limit: int) -> int:
        """How many may wait, which are `limit` as long as they are not late."""
        if not self.sheds:
            return limit
        fewest = FEW_JOBS if time.perf_counter() - self.refused_at < RELAX_SECONDS else SHED_JOBS
        return min(limit, max(fewest, int(LATE_SECONDS / self.each) if self.each else limit))


class Batcher:
    """All queues. Called on the event loop only. `waiting`: requests for one model that wait at most; `waiting_bytes`: those
    of all that wait."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pool: Executor, *, waiting: int = 2048, waiting_bytes: int = 2**29
    ) -> None:
        self.limit = waiting
        self.limit_bytes = waiting_bytes
        # So many of one model always have room, and so many of all never.
        self._few, self._all = min(waiting, FEW_JOBS), 4 * waiting
        self.batch_rows = BATCH_ROWS
        # Jobs that have been taken on and not answered, and the bytes of their requests.
        self.waiting = self.bytes = 0
        self.batches = 0
        # Called whenever everything is answered.
        self.rest: Callable[[], None] = _nothing
        self._loop = loop
        self._pool = pool
        self._turns: deque[Queue] = deque()
        self._scheduled = False

    @property
    def full(self) -> bool:
        """Whether there is no room for anybody."""
        return self.waiting >= self._all

    def check(self, queue: Queue, size: int = 0) -> None:
        """Raises `TooBusy` when the queue takes no further request of so many bytes on. What one model has waiting takes
        no room from another."""
        if self.full or queue.waiting >= queue.room(self.limit):
            queue.refused_at = time.perf_counter()
            raise TooBusy(
                f"{queue.waiting} requests to {queue.model} wait already, the limit is {queue.room(self.limit)}; try again"
            )
        if self.bytes + size > self.limit_bytes and queue.bytes:
            raise self._too_many_bytes()

    def hold(self, size: int, *, is_only: bool = False) -> None:
        """So many bytes of a request are here that is not put yet; `is_only`: its models have nothing else to do. Raises
        `TooBusy`."""
        if self.bytes and self.bytes + size > self.limit_bytes and not is_only:
            raise self._too_many_bytes()
        self.bytes += size

    def release(self, size: int) -> None:
        """They are here no more, or are put now."""
        self.bytes -= size

    def _too_many_bytes(self) -> TooBusy:
        return TooBusy(f"requests of {self.bytes} bytes wait already, the limit is {self.limit_bytes}; try again")

    def put(self, queue: Queue, job: Job) -> None:
        """Run the job in this turn of the loop, or as soon as its model is free. Without room it is answered with `TooBusy`."""
        size = job.ask.size
        if (
            queue.waiting >= (self._few if queue.sheds else self.limit)
            or self.waiting >= self._all
            or self.bytes + size > self.limit_bytes
        ):
            try:
                self.check(queue, size)
            except TooBusy as error:
                self._refuse(job, error)
                return
        self.waiting += 1
        self.bytes += size
        queue.waiting += 1
        queue.bytes += size
        queue.jobs.append(job)
        if not queue.turn and not queue.busy:
            queue.turn = True
            self._turns.append(queue)
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._turn)

    def _refuse(self, job: Job, error: TooBusy) -> None:
        _write([job], [error])
        self._tell([job], [error])
        if job.owed is not None and job.data is not None:
            job.owed.give(job.data)
            self._loop.call_soon(job.owed.connection.flush)

    def _turn(self) -> None:
        """One batch of each model that has something to do."""
        self._scheduled = False
        touched: set[Sender] = set()
        for _ in range(len(self._turns)):
            queue = self._turns.popleft()
            queue.turn = False
            jobs, rows, size = self._taken(queue, touched)
            if not jobs:
                pass
            elif queue.is_quick(rows, size):
                counted = queue.doubts > 0
                answers, spent = _timed(jobs, counted)
                queue.ran_here(len(jobs), rows, size, spent, counted)
                self._finish(queue, jobs, size, answers, touched, spent)
            else:
                self._run_in_thread(queue, jobs, rows, size, touched)
            if not queue.busy:
                self._again(queue)
        for connection in touched:
            connection.flush()
        if not self.waiting:
            self.rest()

    def _run_in_thread(self, queue: Queue, jobs: list[Job], rows: int, size: int, touched: set[Sender]) -> None:
        """Without a thread the jobs are refused: the system may start no more of them now."""
        try:
            future = self._loop.run_in_executor(self._pool, _timed, jobs)
        except RuntimeError as error:
            log.warning("%s: no thread for a batch of %d requests: %s", queue.model, len(jobs), error)
            # The pool has kept the list all the same, for a thread that will be free: it is to find nobody in it.
            refused = jobs.copy()
            jobs.clear()
            answers: list[Answer] = [TooBusy(f"no thread is free to ask {queue.model}; try again")] * len(refused)
            _write(refused, answers)
            self._finish(queue, refused, size, answers, touched)
            return
        queue.busy = True
        future.add_done_callback(partial(self._ran, queue, jobs, rows, size))

    def _again(self, queue: Queue) -> None:
        if queue.jobs:
            queue.turn = True
            self._turns.append(queue)
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._turn)

    def _ran(
        self, queue: Queue, jobs: list[Job], rows: int, size: int, done: asyncio.Future[tuple[list[Answer], Spent]]
    ) -> None:
        queue.busy = False
        answers, spent = done.result()
        queue.took(len(jobs), rows, size, spent.busy, spent.ended - spent.began)
        touched: set[Sender] = set()
        self._finish(queue, jobs, size, answers, touched, spent)
        self._again(queue)
        for connection in touched:
            connection.flush()

    def _taken(self, queue: Queue, touched: set[Sender]) -> tuple[list[Job], int, int]:
        """The next batch, its rows and its bytes: no more than its limits, without those that nobody waits for any more and
        those that are late."""
        taken: list[Job] = []
        rows, size, jobs = 0, 0, queue.jobs
        limit = queue.rows if queue.model.batches else 1
        while jobs:
            job = jobs[0]
            ask, place = job.ask, job.owed
            if place is not None and place.gone:
                self._drop(queue, GONE, touched)
                continue
            timeout = ask.timeout_seconds
            if timeout is not None and time.perf_counter() - job.began > timeout:
                self._drop(queue, Late(f"the request waited longer than its timeout of {timeout:g} seconds"), touched)
                continue
            if taken and (rows + ask.rows > limit or size + ask.size > BATCH_BYTES):
                break
            taken.append(jobs.popleft())
            rows += ask.rows
            size += ask.size
        if taken:
            queue.began(taken[0], time.perf_counter())
            if queue.sheds and len(jobs) > SHED_JOBS:
                self._shed(queue, touched)
        return taken, rows, size

    def _shed(self, queue: Queue, touched: set[Sender]) -> None:
        """The queue has become too long before that was seen: the newest are told now what they would have been told."""
        room = queue.room(self.limit)
        error = TooBusy(f"more requests to {queue.model} came than it can answer; try again")
        refused = [queue.jobs.pop() for _ in range(len(queue.jobs) - room)]
        if refused:
            queue.refused_at = time.perf_counter()
            answers: list[Answer] = [error] * len(refused)
            _write(refused, answers)
            self._finish(queue, refused, sum([job.ask.size for job in refused]), answers, touched)

    def _drop(self, queue: Queue, error: DropforgeError, touched: set[Sender]) -> None:
        """The oldest job is not run."""
        job = queue.jobs.popleft()
        if error is not GONE:
            _write([job], [error])
        self._finish(queue, [job], job.ask.size, [error], touched)

    def _finish(
        self,
        queue: Queue,
        jobs: list[Job],
        size: int,
        answers: list[Answer],
        touched: set[Sender],
        spent: Spent | None = None,
    ) -> None:
        if spent is not None:
            self.batches += 1
            waited = len(jobs) * spent.began - sum([job.began for job in jobs])
            queue.model.statistics.add(len(jobs), waited, spent)
        self.waiting -= len(jobs)
        self.bytes -= size
        queue.waiting -= len(jobs)
        queue.bytes -= size
        self._tell(jobs, answers)
        for job in jobs:
            place, data = job.owed, job.data
            if place is not None and data is not None:
                place.give(data)
                touched.add(place.connection)

    def _tell(self, jobs: list[Job], answers: list[Answer]) -> None:
        for sink, ours, told in _by_sink(jobs, answers):
            try:
                sink.done(ours, told)
            except Exception:
                # Whoever is told, the next one is answered all the same.
                log.exception("%s: telling of an answer", ours[0].model)


def _nothing() -> None:
    pass


def _timed(jobs: list[Job], counted: bool = True) -> tuple[list[Answer], Spent]:
    """The answers of a batch, written, and where the time went: by processor time if that is `counted`, else by the clock.
    Raises nothing: whatever happens, every job is answered."""
    # A processor that was taken away says nothing of the model; one that waits for another device is as good as busy.
    counted = counted and jobs[0].model.runs_here
    spent, busy = Spent(time.perf_counter()), time.thread_time() if counted else 0.0
    try:
        answers = run(jobs, spent)
    except Exception as error:
        log.exception("%s: a batch of %d requests", jobs[0].model, len(jobs))
        answers = [ModelFailed(f"{jobs[0].model} could not be asked: {type(error).__name__}")] * len(jobs)
    spent.ran = time.perf_counter()
    _write(jobs, answers)
    spent.ended = time.perf_counter()
    spent.busy = time.thread_time() - busy if counted else spent.ended - spent.began
    return answers, spent


def _write(jobs: list[Job], answers: list[Answer]) -> None:
    """Make the bytes of the answers; of one that cannot be written, what went wrong."""
    for sink, ours, told in _by_sink(jobs, answers):
        try:
            sink.write(ours, told)
        except Exception:  # noqa: BLE001 - each by itself tells which it is
            _write_each(sink, jobs, answers)


def _write_each(sink: Sink, jobs: list[Job], answers: list[Answer]) -> None:
    for place, job in enumerate(jobs):
        if job.sink is not sink:
            continue
        try:
            sink.write([job], [answers[place]])
        except Exception as error:
            log.exception("%s: an answer", job.model)
            answers[place] = ModelFailed(f"the answer of {job.model} cannot be written: {type(error).__name__}")
            sink.write([job], [answers[place]])


def _by_sink(jobs: list[Job], answers: list[Answer]) -> Iterable[tuple[Sink, list[Job], list[Answer]]]:
    """The jobs and answers of each sink; nearly always there is one."""
    if len(jobs) == 1 or len({id(job.sink) for job in jobs}) == 1:
        return [(jobs[0].sink, jobs, answers)]
    found: dict[int, tuple[Sink, list[Job], list[Answer]]] = {}
    for job, answer in zip(jobs, answers, strict=True):
        _, ours, told = found.setdefault(id(job.sink), (job.sink, [], []))
        ours.append(job)
        told.append(answer)
    return found.values()


def run(jobs: list[Job], spent: Spent) -> list[Answer]:
    """The answers of jobs for one model, in their order. Those of equal shape are run as one; when that fails, each by
    itself, so that nobody's request is another's failure."""
    if len(jobs) == 1:
        return [_alone(jobs[0], spent)]
    model = jobs[0].model
    if model.one_rows and model.one_shape and len({id(job.ask.wanted) for job in jobs}) == 1:
        return _together(jobs, spent)
    groups: dict[object, list[int]] = {}
    for place, job in enumerate(jobs):
        groups.setdefault((job.ask.wanted.names, model.shape_key(job.ask.feeds)), []).append(place)
    answers: dict[int, Answer] = {}
    for places in groups.values():
        answers.update(zip(places, _together([jobs[place] for place in places], spent), strict=True))
    return [answers[place] for place in range(len(jobs))]


def _alone(job: Job, spent: Spent) -> Answer:
    began = time.perf_counter()
    try:
        arrays = job.model.run(job.ask.wanted.names, job.ask.feeds)
    except ModelFailed as error:
        return error
    spent.runs.append((job.ask.rows, time.perf_counter() - began))
    return Batch(arrays, whole=True).of_all()


def _together(jobs: list[Job], spent: Spent) -> list[Answer]:
    if len(jobs) == 1:
        return [_alone(jobs[0], spent)]
    model = jobs[0].model
    feeds: Feeds = {name: np.concatenate([job.ask.feeds[name] for job in jobs]) for name in jobs[0].ask.feeds}
    began = time.perf_counter()
    try:
        arrays = model.run(jobs[0].ask.wanted.names, feeds)
    except ModelFailed:
        return _halves(jobs, spent)
    ended = time.perf_counter()
    total = sum([job.ask.rows for job in jobs])
    if any(len(array) != total for array in arrays):
        # A model whose rows are not its first dimension after all.
        return [_alone(job, spent) for job in jobs]
    spent.runs.append((total, ended - began))
    batch = Batch(arrays)
    ends = [*accumulate([job.ask.rows for job in jobs])]
    return [*map(Rows, repeat(batch), [0, *ends], ends)]


def _halves(jobs: list[Job], spent: Spent) -> list[Answer]:
    """One of the jobs spoils it for the others: find it in a few runs, however many there are."""
    middle = len(jobs) // 2
    return _together(jobs[:middle], spent) + _together(jobs[middle:], spent)
