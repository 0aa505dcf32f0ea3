"""Dataset versions and the manifest of the files that made them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from dropforge.domain.causes import Cause


class BatchState(Enum):
    CUT = "cut"
    CHECKED = "checked"
    VERSIONED = "versioned"
    # Every file of the batch was quarantined or superseded: there is nothing to make a version of.
    EMPTY = "empty"


@dataclass(frozen=True)
class Batch:
    """Arrivals that were claimed together. `version` is the dataset version they became, once they have."""

    number: int
    arrivals: tuple[str, ...]
    # When the batch was due: quiet for long enough, waited for long enough, or full.
    due_at: datetime
    cut_at: datetime
    # When its newest file arrived.
    newest_at: datetime
    # Their rows on the pending list: these go when the batch is closed, whatever has become of the arrivals.
    claimed: tuple[str, ...] = ()
    state: BatchState = BatchState.CUT
    version: int | None = None
    # What goes into the table, decided before anything is written to it.
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One file of a dataset version, as the manifest names it. Times are aware UTC in ISO 8601."""

    arrival: str
    url: str
    etag: str
    sha256: str
    size_bytes: int
    rows: int
    arrived_at: datetime
    event_time_min: str | None
    event_time_max: str | None


@dataclass(frozen=True)
class Column:
    """One column as the table holds it: an Arrow type name such as `int64`, `double`, `string`, `timestamp`."""

    name: str
    type: str


@dataclass(frozen=True)
class DatasetVersion:
    """One immutable state of a dataset: a version of its table, and the manifest of the files it holds."""

    dataset: str
    version: int
    batch: int
    table_uri: str
    table_version: int
    manifest: str
    manifest_sha256: str
    files: int
    rows: int
    total_rows: int
    columns: tuple[Column, ...]
    created_at: datetime
    quarantined: int = 0
    cause: Cause | None = None


@dataclass(frozen=True)
class Manifest:
    """What a dataset version was made of; written once, never changed."""

    dataset: str
    version: int
    batch: int
    parent: int | None
    sources: tuple[Source, ...] = field(default=())
