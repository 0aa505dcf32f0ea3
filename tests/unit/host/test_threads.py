"""The threads of plain functions: as many as allowed, in order, and no obstacle to the end of the process."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future

import pytest

from dropforge.host.threads import FunctionThreads, thread_count


def test_calls_run_at_once_up_to_the_count_and_the_rest_wait() -> None:
    threads = FunctionThreads(3)
    started, gate = threading.Semaphore(0), threading.Event()

    def work() -> str:
        started.release()
        assert gate.wait(10)
        return threading.current_thread().name

    futures = [threads.submit(work) for _ in range(10)]
    for _ in range(3):
        assert started.acquire(timeout=10)
    assert not started.acquire(timeout=0.05)
    gate.set()
    assert len({future.result(10) for future in futures}) == 3
    threads.shutdown()


def test_an_idle_thread_is_used_again() -> None:
    threads = FunctionThreads(8)
    names = set()
    for _ in range(20):
        names.add(threads.submit(lambda: threading.current_thread().name).result(10))
        # Until the thread has come back from setting the result.
        for _ in range(1000):
            if threads._idle:
                break
            threading.Event().wait(0.001)
    assert len(names) == 1
    threads.shutdown()


def test_what_a_call_raises_reaches_the_caller() -> None:
    def fail() -> None:
        raise SystemExit(3)

    threads = FunctionThreads(1)
    with pytest.raises(SystemExit):
        threads.submit(fail).result(10)
    assert threads.submit(lambda: 1).result(10) == 1
    threads.shutdown()


def test_a_cancelled_call_never_runs() -> None:
    threads = FunctionThreads(1)
    gate = threading.Event()
    first: Future[bool] = threads.submit(gate.wait, 10)
    second = threads.submit(pytest.fail, "it ran")
    assert second.cancel()
    gate.set()
    assert first.result(10)
    assert threads.submit(lambda: 1).result(10) == 1
    threads.shutdown()


def test_a_thread_that_cannot_start_takes_no_place_of_those_that_can_later(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = FunctionThreads(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start"):
                threads.submit(pytest.fail, "it ran")
    assert threads.submit(lambda: 1).result(10) == 1
    threads.shutdown()


def test_a_call_for_which_no_thread_can_start_waits_for_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = FunctionThreads(2)
    gate = threading.Event()
    first: Future[bool] = threads.submit(gate.wait, 10)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread)
        second = threads.submit(lambda: 2)
    assert not second.done()
    gate.set()
    assert (first.result(10), second.result(10)) == (True, 2)
    threads.shutdown()


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_no_call_is_taken_after_the_end() -> None:
    threads = FunctionThreads(1)
    threads.shutdown()
    with pytest.raises(RuntimeError, match="stopped"):
        threads.submit(print)


def test_a_call_that_never_returns_does_not_keep_the_process() -> None:
    script = "import threading; from dropforge.host.threads import FunctionThreads; FunctionThreads(1).submit(threading.Event().wait)"
    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 0


@pytest.mark.parametrize(("environment", "count"), [({}, 32), ({"PYTHON_THREADPOOL_THREAD_COUNT": "5"}, 5)])
def test_the_count_comes_from_the_setting(environment: dict[str, str], count: int) -> None:
    assert thread_count(environment) == count


@pytest.mark.parametrize("text", ["0", "-1", "many", "1001", ""])
def test_a_count_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="PYTHON_THREADPOOL_THREAD_COUNT"):
        thread_count({"PYTHON_THREADPOOL_THREAD_COUNT": text})
