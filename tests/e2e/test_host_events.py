"""The event sources of one machine: drops, ended runs and timers reach their functions, whatever dies in between."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.e2e.hosting import APPS, HostHandle, eventually, running_host

DOORS = APPS / "doors"
QUICK = {"DROPFORGE_EVENT_RETRY_SECONDS": "0.2,0.4"}
CREATED, DELETED = "Microsoft.Storage.BlobCreated", "Microsoft.Storage.BlobDeleted"


def drop(state: Path, path: str, content: bytes = b"a,b\n1,2\n") -> Path:
    file = state / "drops" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def blobs(host: HostHandle, path: str) -> list[dict[str, Any]]:
    """What the function was told of one file, in order."""
    return [saw for saw in host.saw("blob") if saw["subject"].endswith(f"/blobs/{path}")]


def test_a_dropped_file_reaches_its_function_with_the_real_event(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path) as host:
        file = drop(tmp_path, "flights/day 1.csv")
        (told,) = eventually(lambda: blobs(host, "flights/day 1.csv"))
        assert told["type"] == CREATED
        assert told["subject"] == "/blobServices/default/containers/drops/blobs/flights/day 1.csv"
        assert told["data"]["url"] == "https://local.blob.localhost/drops/flights/day%201.csv"
        assert told["data"]["contentLength"] == file.stat().st_size
        file.write_bytes(b"a,b\n1,2\n3,4\n")
        again = eventually(lambda: blobs(host, "flights/day 1.csv")[1:])[0]
        assert again["data"]["eTag"] != told["data"]["eTag"]
        file.unlink()
        gone = eventually(lambda: blobs(host, "flights/day 1.csv")[2:])[0]
        assert (gone["type"], gone["data"]["api"]) == (DELETED, "DeleteBlob")
        time.sleep(1)
        assert len(blobs(host, "flights/day 1.csv")) == 3


def test_a_half_written_file_is_announced_once_it_is_whole(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path) as host:
        (tmp_path / "drops" / "copy.csv.part").write_bytes(b"half")
        with (tmp_path / "drops" / "slow.csv").open("wb") as writer:
            for _ in range(4):
                writer.write(b"a line\n")
                writer.flush()
                # Longer than the settle time: only the open file says that more is coming.
                time.sleep(0.7)
            assert host.saw("blob") == []
        (told,) = eventually(lambda: blobs(host, "slow.csv"))
        assert told["data"]["contentLength"] == 4 * len(b"a line\n")
        (tmp_path / "drops" / "copy.csv.part").rename(tmp_path / "drops" / "copy.csv")
        eventually(lambda: blobs(host, "copy.csv"))
        assert len(host.saw("blob")) == 2


def test_files_dropped_while_the_host_was_down_are_announced_and_old_ones_are_not(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path) as host:
        drop(tmp_path, "before.csv")
        eventually(lambda: blobs(host, "before.csv"))
        eventually(lambda: delivered(tmp_path) >= 1)
        host.kill()
    drop(tmp_path, "between.csv")
    with running_host(DOORS, tmp_path) as host:
        drop(tmp_path, "after.csv")
        eventually(lambda: blobs(host, "between.csv") and blobs(host, "after.csv"))
        time.sleep(0.5)
        assert len(blobs(host, "before.csv")) == 1


def delivered(state: Path) -> int:
    with contextlib.closing(sqlite3.connect(state / "storage_events.db")) as database:
        return int(database.execute("SELECT count(*) FROM delivered").fetchone()[0])


def test_an_event_that_is_refused_comes_again_across_kills_until_it_is_taken(tmp_path: Path) -> None:
    (tmp_path / "refuse-blobs").touch()
    with running_host(DOORS, tmp_path, QUICK) as host:
        drop(tmp_path, "a.csv")
        eventually(lambda: len(blobs(host, "a.csv")) >= 3)
        host.kill()
        refused = len(blobs(host, "a.csv"))
    with running_host(DOORS, tmp_path, QUICK) as host:
        eventually(lambda: len(blobs(host, "a.csv")) > refused)
        (tmp_path / "refuse-blobs").unlink()
        eventually(lambda: not blobs(host, "a.csv")[-1]["refused"])
        time.sleep(1)
        told = blobs(host, "a.csv")
        assert len([each for each in told if not each["refused"]]) == 1
        assert len({each["id"] for each in told}) == 1


def test_no_drop_is_lost_when_the_host_is_killed_again_and_again(tmp_path: Path) -> None:
    for life in range(3):
        with running_host(DOORS, tmp_path, QUICK) as host:
            for number in range(10):
                drop(tmp_path, f"{life}/{number}.csv", os.urandom(20))
            time.sleep(0.2 * life)
            host.kill()
    with running_host(DOORS, tmp_path, QUICK) as host:
        wanted = {f"{life}/{number}.csv" for life in range(3) for number in range(10)}
        eventually(lambda: wanted <= {saw["subject"].partition("/blobs/")[2] for saw in host.saw("blob")})


def test_events_go_to_the_functions_that_the_settings_name(tmp_path: Path) -> None:
    environment = {"DROPFORGE_STORAGE_EVENTS_TO": "ON_event, nobody", "DROPFORGE_RUN_EVENTS_TO": ""}
    with running_host(DOORS, tmp_path, environment) as host:
        drop(tmp_path, "a.csv")
        eventually(lambda: host.saw("event"))
        assert host.saw("blob") == []
        assert [line for line in host.logs() if "DROPFORGE_STORAGE_EVENTS_TO names 'nobody'" in line["message"]]


# ------------------------------------------------------------------ runs
def end_run(state: Path, run: str, how: str) -> None:
    """As the local compute does it: whole, or not at all."""
    folder = state / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "exit.json.tmp").write_text(json.dumps({"run": run, "state": how}))
    (folder / "exit.json.tmp").rename(folder / "exit.json")


def test_ended_runs_reach_their_function_also_those_that_ended_while_the_host_was_down(tmp_path: Path) -> None:
    (tmp_path / "runs" / "running").mkdir(parents=True)
    with running_host(DOORS, tmp_path, QUICK) as host:
        end_run(tmp_path, "good", "succeeded")
        eventually(lambda: host.saw("run"))
        host.stop()
    end_run(tmp_path, "bad", "failed")
    with running_host(DOORS, tmp_path, QUICK) as host:
        eventually(lambda: len(host.saw("run")) >= 2)
        time.sleep(0.5)
        assert [(saw["data"]["runId"], saw["data"]["runStatus"], saw["type"].rpartition(".")[2]) for saw in host.saw("run")] == [
            ("good", "Completed", "RunCompleted"), ("bad", "Failed", "RunStatusChanged"),
        ]  # fmt: skip


# ------------------------------------------------------------------ timers
def test_timers_fire_and_one_that_was_missed_fires_late(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path) as host:
        eventually(lambda: len(host.saw("second")) >= 2)
        assert host.saw("hourly") == []
        host.kill()
    due = datetime.now(UTC) - timedelta(minutes=10)
    (tmp_path / "timers.json").write_text(json.dumps({"hourly": {"due": due.isoformat(), "last": None}}))
    with running_host(DOORS, tmp_path) as host:
        assert [saw["past_due"] for saw in eventually(lambda: host.saw("hourly"))] == [True]
        # Killed before it wrote down that it fired, the timer would rightly fire again.
        eventually(lambda: json.loads((tmp_path / "timers.json").read_text())["hourly"]["last"])
        host.kill()
    with running_host(DOORS, tmp_path) as host:
        time.sleep(0.3)
        assert len(host.saw("hourly")) == 1
    seconds = [int(saw["at"]) for saw in host.saw("second")]
    assert len(seconds) == len(set(seconds))
