"""Storage events: what lands in the drop folder is announced as `Microsoft.Storage.BlobCreated`."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import os
import stat as modes
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from dropforge.adapters.local.finished import SETTLE_SECONDS, etag_of, is_finished, is_ignored
from dropforge.domain.blobs import BlobRef
from dropforge.host.announcer import Announcer, Event

_log = logging.getLogger(__name__)

# The account and the container are fixed: what a file is called must not depend on ports or on where the folder lies.
ACCOUNT, CONTAINER = "local", "drops"
_TOPIC = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/local"
    f"/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}"
)
_INTERVAL_SECONDS = 0.25
# Look so rarely that looking takes one part in so many of the time.
_SPARING = 25


@dataclass(frozen=True)
class DroppedFile:
    """One finished file; `path` is relative to the drop root, with slashes."""

    path: str
    etag: str
    size_bytes: int
    # When these bytes came to lie here, in nanoseconds: unlike mtime, no copy tool sets it back.
    landed_ns: int


@dataclass(frozen=True)
class Scan:
    """What one look at the drop folder found."""

    # Finished files whose etag is not the one already known.
    changed: list[DroppedFile] = field(default_factory=list)
    # Every path there is, finished or not.
    present: set[str] = field(default_factory=set)
    # Folders that could not be read (with a slash at the end): nothing is known of what lies below.
    unreadable: tuple[str, ...] = ()

    def is_gone(self, path: str) -> bool:
        return path not in self.present and not path.startswith(self.unreadable or ("\0",))


def scan(root: Path, known: Mapping[str, str], now: float, settle_seconds: float = SETTLE_SECONDS) -> Scan:
    """Look at every file under the root once. `known` gives the etag last seen per path; `now` is Unix seconds.

    What counts as dropped and as finished is said in `adapters.local.finished`. Linked folders are not walked; linked
    files count when they stay inside the root.
    """
    found, unreadable = Scan(), list[str]()
    real_root = os.path.realpath(root)
    for path, entry in _walk(root, unreadable):
        try:
            stat = entry.stat()
            if entry.is_symlink() and not os.path.realpath(entry.path).startswith(real_root + os.sep):
                continue
        except OSError:
            continue
        if not modes.S_ISREG(stat.st_mode):
            continue
        found.present.add(path)
        etag = etag_of(stat)
        if known.get(path) != etag and is_finished(entry.path, stat, now, settle_seconds):
            found.changed.append(DroppedFile(path, etag, stat.st_size, stat.st_ctime_ns))
    found.changed.sort(key=lambda file: file.landed_ns)
    return Scan(found.changed, found.present, tuple(unreadable))


def _walk(root: Path, unreadable: list[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                listed = list(entries)
        except FileNotFoundError:
            # The root itself must be there; a folder below may just have been deleted, with all that was in it.
            if not folder:
                unreadable.append("")
            continue
        except OSError:
            unreadable.append(folder)
            continue
        for entry in listed:
            is_folder = entry.is_dir(follow_symlinks=False)
            # Only of a file does the end of its name say that it is unfinished.
            if is_ignored(f"{entry.name}/x" if is_folder else entry.name):
                continue
            if is_folder:
                folders.append(f"{folder}{entry.name}/")
            else:
                yield f"{folder}{entry.name}", entry


class StorageEvents:
    """Watches one drop folder and hands what it finds to the announcer."""

    def __init__(
        self,
        root: Path,
        announcer: Announcer,
        settle_seconds: float = SETTLE_SECONDS,
        interval_seconds: float = _INTERVAL_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._announcer = announcer
        self._settle_seconds = settle_seconds
        self._interval_seconds = interval_seconds
        self._now = now
        # The etag last offered, per path; the announcer knows who has taken it.
        self._offered: dict[str, str] = {}
        # Heard of in an earlier life of the host and not seen again yet.
        self._remembered = announcer.known()
        self._blind = False

    async def look(self) -> float:
        """One look and its announcements; returns how many seconds to wait before the next one."""
        # A file that comes while the folder is walked must not be older than the news that it was missing.
        began_ns = time.time_ns()
        found, seconds = await asyncio.to_thread(self._scan)
        for file in found.changed:
            self._announcer.offer(file.path, file.etag, created_event(file))
            self._offered[file.path] = file.etag
        self._remembered -= found.present
        for path in [path for path in (*self._offered, *self._remembered) if found.is_gone(path)]:
            self._announcer.offer(path, None, deleted_event(path, began_ns))
            self._offered.pop(path, None)
            self._remembered.discard(path)
        self._tell_blindness(found.unreadable)
        return max(self._interval_seconds, _SPARING * seconds)

    def _scan(self) -> tuple[Scan, float]:
        started = time.thread_time()
        found = scan(self._root, self._offered, self._now(), self._settle_seconds)
        return found, time.thread_time() - started

    def _tell_blindness(self, unreadable: tuple[str, ...]) -> None:
        if bool(unreadable) != self._blind:
            self._blind = bool(unreadable)
            if unreadable:
                _log.warning("cannot read %s; nothing below it is announced", self._root / unreadable[0])
            else:
                _log.info("%s can be read again", self._root)


def created_event(file: DroppedFile) -> Event:
    """The event in the Event Grid schema. One write has one event: telling it again gives the same id."""
    number = _event_id("created", file.path, file.etag)
    data: Event = {
        # An empty PutBlob is how an upload begins; an empty block list ends one.
        "api": "PutBlob" if file.size_bytes else "PutBlockList",
        "clientRequestId": _event_id("client", file.path, file.etag),
        "requestId": _request_id(number),
        "eTag": file.etag,
        "contentType": _content_type(file.path),
        "contentLength": file.size_bytes,
        "blobType": "BlockBlob",
        "url": _url(file.path),
        "sequencer": _sequencer(file.landed_ns),
        "storageDiagnostics": {"batchId": _event_id("batch", file.path, file.etag)},
    }
    return _event("Microsoft.Storage.BlobCreated", number, file.path, file.landed_ns, data)


def deleted_event(path: str, seen_ns: int) -> Event:
    """The event of a file that is gone."""
    number = _event_id("deleted", path, str(seen_ns))
    data: Event = {
        "api": "DeleteBlob",
        "clientRequestId": _event_id("client", path, str(seen_ns)),
        "requestId": _request_id(number),
        "contentType": _content_type(path),
        "blobType": "BlockBlob",
        "url": _url(path),
        "sequencer": _sequencer(seen_ns),
        "storageDiagnostics": {"batchId": _event_id("batch", path, str(seen_ns))},
    }
    return _event("Microsoft.Storage.BlobDeleted", number, path, seen_ns, data)


def _event(kind: str, number: str, path: str, moment_ns: int, data: Event) -> Event:
    return {
        "topic": _TOPIC,
        "subject": f"/blobServices/default/containers/{CONTAINER}/blobs/{path}",
        "eventType": kind,
        "id": number,
        "eventTime": _timestamp(moment_ns),
        "dataVersion": "",
        "metadataVersion": "1",
        "data": data,
    }


def _url(path: str) -> str:
    return BlobRef(ACCOUNT, CONTAINER, path).url


def _event_id(*parts: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "\n".join((_TOPIC, *parts))))


def _request_id(number: str) -> str:
    # Azure's request ids are the event ids with an empty tail.
    return number[:-6] + "000000"


def _content_type(path: str) -> str:
    return mimetypes.guess_type(path)[0] or "application/octet-stream"


def _sequencer(moment_ns: int) -> str:
    # Grows with every write of a blob; compared as text.
    return f"{moment_ns:032x}"


def _timestamp(moment_ns: int) -> str:
    """ISO 8601 in UTC with seven digits, as the service writes it."""
    moment = datetime.fromtimestamp(moment_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment_ns % 1_000_000_000 // 100:07d}Z"
