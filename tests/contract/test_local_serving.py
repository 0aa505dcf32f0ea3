"""The files that serving shares with the inference servers on one machine."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dropforge.adapters.local.atomic import locked
from dropforge.adapters.local.serving import LocalServing, list_desired, read_desired, remove_report, write_report
from dropforge.domain.endpoints import Desired, ReplicaState
from dropforge.domain.errors import BadName, Unavailable
from dropforge.wire import from_json, to_json
from tests.contract.conftest import Clock
from tests.contract.samples import NOW
from tests.contract.test_serving import state, wanted
from tests.contract.writers import finished, start


def test_a_server_reads_what_was_published(tmp_path: Path) -> None:
    serving = LocalServing(tmp_path)
    serving.publish(wanted(3))
    serving.publish(wanted(1, "weather"))
    assert read_desired(tmp_path, "flights") == wanted(3)
    assert list_desired(tmp_path) == [wanted(3), wanted(1, "weather")]
    assert from_json(Desired, (tmp_path / "desired" / "flights.json").read_bytes()) == wanted(3)


def test_a_server_that_comes_before_anything_was_published_finds_nothing(tmp_path: Path) -> None:
    assert read_desired(tmp_path / "none", "flights") is None
    assert list_desired(tmp_path / "none") == []


def test_a_report_is_a_file_of_the_replica(tmp_path: Path) -> None:
    write_report(tmp_path, state("host-1.2"))
    path = tmp_path / "replicas" / "host-1.2" / "flights.json"
    assert from_json(ReplicaState, path.read_bytes()) == state("host-1.2")
    assert [each.name for each in path.parent.iterdir()] == ["flights.json"]


def test_a_report_that_is_taken_away_is_not_observed(tmp_path: Path) -> None:
    serving = LocalServing(tmp_path, clock=Clock())
    write_report(tmp_path, state("one"))
    remove_report(tmp_path, "one", "flights")
    remove_report(tmp_path, "one", "flights")
    assert serving.observe("flights") == []


@pytest.mark.parametrize("replica", ["", "..", "../x", "a/b", ".hidden", "a b"])
def test_a_replica_without_a_proper_name_is_refused(tmp_path: Path, replica: str) -> None:
    with pytest.raises(BadName, match="replica"):
        write_report(tmp_path, state(replica))


def test_of_many_processes_the_newest_revision_wins(tmp_path: Path) -> None:
    processes = [start("revisions", tmp_path, first, 3) for first in (0, 1, 2)]
    seen = [-1]
    while any(process.poll() is None for process in processes):
        desired = read_desired(tmp_path, "flights")
        seen.append(desired.revision if desired else seen[-1])
    finished(processes)
    assert seen == sorted(seen)
    assert [desired.revision for desired in list_desired(tmp_path)] == [119]


def test_a_publisher_waits_for_the_one_before(tmp_path: Path) -> None:
    serving = LocalServing(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "desired" / ".flights.lock"):
            done = pool.submit(serving.publish, wanted(1))
            with pytest.raises(TimeoutError):
                done.result(timeout=0.2)
            assert serving.desired("flights") is None
        done.result(timeout=60)
    assert serving.desired("flights") == wanted(1)


def test_a_reader_that_opened_the_file_before_reads_it_whole(tmp_path: Path) -> None:
    serving = LocalServing(tmp_path)
    serving.publish(wanted(1))
    write_report(tmp_path, state("one"))
    with (
        (tmp_path / "desired" / "flights.json").open("rb") as desired,
        (tmp_path / "replicas" / "one" / "flights.json").open("rb") as report,
    ):
        serving.publish(wanted(2))
        write_report(tmp_path, state("one", revision=2))
        assert from_json(Desired, desired.read()) == wanted(1)
        assert from_json(ReplicaState, report.read()) == state("one")


def test_a_damaged_desired_state_is_told_and_never_taken_for_none(tmp_path: Path) -> None:
    serving = LocalServing(tmp_path)
    serving.publish(wanted(3))
    (tmp_path / "desired" / "flights.json").write_bytes(to_json(wanted(3))[:50])
    for call in (
        lambda: read_desired(tmp_path, "flights"),
        lambda: list_desired(tmp_path),
        lambda: serving.publish(wanted(4)),
    ):
        with pytest.raises(Unavailable, match=r"flights\.json cannot be read"):
            call()


def test_a_damaged_report_hides_its_replica_only(tmp_path: Path) -> None:
    serving = LocalServing(tmp_path, clock=Clock())
    write_report(tmp_path, state("one"))
    write_report(tmp_path, state("two"))
    (tmp_path / "replicas" / "one" / "flights.json").write_bytes(b"")
    assert serving.observe("flights") == [state("two")]


def test_reports_of_replicas_that_ended_long_ago_are_forgotten_at_the_next_start(tmp_path: Path) -> None:
    for name, age in (("ended", timedelta(days=2)), ("alive", timedelta(seconds=1))):
        write_report(tmp_path, replace(state(name), reported_at=NOW - age))
        path = tmp_path / "replicas" / name / "flights.json"
        os.utime(path, ((NOW - age).timestamp(),) * 2)
    serving = LocalServing(tmp_path, clock=Clock())
    assert not (tmp_path / "replicas" / "ended" / "flights.json").exists()
    assert [each.replica for each in serving.observe("flights")] == ["alive"]
