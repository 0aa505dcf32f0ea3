"""The threads in which plain `def` functions run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_DEFAULT_COUNT = 32
_SETTING = "PYTHON_THREADPOOL_THREAD_COUNT"


class FunctionThreads(Executor):
    """A thread pool that a stuck function cannot keep the process alive with.

    The pool of the standard library joins its threads when the interpreter ends; a function that never returns would
    then stop the host from stopping. These are daemon threads, started as they are needed.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._threads = 0
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run the call in one of the threads; calls wait in order while all are busy. Raises `RuntimeError` after
        `shutdown`, and when there is no thread and none can be started."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - the caller awaits it, whatever it is
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._closed:
                raise RuntimeError("the host has stopped: no further function can be called")
            if self._idle:
                self._idle -= 1
            elif self._threads < self._count:
                self._add_thread()
            self._work.put(run)
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Take no further calls. Calls that run go on until they return or the process ends."""
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                self._work.put(None)

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"function-{self._threads + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The system has no more threads now. The call waits for one of ours, and only without any it never ran.
            if not self._threads:
                raise
        else:
            self._threads += 1

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            # A finished call may hold much; do not keep it until the next one comes.
            del work
            with self._lock:
                if self._work.empty():
                    self._idle += 1


def thread_count(environment: Mapping[str, str]) -> int:
    """How many functions run at once. Raises `ValueError` for a setting that is no number from 1 to 1000."""
    text = environment.get(_SETTING)
    if text is None:
        return _DEFAULT_COUNT
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise ValueError(f"{_SETTING} must be a whole number from 1 to 1000, found {text!r}")
    return int(text)
