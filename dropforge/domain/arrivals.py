"""Arrivals: one committed write of one file, once; and what a further telling of a file can mean."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from dropforge.domain.causes import Cause
from dropforge.domain.datasets import Column
from dropforge.domain.names import id_of
from dropforge.domain.storage_events import is_newer


class ArrivalState(Enum):
    PENDING = "pending"
    ACCEPTED = "accepted"
    QUARANTINED = "quarantined"
    # The file was written again, or deleted, before it was read: the newer write has an arrival of its own.
    SUPERSEDED = "superseded"
    # Its bytes are in a dataset version already, under this name or under the one it was moved from.
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Arrival:
    """One (url, etag). `arrived_at` is when the ledger first heard of it, aware UTC."""

    id: str
    url: str
    etag: str
    size_bytes: int
    arrived_at: datetime
    source: str
    state: ArrivalState = ArrivalState.PENDING
    batch: int | None = None
    sha256: str | None = None
    rows: int | None = None
    event_time_min: str | None = None
    event_time_max: str | None = None
    reason: str | None = None
    replays: int = 0
    columns: tuple[Column, ...] = ()
    # Artifacts of a quarantined file: the report for people, and the bytes, so that nothing is lost with the drop.
    report: str | None = None
    kept: str | None = None
    cause: Cause | None = None
    # The URL that the same bytes had before, when the file was renamed.
    moved_from: str | None = None
    # When the bytes of an accepted file were first missed where they came from. What was made of them stays.
    gone_at: datetime | None = None


def arrival_id(url: str, etag: str) -> str:
    """The id of a write: of what was written, never of the event that announced it."""
    return id_of(url, etag)


class Heard(Enum):
    """What an event that announces a write adds to what is known of the file."""

    NEW = "new"
    KNOWN = "known"
    # Older than what is known, or of something gone, or it cannot be told: only the store knows.
    DOUBTFUL = "doubtful"


@dataclass(frozen=True)
class Seen:
    """The newest that is known of one file name; `etag` is None where nothing is known but that it is gone."""

    id: str | None
    url: str
    etag: str | None
    sequencer: str | None = None
    gone_at: datetime | None = None


def heard(known: Seen | None, url: str, etag: str, sequencer: str | None) -> Heard:
    """What the event of a write means, given what is known of the name."""
    if known is None:
        return Heard.NEW
    if (known.url, known.etag) == (url, etag):
        return Heard.KNOWN if known.gone_at is None else Heard.DOUBTFUL
    return Heard.NEW if is_newer(sequencer, known.sequencer) else Heard.DOUBTFUL
