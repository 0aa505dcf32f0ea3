"""What happened, as an append-only file of CloudEvents: one JSON object a line."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dropforge.adapters.local.atomic import locked, make_folders, sync_folder
from dropforge.domain.errors import BadInput, Unavailable
from dropforge.domain.events import DomainEvent, cloud_event

_BLOCK = 1 << 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One line of the journal: the CloudEvent, and the position after it, from which reading goes on."""

    event: dict[str, Any]
    next: int


class Journal:
    """`Events` in `<folder>/events.jsonl`, shared by the threads and processes of this machine."""

    def __init__(self, folder: Path, source: str = "/dropforge/local") -> None:
        make_folders(folder)
        self._path = folder / "events.jsonl"
        self._lock_path = folder / ".events.lock"
        self._source = source
        with locked(self._lock_path):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _repair(fd, self._path)
            finally:
                os.close(fd)
            sync_folder(folder)

    def publish(self, event: DomainEvent) -> None:
        line = self._line(event)
        try:
            with locked(self._lock_path):
                fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    # Another process may have been killed in the middle of its line since we opened the journal.
                    _repair(fd, self._path)
                    if os.write(fd, line) < len(line):
                        raise Unavailable(f"journal {self._path} took only part of an event; is the disk full?")
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
        except OSError as error:
            raise Unavailable(f"journal {self._path} cannot be written: {error}") from error

    def read(self, after: int = 0, limit: int = 100) -> list[Entry]:
        """At most `limit` events from the position `after` on (0: from the first), oldest first. Go on reading from
        the last entry's `next`. A line that is no event is left out."""
        if after < 0 or limit < 1:
            raise BadInput(f"a journal is read from 0 or later, at least 1 event at a time, not {after} and {limit}")
        found: list[Entry] = []
        try:
            reader = self._path.open("rb")
        except FileNotFoundError:
            return found
        with reader:
            reader.seek(after)
            while len(found) < limit and (line := reader.readline()).endswith(b"\n"):
                after += len(line)
                event = _event(line)
                if event is None:
                    log.warning("%s: the line that ends at %d is not an event", self._path, after)
                else:
                    found.append(Entry(event, after))
        return found

    def _line(self, event: DomainEvent) -> bytes:
        """The event in the JSON format of CloudEvents 1.0."""
        try:
            return msgspec.json.encode(cloud_event(event, self._source)) + b"\n"
        except (TypeError, ValueError) as error:
            raise BadInput(f"event {event.id!r} holds data that is not JSON: {error}", id=event.id) from error


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return event if isinstance(event, dict) and "id" in event else None


def _repair(fd: int, path: Path) -> None:
    """Cut off a last line that a crash tore: its event was never acknowledged, so it will be published again."""
    size = end = os.fstat(fd).st_size
    if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
        return
    whole = 0
    while end > 0 and not whole:
        start = max(0, end - _BLOCK)
        whole = start + os.pread(fd, end - start, start).rfind(b"\n") + 1
        if whole == start:
            whole = 0
        end = start
    log.warning("%s: the last %d bytes are half an event and are cut off", path, size - whole)
    os.ftruncate(fd, whole)
