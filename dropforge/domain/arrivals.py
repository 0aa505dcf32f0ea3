"""Arrivals: one committed write of one file, once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from dropforge.domain.causes import Cause
from dropforge.domain.datasets import Column
from dropforge.domain.names import id_of


class ArrivalState(Enum):
    PENDING = "pending"
    ACCEPTED = "accepted"
    QUARANTINED = "quarantined"
    # The file was written again, or deleted, before it was read: the newer write has an arrival of its own.
    SUPERSEDED = "superseded"


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


def arrival_id(url: str, etag: str) -> str:
    """The id of a write: of what was written, never of the event that announced it."""
    return id_of(url, etag)
