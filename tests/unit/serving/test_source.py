"""Desired states as files, seen when they change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dropforge.adapters.local.serving import LocalServing
from dropforge.domain.endpoints import Deployment, Desired
from dropforge.domain.errors import BadName, DropforgeError, Unavailable
from dropforge.serving.slots import Slot
from dropforge.serving.source import Folder, open_source

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def desired(revision: int, endpoint: str = "flights") -> Desired:
    return Desired(endpoint, revision, (Deployment("flights", revision, "file:///m", "00", 1),), NOW)


@pytest.fixture
def port(tmp_path: Path) -> LocalServing:
    return LocalServing(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    return Folder(tmp_path, "r1")


def settle(root: Path, endpoint: str = "flights") -> None:
    """Make the file look old enough for its time to be trusted."""
    os.utime(root / "desired" / f"{endpoint}.json", ns=(10**18, 10**18))


def test_the_first_look_tells_all_and_the_next_what_changed(port: LocalServing, source: Folder) -> None:
    port.publish(desired(1))
    port.publish(desired(1, "weather"))
    assert source.changes() == {"flights": desired(1), "weather": desired(1, "weather")}
    assert source.changes() == {}
    port.publish(desired(2))
    assert source.changes() == {"flights": desired(2)}


def test_a_file_that_was_taken_away_is_told_once(tmp_path: Path, port: LocalServing, source: Folder) -> None:
    port.publish(desired(1))
    source.changes()
    (tmp_path / "desired" / "flights.json").unlink()
    assert source.changes() == {"flights": None}
    assert source.changes() == {}


def test_a_folder_that_is_gone_takes_nothing_away(tmp_path: Path, port: LocalServing, source: Folder) -> None:
    port.publish(desired(1))
    source.changes()
    shutil.rmtree(tmp_path / "desired")
    assert source.changes() == {}


def test_a_second_write_that_looks_like_the_first_is_seen_while_both_are_young(
    tmp_path: Path, port: LocalServing, source: Folder
) -> None:
    port.publish(desired(1))
    path = tmp_path / "desired" / "flights.json"
    source.changes()
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"revision":1', b'"revision":2'))
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    found = source.changes()["flights"]
    assert isinstance(found, Desired) and found.revision == 2


def test_a_file_touched_is_told_again(tmp_path: Path, port: LocalServing, source: Folder) -> None:
    port.publish(desired(1))
    settle(tmp_path)
    source.changes()
    assert source.changes() == {}
    (tmp_path / "desired" / "flights.json").touch()
    assert source.changes() == {"flights": desired(1)}


def test_a_file_that_cannot_be_read_is_an_error_and_no_removal(
    tmp_path: Path, source: Folder, port: LocalServing
) -> None:
    port.publish(desired(1))
    source.changes()
    (tmp_path / "desired" / "flights.json").write_text('{"endpoint": "flights"')
    assert isinstance(source.changes()["flights"], Unavailable)
    assert source.changes() == {}


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path.name)])
def test_a_file_that_fails_is_an_error_of_its_own_and_is_looked_at_again(
    tmp_path: Path, source: Folder, port: LocalServing, make: Callable[[Path], None]
) -> None:
    for endpoint in ("flights", "trains", "weather"):
        port.publish(desired(1, endpoint))
        settle(tmp_path, endpoint)
    source.changes()
    path = tmp_path / "desired" / "trains.json"
    kept = path.rename(tmp_path / "kept.json")
    make(path)
    port.publish(desired(2))
    (tmp_path / "desired" / "weather.json").unlink()
    found = source.changes()
    assert isinstance(found.pop("trains"), Unavailable)
    assert found == {"flights": desired(2), "weather": None}
    assert source.changes() == {}
    (path.rmdir if path.is_dir() else path.unlink)()
    kept.rename(path)
    assert source.changes() == {"trains": desired(1, "trains")}


@pytest.mark.parametrize("content", [b'{"endpoint":"\xff"}', b'{"endpoint":"flights","more":' + b"[" * 100_000])
def test_a_file_that_is_no_text_keeps_no_other_from_being_told(
    tmp_path: Path, source: Folder, port: LocalServing, content: bytes
) -> None:
    port.publish(desired(1, "weather"))
    (tmp_path / "desired" / "flights.json").write_bytes(content)
    found = source.changes()
    assert isinstance(found.pop("flights"), Unavailable)
    assert found == {"weather": desired(1, "weather")}


def test_what_was_told_of_by_half_is_told_again(tmp_path: Path, port: LocalServing) -> None:
    class Exhausted(Folder):
        memory = 1

        def _read(self, endpoint: str) -> Desired | DropforgeError | None:
            if not self.memory:
                raise MemoryError
            self.memory -= 1
            return super()._read(endpoint)

    port.publish(desired(1))
    port.publish(desired(1, "weather"))
    source = Exhausted(tmp_path, "r1")
    with pytest.raises(MemoryError):
        source.changes()
    source.memory = 2
    assert source.changes() == {"flights": desired(1), "weather": desired(1, "weather")}


def test_files_that_are_no_desired_states_are_left_alone(tmp_path: Path, source: Folder, port: LocalServing) -> None:
    for name in (".flights.json", "Flights.json", "flights.json.part", "flights.txt"):
        (tmp_path / "desired" / name).write_text("{}")
    assert source.changes() == {}


def test_a_report_is_seen_by_the_port_until_it_is_taken_away(
    tmp_path: Path, port: LocalServing, source: Folder
) -> None:
    state = Slot("flights", NOW).state("r1", datetime.now(UTC))
    source.report(state)
    assert port.observe("flights") == [state]
    source.forget("flights")
    source.forget("flights")
    assert port.observe("flights") == []


def test_a_replica_name_that_is_no_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadName, match=r"replica '\.\./x' is not a name"):
        open_source(tmp_path, "../x")
