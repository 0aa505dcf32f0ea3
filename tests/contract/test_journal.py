"""The journal file: CloudEvents that listeners understand, positions to read on from, crashes."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path

import pytest

from dropforge.adapters.local.journal import Journal
from dropforge.domain.errors import BadInput, Unavailable
from dropforge.domain.events import DomainEvent
from tests.contract.samples import NOW
from tests.contract.test_events import event
from tests.contract.writers import finished, killed, start


def file_of(folder: Path) -> Path:
    return folder / "events.jsonl"


def ids(journal: Journal, after: int = 0, limit: int = 1000) -> list[str]:
    return [entry.event["id"] for entry in journal.read(after, limit)]


def test_a_line_is_a_cloud_event(tmp_path: Path) -> None:
    Journal(tmp_path).publish(DomainEvent("id-1", "ModelPromoted", "models/flights/versions/3", NOW, {"version": 3}))
    (line,) = file_of(tmp_path).read_text().splitlines()
    assert json.loads(line) == {
        "specversion": "1.0",
        "id": "id-1",
        "type": "dropforge.ModelPromoted",
        "source": "/dropforge/local",
        "subject": "models/flights/versions/3",
        "time": "2026-11-22T12:00:00Z",
        "datacontenttype": "application/json",
        "hops": 1,
        "data": {"version": 3},
    }
    assert datetime.fromisoformat(json.loads(line)["time"]) == NOW


def test_reading_goes_on_from_the_entry_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(7):
        journal.publish(event(number, {"text": "ü\n" * number}))
    seen: list[str] = []
    after = 0
    while page := journal.read(after, limit=3):
        seen += [entry.event["id"] for entry in page]
        after = page[-1].next
    assert seen == [f"id-{number}" for number in range(7)]
    assert journal.read(after) == []
    journal.publish(event(8))
    assert ids(journal, after) == ["id-8"]


def test_an_empty_journal_reads_as_nothing(tmp_path: Path) -> None:
    assert Journal(tmp_path).read() == []
    assert Journal(tmp_path).read(after=1_000) == []


@pytest.mark.parametrize(("after", "limit"), [(-1, 1), (0, 0)])
def test_a_place_that_cannot_be_read_from_is_refused(tmp_path: Path, after: int, limit: int) -> None:
    with pytest.raises(BadInput):
        Journal(tmp_path).read(after, limit)


def test_events_outlive_the_journal_that_wrote_them(tmp_path: Path) -> None:
    Journal(tmp_path).publish(event(1))
    Journal(tmp_path).publish(event(2))
    assert ids(Journal(tmp_path)) == ["id-1", "id-2"]


def test_data_that_is_no_json_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(BadInput, match="id-1"):
        journal.publish(event(1, {"x": object()}))
    assert file_of(tmp_path).read_bytes() == b""


@pytest.mark.parametrize("torn", [b'{"id":"torn"', b"x", b"\x00" * 200_000, b'{"id":"torn","pad":"' + b"y" * 150_000])
@pytest.mark.parametrize("whole", [0, 2])
def test_a_torn_last_line_is_cut_off_when_the_journal_is_opened(
    tmp_path: Path, torn: bytes, whole: int, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    for number in range(whole):
        journal.publish(event(number, {"pad": "x" * 70_000}))
    before = file_of(tmp_path).read_bytes()
    file_of(tmp_path).write_bytes(before + torn)
    assert ids(journal) == [f"id-{number}" for number in range(whole)]
    with caplog.at_level(logging.WARNING):
        Journal(tmp_path)
    assert f"the last {len(torn)} bytes are half an event" in caplog.text
    assert file_of(tmp_path).read_bytes() == before


def test_a_line_torn_by_another_process_does_not_spoil_the_next_event(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.publish(event(1))
    with file_of(tmp_path).open("ab") as writer:
        writer.write(b'{"id":"torn"')
    journal.publish(event(2))
    assert ids(journal) == ["id-1", "id-2"]


def test_a_line_that_is_no_event_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    journal.publish(event(1))
    with file_of(tmp_path).open("ab") as writer:
        writer.write(b"not json\n[1]\n\xff\n")
    journal.publish(event(2))
    assert ids(journal) == ["id-1", "id-2"]
    assert ids(journal, limit=2) == ["id-1", "id-2"]


def test_a_kill_loses_no_acknowledged_event_and_tears_none(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    for first, after in ((0, 1), (1000, 40)):
        acknowledged += killed("events", tmp_path, after, first)
        told = [entry.event["data"]["n"] for entry in Journal(tmp_path).read(limit=100_000)]
        assert told == sorted(set(told))
        assert set(acknowledged) <= set(told)


def test_processes_that_publish_at_once_do_not_mix_their_lines(tmp_path: Path) -> None:
    processes = [start("some_events", tmp_path, first) for first in (0, 100, 200)]
    finished(processes)
    assert sorted(ids(Journal(tmp_path))) == sorted(f"id-{first + n}" for first in (0, 100, 200) for n in range(40))


def test_a_journal_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    file_of(tmp_path / "journal").unlink()
    file_of(tmp_path / "journal").mkdir()
    with pytest.raises(Unavailable, match="cannot be written"):
        journal.publish(event(1))
