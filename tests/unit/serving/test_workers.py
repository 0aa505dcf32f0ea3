"""How many workers there are (cores, quotas and GPUs), and which of them are started again."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from dropforge.serving import workers
from dropforge.serving.__main__ import parser
from dropforge.serving.provider import gpus_here
from dropforge.serving.workers import CANNOT_START, Supervisor, cores, quota, wanted


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "?\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "200000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "?\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_is_that_of_the_control_group(tmp_path: Path, files: dict[str, str], found: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota(tmp_path) == found


@pytest.mark.parametrize(
    ("quota_us", "found"), [("max", 8), ("1200000", 8), ("400000", 4), ("150000", 2), ("120000", 1), ("20000", 1)]
)
def test_cores_are_those_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota_us: str, found: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu.max").write_text(f"{quota_us} 100000\n")
    assert cores(tmp_path) == found


def test_a_container_has_one_worker_on_each_core_or_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 4)
    assert wanted(0, (), on_gpu=False) == 4
    assert wanted(0, (), on_gpu=True) == 1
    assert wanted(0, ("0", "1"), on_gpu=True) == 2
    assert wanted(3, (), on_gpu=False) == 3
    assert wanted(1, (), on_gpu=False) == 1


def test_a_worker_that_the_system_cannot_start_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "PAUSES_SECONDS", (0.001, 0.01))
    command = tmp_path / "worker"

    async def scenario() -> int:
        async with asyncio.timeout(20):
            running = asyncio.create_task(Supervisor([str(command)], 1, "r").run())
            while "worker r-0 cannot be started" not in caplog.text:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.002)
            # One whose settings are wrong, which ends it all.
            command.symlink_to(wrong)
            return await running

    wrong = tmp_path / "wrong"
    wrong.write_text(f"#!/bin/sh\nexit {CANNOT_START}\n")
    wrong.chmod(0o755)
    assert asyncio.run(scenario()) == CANNOT_START


def test_a_worker_that_cannot_start_again_for_a_moment_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "PAUSES_SECONDS", (0.001, 0.01))
    command = tmp_path / "worker"
    # The first life of the one that dies ends at once, each later one finds something wrong until there is a file `right`.
    command.write_text(
        f"""#!/bin/sh
cd {tmp_path}
case "$*" in
    *"--replica r-1 "*) echo >> began; exec sleep 60 ;;
esac
[ -e lived ] || {{ touch lived; exit 1; }}
[ -e right ] || exit {CANNOT_START}
touch back
exec sleep 60
"""
    )
    command.chmod(0o755)

    async def scenario() -> int:
        async with asyncio.timeout(20):
            running = asyncio.create_task(Supervisor([str(command)], 2, "r").run())
            while caplog.text.count(f"worker r-0 ended ({CANNOT_START}); it is started again") < 3:
                assert not running.done()
                await asyncio.sleep(0.002)
            (tmp_path / "right").touch()
            while not ((tmp_path / "back").exists() and (tmp_path / "began").exists()):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.002)
            os.kill(os.getpid(), signal.SIGTERM)
            return await running

    assert asyncio.run(scenario()) == 0
    assert (tmp_path / "began").read_text() == "\n"


@pytest.mark.parametrize(
    ("said", "found"), [("echo 0; echo 1", ("0", "1")), ("echo no devices were found; exit 6", ()), (None, ())]
)
def test_gpus_are_those_that_nvidia_smi_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, found: tuple[str, ...]
) -> None:
    if said is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{said}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus_here() == found


def test_the_environment_says_how_many_where_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parser().parse_args(["--port", "0"]).workers == 1
    monkeypatch.setenv("DROPFORGE_SERVE_WORKERS", "0")
    assert parser().parse_args(["--port", "0"]).workers == 0
    assert parser().parse_args(["--port", "0", "--workers", "2"]).workers == 2
