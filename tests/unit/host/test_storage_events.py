"""Storage events: what is announced, when, and in which words."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dropforge.adapters.local.drops import LocalDrops
from dropforge.adapters.local.finished import etag_of
from dropforge.domain.blobs import BlobRef, parse_url
from dropforge.host.announcer import Announcer, Delivered, Event
from dropforge.host.storage_events import StorageEvents, created_event, deleted_event, scan

LATER = 60.0


def look(root: Path, known: dict[str, str] | None = None) -> Any:
    """A look long after everything was written."""
    return scan(root, known or {}, time.time() + LATER)


def drop(root: Path, path: str, content: bytes = b"data") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


# ------------------------------------------------------------------ one look
def test_finished_files_are_found_with_the_etag_of_the_drop_store(tmp_path: Path) -> None:
    file = drop(tmp_path, "flights/2013/day 1.csv", b"a,b\n")
    (found,) = look(tmp_path).changed
    assert (found.path, found.etag, found.size_bytes) == ("flights/2013/day 1.csv", etag_of(file.stat()), 4)


def test_a_known_etag_is_not_found_again_and_a_new_write_is(tmp_path: Path) -> None:
    file = drop(tmp_path, "a.csv")
    known = {"a.csv": etag_of(file.stat())}
    assert look(tmp_path, known).changed == []
    file.write_bytes(b"other")
    assert [each.path for each in look(tmp_path, known).changed] == ["a.csv"]


def test_a_file_just_written_is_present_but_not_finished(tmp_path: Path) -> None:
    drop(tmp_path, "a.csv")
    found = scan(tmp_path, {}, time.time(), settle_seconds=0.5)
    assert (found.changed, found.present) == ([], {"a.csv"})


def test_a_file_open_for_writing_is_not_finished(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("wb") as writer:
        writer.write(b"half")
        writer.flush()
        assert look(tmp_path).changed == []
    assert len(look(tmp_path).changed) == 1


@pytest.mark.parametrize(
    "name", [".hidden", ".folder/a.csv", "a.tmp", "a.part", "a.CRDOWNLOAD", "a.csv~", "line\nbreak.csv", "x/.y/z.csv"]
)
def test_what_nobody_drops_is_ignored(tmp_path: Path, name: str) -> None:
    drop(tmp_path, name)
    assert look(tmp_path).present == set()


@pytest.mark.parametrize("path", ["week.tmp/a.csv", "old~/x.PART/a.csv"])
def test_a_folder_may_be_called_as_an_unfinished_file_is(tmp_path: Path, path: str) -> None:
    drop(tmp_path, path)
    assert [each.path for each in look(tmp_path).changed] == [path]
    # As reconcile finds it.
    assert [parse_url(each.url).path for each in LocalDrops(tmp_path, settle_seconds=0).list("drops", "")] == [path]


def test_links_count_when_they_stay_inside(tmp_path: Path) -> None:
    root = tmp_path / "drops"
    drop(root, "a.csv")
    drop(tmp_path, "outside.csv")
    (tmp_path / "drops2").mkdir()
    drop(tmp_path, "drops2/x.csv")
    (root / "inside.csv").symlink_to(root / "a.csv")
    (root / "out.csv").symlink_to(tmp_path / "outside.csv")
    (root / "sibling.csv").symlink_to(tmp_path / "drops2/x.csv")
    (root / "dangling.csv").symlink_to(root / "nothing")
    (root / "round").symlink_to(root, target_is_directory=True)
    assert look(root).present == {"a.csv", "inside.csv"}


def test_what_is_no_regular_file_is_ignored(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert look(tmp_path).present == set()


def test_a_missing_root_says_nothing_about_its_files(tmp_path: Path) -> None:
    found = look(tmp_path / "nothing")
    assert not found.is_gone("a.csv")


def test_a_deleted_folder_means_its_files_are_gone(tmp_path: Path) -> None:
    assert look(tmp_path).is_gone("x/a.csv")


# ------------------------------------------------------------------ the events
def test_a_created_event_has_the_fields_of_the_official_sample(tmp_path: Path) -> None:
    drop(tmp_path, "flights/day 1%ü.csv", b"a,b\n")
    (file,) = look(tmp_path).changed
    event = created_event(file)
    assert set(event) == {
        "topic", "subject", "eventType", "id", "eventTime", "dataVersion", "metadataVersion", "data",
    }  # fmt: skip
    assert set(event["data"]) == {
        "api", "clientRequestId", "requestId", "eTag", "contentType", "contentLength", "blobType", "url", "sequencer",
        "storageDiagnostics",
    }  # fmt: skip
    assert event["eventType"] == "Microsoft.Storage.BlobCreated"
    assert event["subject"] == "/blobServices/default/containers/drops/blobs/flights/day 1%ü.csv"
    assert event["data"]["url"] == "https://local.blob.localhost/drops/flights/day%201%25%C3%BC.csv"
    assert parse_url(event["data"]["url"]) == BlobRef("local", "drops", "flights/day 1%ü.csv")
    assert event["data"]["contentLength"] == 4
    assert event["data"]["contentType"] == "text/csv"
    assert len(event["eventTime"]) == len("2017-06-26T18:41:00.9584103Z")
    json.dumps(event)


def test_one_write_has_one_event_and_another_write_a_later_one(tmp_path: Path) -> None:
    drop(tmp_path, "a.csv")
    (first,) = look(tmp_path).changed
    (again,) = look(tmp_path).changed
    assert created_event(first) == created_event(again)
    time.sleep(0.02)
    drop(tmp_path, "a.csv", b"more")
    (second,) = look(tmp_path).changed
    gone = deleted_event("a.csv", time.time_ns())
    assert len({created_event(first)["id"], created_event(second)["id"], gone["id"]}) == 3
    sequencers = [event["data"]["sequencer"] for event in (created_event(first), created_event(second), gone)]
    assert sequencers == sorted(sequencers)


# ------------------------------------------------------------------ the watcher
class Taken:
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.refuse = False

    async def post(self, subscriber: str, event: Event, attempt: int) -> bool:
        if not self.refuse:
            self.events.append((event["eventType"].rpartition(".")[2], event["subject"].rpartition("/blobs/")[2]))
        return not self.refuse


class Watched:
    """A watcher over a folder, driven by hand."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "drops"
        self.root.mkdir(exist_ok=True)
        self.taken = Taken()
        self.announcer = Announcer(["f"], Delivered(tmp_path / "db"), self.taken.post, retry_seconds=(60,))
        self.watcher = StorageEvents(self.root, self.announcer, now=lambda: time.time() + LATER)

    async def look(self) -> list[tuple[str, str]]:
        await self.watcher.look()
        await asyncio.sleep(0.02)
        told, self.taken.events = self.taken.events, []
        return told


def test_files_are_announced_again_when_overwritten_and_told_of_when_deleted(tmp_path: Path) -> None:
    async def work() -> None:
        watched = Watched(tmp_path)
        file = drop(watched.root, "x/a.csv")
        assert await watched.look() == [("BlobCreated", "x/a.csv")]
        assert await watched.look() == []
        file.write_bytes(b"longer data")
        assert await watched.look() == [("BlobCreated", "x/a.csv")]
        file.unlink()
        assert await watched.look() == [("BlobDeleted", "x/a.csv")]
        assert await watched.look() == []
        drop(watched.root, "x/a.csv")
        assert await watched.look() == [("BlobCreated", "x/a.csv")]
        await watched.announcer.close()

    asyncio.run(work())


def test_what_changed_while_nobody_looked_is_told_at_the_next_start(tmp_path: Path) -> None:
    async def work() -> None:
        before = Watched(tmp_path)
        kept, lost, changed = (drop(before.root, name) for name in ("kept.csv", "lost.csv", "changed.csv"))
        assert len(await before.look()) == 3
        await before.announcer.close()
        lost.unlink()
        changed.write_bytes(b"changed")
        drop(before.root, "new.csv")

        after = Watched(tmp_path)
        assert sorted(await after.look()) == [
            ("BlobCreated", "changed.csv"), ("BlobCreated", "new.csv"), ("BlobDeleted", "lost.csv"),
        ]  # fmt: skip
        assert kept.exists()
        await after.announcer.close()

    asyncio.run(work())


def test_a_file_that_was_deleted_before_anybody_took_it_is_not_told_of(tmp_path: Path) -> None:
    async def work() -> None:
        watched = Watched(tmp_path)
        watched.taken.refuse = True
        file = drop(watched.root, "a.csv")
        await watched.look()
        watched.taken.refuse = False
        file.unlink()
        assert await watched.look() == []
        assert watched.announcer.known() == set()
        await watched.announcer.close()

    asyncio.run(work())


def test_a_root_that_disappears_deletes_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        watched = Watched(tmp_path)
        drop(watched.root, "a.csv")
        assert await watched.look() == [("BlobCreated", "a.csv")]
        watched.root.rename(tmp_path / "elsewhere")
        assert await watched.look() == []
        (tmp_path / "elsewhere").rename(watched.root)
        assert await watched.look() == []
        await watched.announcer.close()

    asyncio.run(work())
