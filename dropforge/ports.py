"""What we need from the world, as small protocols. Every adapter of a port passes the same contract tests.

Time is an argument, not a port. Nothing here is asynchronous: steps and adapters are plain functions on worker threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from dropforge.domain.blobs import BlobRef
from dropforge.domain.datasets import Column
from dropforge.domain.endpoints import Desired, ReplicaState
from dropforge.domain.events import DomainEvent, Reply
from dropforge.domain.models import Alias, Lineage, ModelVersion
from dropforge.domain.runs import RunResult, RunSpec, RunStatus

Json: TypeAlias = dict[str, Any]


# ------------------------------------------------------------------------------------------------ ledger
@dataclass(frozen=True)
class Row:
    """One ledger row. `etag` changes with every write of the row."""

    key: str
    value: Json
    etag: str


@dataclass(frozen=True)
class Insert:
    """Write a row that must not exist yet."""

    key: str
    value: Json


@dataclass(frozen=True)
class Replace:
    """Write a row that must still have this etag."""

    key: str
    value: Json
    etag: str


@dataclass(frozen=True)
class Delete:
    """Remove a row; with an etag, only if it still has it; without one, whether or not it is there."""

    key: str
    etag: str | None = None


Write: TypeAlias = Insert | Replace | Delete


class Ledger(Protocol):
    """Small rows with insert-if-absent and compare-and-set: the truth that events only hint at.

    Rows live in partitions; a commit is atomic within one partition. Keys are 1 to 500 printable ASCII characters (512
    with those of `ledger_rows.SPELLED_WITH_TWO` counted twice), may contain `/`, and sort as text. A value is at most
    256 KiB of JSON; a commit holds at most 100 writes and 2 MiB of JSON in all.
    Every method is safe from many threads and many processes at once.
    """

    def get(self, partition: str, key: str) -> Row | None:
        """The row, or None."""

    def scan(self, partition: str, prefix: str = "", after: str = "", limit: int = 1000) -> list[Row]:
        """At most `limit` rows whose key starts with `prefix` and sorts after `after`, in key order."""

    def count(self, partition: str, prefix: str, limit: int) -> int:
        """How many rows there are whose key starts with `prefix`; `limit` when there are as many or more."""

    def commit(self, partition: str, writes: Sequence[Write]) -> None:
        """All writes or none. Raises `Conflict` (with `key=` and `partition=`) when an Insert finds the row, a Replace
        or Delete finds another etag or no row. Once it returns, a crash does not lose it. After `Unavailable` it may have
        been done or not: read again and decide again."""


# ------------------------------------------------------------------------------------------------ drops
@dataclass(frozen=True)
class Drop:
    """One file in the drop store as it is now."""

    url: str
    etag: str
    size_bytes: int
    modified_at: datetime
    # Whether it is a whole upload: one that is still being written is neither listed nor gone.
    finished: bool = True


class Drops(Protocol):
    """The files people drop. Nothing outside the containers this store was made for is ever read."""

    def locate(self, url: str) -> BlobRef:
        """The file that a URL names, whichever of the store's host names it uses. Raises `BadInput` for what is no blob
        URL and `NotFound` for another account or container."""

    def look(self, url: str) -> Drop | None:
        """The file as it is now, finished or not; None when there is none. Raises as `locate` does."""

    def list(self, container: str, prefix: str) -> Iterator[Drop]:
        """Every finished file under the prefix, in path order, a page at a time."""

    def fetch(self, url: str, etag: str, to: Path) -> None:
        """Copy exactly the bytes of that write to `to`. Raises `NotFound` when the file is gone and `Conflict` when it
        has been written again since (the file then has another etag)."""

    def put(self, container: str, path: str, source: Path) -> Drop:
        """Drop a file under that path, visible only when it is whole."""


# ------------------------------------------------------------------------------------------------ artifacts
class Artifacts(Protocol):
    """Immutable bytes by name (`models/flights/ab12/model.onnx`)."""

    def put(self, name: str, source: bytes | Path) -> str:
        """Store the bytes under the name and return their sha256 (hex). Equal bytes again: nothing happens.
        Other bytes under a name that is taken: `Conflict`. A crash leaves the whole artifact or none."""

    def read(self, name: str) -> bytes:
        """The bytes. Raises `NotFound`."""

    def fetch(self, name: str, to: Path) -> str:
        """Copy to a local file, whole or not at all; returns its sha256. Raises `NotFound`."""

    def uri(self, name: str) -> str:
        """Where a reader outside this process finds it (`file:///…` or `https://…`)."""

    def list(self, prefix: str) -> Iterator[str]:
        """Names that start with the prefix, sorted."""


# ------------------------------------------------------------------------------------------------ tables
@dataclass(frozen=True)
class ColumnRule:
    """What a column must be. `type`: one of `spec.COLUMN_TYPES`; None: as found. Bounds are inclusive."""

    name: str
    type: str | None = None
    nullable: bool = True
    min: float | None = None
    max: float | None = None
    allowed: tuple[Any, ...] | None = None
    pattern: str | None = None
    unique: bool = False


@dataclass(frozen=True)
class TableRules:
    """What a dropped file must be to become part of the table."""

    format: Literal["csv", "parquet", "jsonl"]
    columns: tuple[ColumnRule, ...] = ()
    # Columns the file has and the rules do not name: kept, dropped or refused.
    extra_columns: Literal["keep", "drop", "refuse"] = "keep"
    label: str | None = None
    event_time: str | None = None
    min_rows: int = 1
    max_bytes: int = 2 * 1024**3
    # The columns of the table so far; a file must fit them. Empty: the first file decides.
    known: tuple[Column, ...] = ()


@dataclass(frozen=True)
class Problem:
    """One broken rule. `rows` are 1-based data rows, at most twenty of the `count` that broke it."""

    rule: str
    column: str | None
    message: str
    count: int = 1
    rows: tuple[int, ...] = ()
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileCheck:
    """What a look at a file found; no problems means it fits. Event times are ISO 8601 UTC."""

    rows: int
    columns: tuple[Column, ...]
    problems: tuple[Problem, ...] = ()
    event_time_min: str | None = None
    event_time_max: str | None = None


@dataclass(frozen=True)
class TableFile:
    """One checked file on its way into the table."""

    path: Path
    source: str
    arrived_at: datetime


@dataclass(frozen=True)
class TableState:
    """A version of a table as it lies in storage."""

    uri: str
    version: int
    rows: int
    columns: tuple[Column, ...]


class Tables(Protocol):
    """Dataset storage with versions; each batch is appended exactly once.

    Two columns are added to every row: `_source` (the arrival's id) and `_arrived_at` (timestamp, UTC).
    """

    def check(self, path: Path, rules: TableRules) -> FileCheck:
        """Look at a file; broken rules are reported, not raised, also for a file that is not of its format at all.
        Reads in pieces: memory does not grow with what a file claims to hold."""

    def append(self, table: str, batch: int, files: Sequence[TableFile], rules: TableRules) -> TableState:
        """Append all rows of the files as batch number `batch` (they only grow), in one atomic commit. A batch that is
        already in the table is not appended again: the state it made is returned. Raises `BadFile` with `source=` for a
        file that does not fit after all; nothing is appended then."""

    def find(self, table: str, batch: int) -> TableState | None:
        """The version that batch made, or None when it has not been appended (or there is no table yet)."""

    def read_version(self, table: str, version: int) -> TableState:
        """A version that was made before. Raises `NotFound`."""


# ------------------------------------------------------------------------------------------------ compute
class Compute(Protocol):
    """Where training runs."""

    def submit(self, spec: RunSpec) -> None:
        """Start the run, or find it started: an equal run id never starts twice. Returns before the run ends.

        Raises `Conflict` when the id was submitted with another spec, `BadInput` when the spec can never run."""

    def status(self, run: str) -> RunStatus:
        """How it stands. Raises `NotFound` for a run that was never submitted."""

    def result(self, run: str) -> RunResult:
        """What a succeeded run left, with model and evidence put among the artifacts. Raises `RunFailed` with the
        reason for a run that did not succeed, and `Refused` for one that has not ended. Calling again gives the same."""

    def cancel(self, run: str) -> None:
        """End the run with all its processes; no effect on a run that has ended."""

    def logs(self, run: str, tail_bytes: int = 65536) -> str:
        """The end of what the run printed."""


# ------------------------------------------------------------------------------------------------ registry
class Registry(Protocol):
    """Model versions with lineage; aliases by compare-and-set."""

    def register(self, model: str, artifact: str, lineage: Lineage, now: datetime) -> ModelVersion:
        """The version that `lineage.run` made: a new one the first time, the same one ever after."""

    def get(self, model: str, version: int) -> ModelVersion:
        """Raises `NotFound`."""

    def list(self, model: str, limit: int = 50) -> list[ModelVersion]:
        """Newest first."""

    def alias(self, model: str, name: str) -> Alias | None:
        """Where the alias points now, or None."""

    def set_alias(self, model: str, name: str, version: int, expected: Alias | None, now: datetime) -> Alias:
        """Move the alias if it still stands where `expected` says (None: nowhere yet). Moving it to where it is
        already: no effect. Raises `Conflict` when it has been moved elsewhere meanwhile."""


# ------------------------------------------------------------------------------------------------ serving
class Serving(Protocol):
    """Desired state of endpoints, and what their replicas report."""

    def publish(self, desired: Desired) -> None:
        """Tell the replicas; an older revision than the one published has no effect."""

    def desired(self, endpoint: str) -> Desired | None:
        """What was published last, or None."""

    def observe(self, endpoint: str) -> list[ReplicaState]:
        """The latest report of every replica that is alive."""


# ------------------------------------------------------------------------------------------------ events
class Events(Protocol):
    """One place where the platform tells others what happened."""

    def publish(self, event: DomainEvent) -> None:
        """At least once; listeners drop a second event with the same id. Raises `Unavailable` when nobody answers, and
        what can never go better (`BadInput`, `Refused`) when the event is not taken."""


class Replies(Protocol):
    """The queues on which askers wait for answers."""

    def send(self, reply: Reply) -> None:
        """At least once; a queue that detects duplicates drops a second reply with the same id. Raises `NotFound` for
        a queue that does not exist, `Refused` when the queue will never take it, `Unavailable` when nobody answers."""


@dataclass(frozen=True)
class Ports:
    """The world, as a step sees it."""

    ledger: Ledger
    drops: Drops
    artifacts: Artifacts
    tables: Tables
    compute: Compute
    registry: Registry
    serving: Serving
    # By the name of the place: each is told for itself, so that one that does not answer holds up no other.
    events: Mapping[str, Events]
    replies: Replies
