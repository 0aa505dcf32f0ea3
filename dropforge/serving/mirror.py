"""Copies of live requests for a version that nobody is answered by, and how its answers compare.

A copy is handed over after its live answer is under way, to a thread of its own that gives way to all others. What does not
fit in the short queue before it is dropped and counted: neither a slow candidate nor one that hangs holds anything up.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np

from dropforge.domain.endpoints import Mirrored
from dropforge.serving.batching import Answer, Job, run
from dropforge.serving.metrics import Counts
from dropforge.serving.models import Model
from dropforge.serving.priority import BEHIND, give_way
from dropforge.serving.results import Rows
from dropforge.serving.statistics import Spent
from dropforge.serving.tensors import Array
from dropforge.serving.traffic import Turns

log = logging.getLogger(__name__)

# Copies that wait or are run, and the bytes of their inputs.
WAITING = 256
WAITING_BYTES = 32 * 2**20
# Copies that are run together.
BATCH = 32
# A thread that has had nothing to do for so long ends, and with it what it holds of the model.
IDLE_SECONDS = 20.0
# Numbers that differ by less than this share are the same.
CLOSE = 1e-3
TINY = 1e-9


_THREAD = "mirror "


def wait_for_lanes(seconds: float) -> bool:
    """Whether within that time the threads of all lanes that were closed have come back from their models."""
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name.startswith(_THREAD):
            thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.name.startswith(_THREAD) for thread in threading.enumerate())


class MirrorCounts:
    """What became of the copies; written by the lane's thread, but for `dropped`, which is the event loop's."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.dropped: dict[str, int] = {}
        self.disagreed = self.rows = self.flipped = 0
        self.max_difference = 0.0

    def drop(self, why: str) -> None:
        self.dropped[why] = self.dropped.get(why, 0) + 1

    def add(self, seconds: float, difference: Difference | None) -> None:
        """A copy was run; `difference` is None when the model failed, or its answer cannot be compared."""
        self.counts.add(seconds, difference is None)
        if difference is not None:
            self.disagreed += difference.disagrees
            self.rows += difference.rows
            self.flipped += difference.flipped
            self.max_difference = max(self.max_difference, difference.largest)

    def told(self) -> Mirrored:
        return Mirrored(
            self.counts.requests,
            self.counts.failed,
            sum(self.dropped.values()),
            self.disagreed,
            self.rows,
            self.flipped,
            self.max_difference,
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """Between a live answer and that of a copy. `rows` are those that both decided, if the outputs hold decisions."""

    disagrees: bool
    rows: int = 0
    flipped: int = 0
    largest: float = 0.0


class Lane:
    """The way of copies to one candidate. `total` counts since the start, `since` since this lane is there."""

    def __init__(self, model: Model, percent: int) -> None:
        self.model = model
        self.total = MirrorCounts()
        self.since = MirrorCounts()
        self._turns = Turns(percent / 100)
        self._new: list[tuple[Job, Rows]] = []
        self._queue: SimpleQueue[list[tuple[Job, Rows]] | None] = SimpleQueue()
        # Of what waits; guarded, as both sides change them.
        self._waiting = self._bytes = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    # -------------------------------------------------------------------------------------------- on the event loop
    def offer(self, job: Job, answer: Rows, busy: bool) -> None:
        """Have a copy made of a request that was answered, if it is its turn; `busy`: requests wait for the server."""
        if job.model is self.model or not self._turns.mine():
            return
        if busy:
            self._drop("busy")
        elif self._waiting >= WAITING or self._bytes >= WAITING_BYTES or self._closed:
            self._drop("slow")
        else:
            if not self._new:
                asyncio.get_running_loop().call_soon(self._hand_over)
            with self._lock:
                self._waiting += 1
                self._bytes += _size(job)
            self._new.append((job, answer))

    def close(self) -> None:
        """No more copies; from any thread."""
        self._closed = True
        self._queue.put(None)

    def _drop(self, why: str) -> None:
        self.total.drop(why)
        self.since.drop(why)

    def _hand_over(self) -> None:
        new, self._new = self._new, []
        with self._lock:
            self._queue.put(new)
            if self._thread is None:
                # One that hangs must not keep the process from ending.
                self._thread = threading.Thread(target=self._work, name=f"{_THREAD}{self.model}", daemon=True)
                self._thread.start()

    # -------------------------------------------------------------------------------------------- on its thread
    def _work(self) -> None:
        give_way(BEHIND)
        while True:
            try:
                taken = self._queue.get(timeout=IDLE_SECONDS)
            except Empty:
                taken = None
            if taken is None:
                with self._lock:
                    if self._closed or self._queue.empty():
                        self._thread = None
                        return
                continue
            try:
                for start in range(0, len(taken), BATCH):
                    if not self._closed:
                        self._run(taken[start : start + BATCH])
            finally:
                with self._lock:
                    self._waiting -= len(taken)
                    self._bytes -= sum(_size(job) for job, _ in taken)

    def _run(self, pairs: list[tuple[Job, Rows]]) -> None:
        copies = [Job(self.model, job.ask, 0.0, _NOBODY) for job, _ in pairs]
        for one in [copies] if self.model.batches else [[copy] for copy in copies]:
            began = time.perf_counter()
            try:
                answers = run(one, Spent(began))
            except Exception as error:  # noqa: BLE001 - a candidate may do what it likes
                log.warning("%s: a copy failed: %r", self.model, error)
                answers = [None] * len(one)  # type: ignore[list-item]
            seconds = time.perf_counter() - began
            self.model.statistics.last_at = time.perf_counter()
            live = pairs[: len(one)]
            pairs = pairs[len(one) :]
            for (_, answer), found in zip(live, answers, strict=True):
                difference = self._compared(answer, found) if isinstance(found, Rows) else None
                self.total.add(seconds, difference)
                self.since.add(seconds, difference)

    def _compared(self, live: Rows, copy: Rows) -> Difference | None:
        try:
            return compare(live.arrays, copy.arrays)
        except Exception as error:  # noqa: BLE001 - nor may what it answers end the lane
            log.warning("%s: the answer to a copy cannot be compared: %r", self.model, error)
            return None


class _Nobody:
    """Whom the answers to copies go to."""

    def write(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        raise AssertionError("nobody reads the answer to a copy")

    def done(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        raise AssertionError("nobody waits for the answer to a copy")


_NOBODY = _Nobody()


def _size(job: Job) -> int:
    return sum(array.nbytes for array in job.ask.feeds.values())


# ------------------------------------------------------------------------------------------------ comparing
def compare(live: Sequence[Array], copy: Sequence[Array]) -> Difference:
    """How two answers to one request differ, output by output.

    Labels (whole numbers, text, true or false) decide, and so do probabilities: the likeliest class of a row that sums to 1,
    or one half of a single one. Two answers disagree when they decide otherwise or, where nothing is decided, when a number
    differs by more than a thousandth; NaN is only like NaN.
    """
    flipped: Array | None = None
    unlike, largest = False, 0.0
    for one, other in zip(live, copy, strict=True):
        if one.shape != other.shape or (one.dtype.kind == "f") != (other.dtype.kind == "f"):
            return Difference(disagrees=True)
        if one.dtype.kind != "f":
            differs = np.asarray(one != other)
        else:
            # Of what has no dimensions numpy makes scalars, and those take no values.
            a, b = np.atleast_1d(one.astype(np.float64), other.astype(np.float64))
            with np.errstate(invalid="ignore"):
                apart = np.abs(a - b)
            apart[(np.isnan(a) & np.isnan(b)) | (a == b)] = 0.0
            finite = apart[np.isfinite(apart)]
            largest = max(largest, float(finite.max(initial=0.0)))
            allowed = CLOSE * np.maximum(np.abs(a), np.abs(b)) + TINY
            unlike |= not bool(((apart == 0) | (np.isfinite(apart) & (apart <= allowed))).all())
            first, second = _decided(a), _decided(b)
            if first is None or second is None:
                continue
            differs = first != second
        rows: Array = np.asarray(
            differs.any(axis=tuple(range(1, differs.ndim))) if differs.ndim else differs.reshape(1)
        )
        flipped = rows if flipped is None or flipped.shape != rows.shape else np.logical_or(flipped, rows)
    if flipped is None:
        return Difference(unlike, largest=largest)
    return Difference(bool(flipped.any()), len(flipped), int(flipped.sum()), largest)


def _decided(array: Array) -> Array | None:
    """The decision of each row, if the values are probabilities."""
    if not array.size or array.ndim not in (1, 2) or not ((array >= 0) & (array <= 1)).all():
        return None
    if array.ndim == 2 and array.shape[1] > 1:
        return array.argmax(axis=1) if np.allclose(array.sum(axis=1), 1.0, atol=1e-3) else None
    return array.reshape(-1) >= 0.5
