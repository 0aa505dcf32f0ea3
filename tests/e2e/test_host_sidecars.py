"""Child processes of the host: started with it, started again, and gone with it, however it goes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from dropforge.host.sidecars import Sidecar, Sidecars
from tests.e2e.hosting import eventually

SLEEPER = (sys.executable, "-I", "-S", "-c", "import time; print('begun', flush=True); time.sleep(600)")


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", script)


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


async def until(find: Any) -> Any:
    return await asyncio.to_thread(eventually, find)


def test_a_sidecar_is_started_logged_and_ended(tmp_path: Path) -> None:
    async def work() -> None:
        sidecars = Sidecars([Sidecar("sleeper", SLEEPER)], tmp_path)
        sidecars.start()
        await sidecars.ready("sleeper")
        pid = sidecars.pid("sleeper")
        assert pid is not None
        await until(lambda: "begun" in (tmp_path / "sleeper.log").read_text())
        await sidecars.stop()
        assert not is_alive(pid)

    run(work())


def test_a_sidecar_that_dies_is_started_again(tmp_path: Path) -> None:
    async def work() -> None:
        sidecars = Sidecars([Sidecar("sleeper", SLEEPER)], tmp_path, backoff_seconds=(0.01,))
        sidecars.start()
        await sidecars.ready("sleeper")
        first = sidecars.pid("sleeper")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: sidecars.pid("sleeper") not in (None, first))
        await sidecars.stop()

    run(work())


def test_one_that_cannot_start_does_not_stop_the_host(tmp_path: Path) -> None:
    async def work() -> None:
        sidecars = Sidecars([Sidecar("nothing", ("/no/such/program",))], tmp_path, backoff_seconds=(0.01,))
        sidecars.start()
        log = tmp_path / "nothing.log"
        await until(lambda: log.exists() and "FileNotFoundError" in log.read_text())
        await sidecars.stop()

    run(work())


@pytest.mark.parametrize("kernel_tells", [True, False])
def test_a_sidecar_that_no_thread_can_be_started_for_begins_once_and_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_tells: bool
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def no_descriptor(_: int) -> int:
        raise OSError(errno.ENOSYS, "not implemented")

    async def work() -> None:
        sidecars = Sidecars([Sidecar("sleeper", SLEEPER)], tmp_path, backoff_seconds=(0.01,))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            if not kernel_tells:
                patch.setattr(os, "pidfd_open", no_descriptor)
            sidecars.start()
            async with asyncio.timeout(10):
                await sidecars.ready("sleeper")
        log = tmp_path / "sleeper.log"
        await until(lambda: "begun" in log.read_text())
        pid = sidecars.pid("sleeper")
        assert pid is not None
        await sidecars.stop()
        assert (is_alive(pid), log.read_text().count("begun")) == (False, 1)

    run(work())


def test_a_sidecar_is_ready_when_its_url_answers(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path))

    async def work() -> None:
        sidecars = Sidecars([Sidecar("web", server, ready_url=f"http://127.0.0.1:{port}/")], tmp_path)
        sidecars.start()
        async with asyncio.timeout(30):
            await sidecars.ready("web")
        with socket.create_connection(("127.0.0.1", port)):
            pass
        await sidecars.stop()

    run(work())


def test_triggers_wait_for_a_sidecar_that_they_need_and_for_no_other_and_not_for_ever(tmp_path: Path) -> None:
    never = "http://127.0.0.1:9/"

    async def work() -> None:
        sidecars = Sidecars(
            [Sidecar("other", SLEEPER, ready_url=never), Sidecar("bus", SLEEPER, needed=True)], tmp_path
        )
        sidecars.start()
        await sidecars.wait_for_needed(30)
        assert sidecars.pid("bus")
        await sidecars.stop()
        sidecars = Sidecars([Sidecar("bus", SLEEPER, ready_url=never, needed=True)], tmp_path)
        sidecars.start()
        await sidecars.wait_for_needed(0.5)
        await sidecars.stop()

    run(work())


def test_one_that_ignores_the_signal_is_killed_with_its_children(tmp_path: Path) -> None:
    script = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork();"
        "print(f'child {child}', flush=True) if child else None; time.sleep(600)"
    )

    async def work() -> None:
        sidecars = Sidecars([Sidecar("stubborn", python(script))], tmp_path, grace_seconds=0.3)
        sidecars.start()
        await sidecars.ready("stubborn")
        log = await until(lambda: (tmp_path / "stubborn.log").read_text())
        child = int(log.split()[1])
        await sidecars.stop()
        await until(lambda: not is_alive(child))

    run(work())


def test_the_environment_is_added_to_the_hosts_own(tmp_path: Path) -> None:
    script = "import os, time; print(os.environ['PATH'] != '', os.environ['EXTRA'], flush=True); time.sleep(600)"

    async def work() -> None:
        sidecars = Sidecars([Sidecar("env", python(script), {"EXTRA": "more"})], tmp_path)
        sidecars.start()
        await until(lambda: (tmp_path / "env.log").exists() and "True more" in (tmp_path / "env.log").read_text())
        await sidecars.stop()

    run(work())


def test_a_sidecar_dies_with_a_host_that_is_killed(tmp_path: Path) -> None:
    host = (
        "import asyncio, sys; from pathlib import Path; from dropforge.host.sidecars import Sidecar, Sidecars\n"
        "async def main():\n"
        f"    sidecars = Sidecars([Sidecar('sleeper', {SLEEPER!r})], Path({str(tmp_path)!r}))\n"
        "    sidecars.start()\n"
        "    await sidecars.ready('sleeper')\n"
        "    print(sidecars.pid('sleeper'), flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", host], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        # Until the wrapper has become the program: only then has it certainly asked the kernel.
        eventually(lambda: "begun" in (tmp_path / "sleeper.log").read_text())
        process.kill()
    eventually(lambda: not is_alive(pid))
