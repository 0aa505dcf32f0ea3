"""Threads that give way to those that answer."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

# How far a thread gives way. At `IDLE` (for the kernel what comes after 19) it has what others leave over, and is gone as soon
# as they want to run, however much they have had. But the interpreter's lock is one: a thread that holds it, and has to wait
# for another process that wants its core, keeps everybody here waiting: at `IDLE` for up to a second, at `LONG` for 0.03 s, at
# `BEHIND` hardly longer than that one's turn.
IDLE, LONG, BEHIND = 20, 10, 5
# Over so many seconds: of its time, what the main thread runs when requests need all of it that they can get, and what it then
# waits for the core when another process wants that as well; and of the time of all cores, what others run who leave enough.
BUSY, CROWDED, QUIET, WINDOW_SECONDS = 0.3, 0.15, 0.2, 0.25
# Work that gives way altogether gets nothing of a core that is never free. After the first of these times the loop leaves it the
# second, again and again after the third.
PATIENCE_SECONDS, PAUSE_SECONDS, BETWEEN_SECONDS = 1.0, 0.002, 0.05

_MAIN, _CORES = Path("/proc/self/schedstat"), Path("/proc/stat")


def give_way(niceness: int) -> None:
    """From now on this thread runs when others leave it time; where threads have no priority of their own, nothing changes."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        if niceness == IDLE:
            with suppress(OSError):
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
                # Who was waiting for the core when this thread was like any other would wait for the end of its turn.
                os.sched_yield()
                return
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))
            os.sched_yield()


class Times(NamedTuple):
    """Seconds by now: that the main thread ran, and that it was ready to run and did not; that other processes ran on each core
    this one may use, on average (None: nobody tells)."""

    ran: float
    waited: float
    others: float | None


class Neighbours:
    """Who had the core lately: how far work beside the main thread has to give way, and may."""

    def __init__(self) -> None:
        self.niceness = BEHIND
        self._before: tuple[float, Times] | None = None

    def look(self, now: float, tell: Callable[[], Times]) -> None:
        """Once in a while: the time, and what tells the others. Not while work that is not `IDLE` is done, whose turns the main
        thread waits for as well."""
        if self._before is None:
            self._before = (now, tell())
        elif (seconds := now - self._before[0]) >= WINDOW_SECONDS:
            before, after = self._before[1], tell()
            self._before = (now, after)
            is_busy = after.ran - before.ran > BUSY * seconds
            is_crowded = after.waited - before.waited > CROWDED * seconds
            # A main thread that runs little and is woken often has its turns before others, so it tells nothing of them.
            is_quiet = (
                before.others is not None
                and after.others is not None
                and after.others - before.others < QUIET * seconds
            )
            self.niceness = IDLE if not is_crowded and (is_busy or is_quiet) else BEHIND

    def skip(self) -> None:
        """This time is not one to look at."""
        self._before = None


def times() -> Times:
    """Of this process, as the system tells it."""
    return Times(*main_thread_times(), others_seconds())


def main_thread_times(path: Path = _MAIN) -> tuple[float, float]:
    """For how long the main thread ran, and was ready to run and did not, in seconds; zeros where nobody tells.

    https://docs.kernel.org/scheduler/sched-stats.html
    """
    with suppress(OSError, ValueError, IndexError):
        ran, waited = path.read_text().split()[:2]
        return int(ran) / 1e9, int(waited) / 1e9
    return 0.0, 0.0


def others_seconds(path: Path = _CORES) -> float | None:
    """For how long other processes ran, by the cores that this one may use: their mean, in seconds. None where nobody tells.

    https://docs.kernel.org/filesystems/proc.html#miscellaneous-kernel-statistics-in-proc-stat
    """
    with suppress(OSError, ValueError, AttributeError):
        cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        found = [line.split() for line in path.read_text().splitlines() if line.partition(" ")[0] in cores]
        # Programs, those that give way, and the system on behalf of both.
        ran = sum(int(each) for line in found for each in line[1:4]) / os.sysconf("SC_CLK_TCK")
        return (ran - time.process_time()) / len(found) if found else None
    return None


class Aside:
    """Work beside the requests: one piece at a time, each in a thread of its own, for a thread that has given way cannot
    take that back."""

    def __init__(self) -> None:
        # How far the work that is done now gives way; None: not at all, or there is none.
        self.niceness: int | None = None
        self._free = asyncio.Lock()

    async def run(self, niceness: Callable[[], int | None], work: Callable[[], T]) -> T:
        """What the work gives; its thread gives way as far as is said when it begins (None: not at all)."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        try:
            self.niceness = niceness()
            pool = ThreadPoolExecutor(1, "load", None if self.niceness is None else partial(give_way, self.niceness))
            done = pool.submit(work)
        except BaseException:
            # There may be no more threads.
            self._ended()
            raise
        pool.shutdown(wait=False)
        # Who waits for it may give up; the thread does not, and the next piece has to wait for that.
        done.add_done_callback(lambda _: self._call(loop))
        pauses = loop.create_task(_pauses()) if self.niceness == IDLE else None
        try:
            return await asyncio.wrap_future(done)
        finally:
            if pauses is not None:
                pauses.cancel()
            # It holds what went wrong, whose traceback holds this frame and through others the model: for as long as the
            # collector does not come by.
            del done

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        # After the end of the loop nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        self.niceness = None
        self._free.release()


async def _pauses() -> None:
    await asyncio.sleep(PATIENCE_SECONDS)
    while True:
        pause()
        await asyncio.sleep(BETWEEN_SECONDS)


def pause() -> None:
    """Leave the core to others."""
    time.sleep(PAUSE_SECONDS)
