"""Arrivals in the ledger: each write of each file down once, what is gone marked so, and the flow that takes them in.

Four kinds of rows say what is known of a file, all in its pipeline's partition, and every commit leaves them in agreement:

    arrival/<id>                one (url, etag) and what became of it
    pending/<time>-<id>         it waits for a batch
    seen/<path>                 the newest write known of that name; in the order of the paths, so that a listing of the
                                container can be laid beside it
    gone/<batch>/<id>           the bytes of an accepted file are no longer where they came from
    held/<sha256>/<id of url>   the file that brought these bytes under that name; what its arrival says counts
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice

from dropforge import telemetry
from dropforge.domain.arrivals import Arrival, ArrivalState, Seen, arrival_id
from dropforge.domain.blobs import BlobRef, parse_url
from dropforge.domain.causes import Cause
from dropforge.domain.errors import Conflict, NotFound, Refused
from dropforge.domain.names import id_of
from dropforge.domain.storage_events import newest
from dropforge.ports import Delete, Insert, Json, Ledger, Ports, Replace, Row, Write
from dropforge.steps import books, control, lanes, tracing
from dropforge.steps.books import Pipeline
from dropforge.wire import from_builtins, to_builtins

LANE = "intake"
SEEN = "seen/"
GONE = "gone/"
# A ledger key has room for so many characters of any kind and a hash; what is longer keeps them and has its hash.
_KEPT = 230
# What a commit holds, and so how many new files: each is three writes.
MAX_WRITES = 100
CHUNK = 30

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """One write of one file, as an event or a listing tells it."""

    ref: BlobRef
    url: str
    etag: str
    size_bytes: int
    # `event` or `reconcile`: who told it first.
    source: str
    sequencer: str | None = None
    cause: Cause | None = None
    moved_from: str | None = None

    @property
    def id(self) -> str:
        return arrival_id(self.url, self.etag)


@dataclass(frozen=True)
class Taken:
    """What came of writing down what was written: how much of it was news, and whether any of it waits for a batch."""

    news: int = 0
    waits: bool = False

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.news + other.news, self.waits or other.waits)


# ------------------------------------------------------------------------------------------------ seen
def seen_key(path: str) -> str:
    """Where it stands what is known of the file of that name. Keys sort as the paths do, byte by byte; names too long
    for a key sort by their beginnings."""
    if path.isascii() and "~" not in path and "\x7f" not in path:
        told = path
    else:
        told = "".join(chr(byte) if 0x20 <= byte < 0x7E else f"~{byte:02X}" for byte in path.encode())
    if len(told) > _KEPT:
        told = f"{told[:_KEPT]}~~{hashlib.sha256(path.encode()).hexdigest()[:32]}"
    return SEEN + told


def seen_prefix(prefix: str) -> str:
    """What the keys of all names under the prefix begin with."""
    return seen_key(prefix)[: len(SEEN) + _KEPT]


def seen(ledger: Ledger, partition: str, path: str) -> Row | None:
    """The row of what is known of the file of that name, or None."""
    return ledger.get(partition, seen_key(path))


def seen_of(row: Row | None) -> Seen | None:
    return None if row is None else from_builtins(Seen, row.value)


def owner(pipelines: Iterable[Pipeline], path: str) -> Pipeline | None:
    """The pipeline whose drop prefix is the longest that fits the path."""
    fitting = [each for each in pipelines if path.startswith(each.spec.dataset.drop)]
    return max(fitting, key=lambda each: len(each.spec.dataset.drop), default=None)


# ------------------------------------------------------------------------------------------------ written
def record(ports: Ports, pipeline: Pipeline, writes: Sequence[Written], now: datetime) -> tuple[Taken, list[Written]]:
    """Write down what was written under names of which nothing is known: many in one commit, and nothing is read first,
    which is what makes it fast. The writes under names that are known after all come back, untouched.

    Safe to call again, and at once from many hosts.
    """
    taken, known = Taken(), list[Written]()
    for start in range(0, len(writes), CHUNK):
        fresh, others = _plain(writes[start : start + CHUNK])
        known += others
        while fresh:
            new = [each for write in fresh for each in (*_new(_arrival(write, now)), Insert(*_seen(write, None)))]
            try:
                ports.ledger.commit(pipeline.partition, new)
            except Conflict:
                unknown = [write for write in fresh if not _is_known(ports.ledger, pipeline.partition, write)]
                known += [write for write in fresh if write not in unknown]
                fresh = unknown
                continue
            taken += Taken(len(fresh), True)
            _told(pipeline, fresh, now)
            break
    return taken, known


def _told(pipeline: Pipeline, writes: Sequence[Written], now: datetime) -> None:
    telemetry.count("dropforge.arrivals", len(writes), pipeline=pipeline.name)
    for each in writes:
        if each.cause is not None:
            tracing.came_in(each.cause, now, pipeline=pipeline.name, url=each.url)


def _plain(chunk: Sequence[Written]) -> tuple[list[Written], list[Written]]:
    """Those that go into one commit, and the others: a name that is told twice, and what came from the platform's own
    news, which may have to wait for a person."""
    fresh: dict[str, Written] = {}
    others = []
    for write in chunk:
        if write.ref.path in fresh or (write.cause is not None and write.cause.hops):
            others.append(write)
        else:
            fresh[write.ref.path] = write
    return list(fresh.values()), others


def _is_known(ledger: Ledger, partition: str, write: Written) -> bool:
    return (
        seen(ledger, partition, write.ref.path) is not None or ledger.get(partition, f"arrival/{write.id}") is not None
    )


def take(ports: Ports, pipeline: Pipeline, write: Written, now: datetime) -> Taken:
    """Write down that this is what lies under that name now. A write that had been given up because it was gone, and is
    back, waits again."""
    ledger, partition = ports.ledger, pipeline.partition
    while True:
        row = seen(ledger, partition, write.ref.path)
        known = ledger.get(partition, f"arrival/{write.id}")
        if known is None:
            arrival = _admitted(ports, pipeline, _arrival(write, now), now)
            writes = _new(arrival)
        else:
            arrival, writes = _found_again(known, seen_of(row), write, now)
        if row is not None and row.value["id"] not in (None, write.id):
            writes += _lost(ledger, partition, row.value["id"], now, "written over")
        if (entry := _seen_write(row, write)) is not None:
            writes.append(entry)
        try:
            ledger.commit(partition, writes)
        except Conflict:
            continue
        waits = arrival.state is ArrivalState.PENDING
        if known is None:
            _told(pipeline, [write], now)
        return Taken(int(known is None or (waits and bool(writes))), waits)


def _arrival(write: Written, now: datetime) -> Arrival:
    return Arrival(
        id=write.id,
        url=write.url,
        etag=write.etag,
        size_bytes=write.size_bytes,
        arrived_at=now,
        source=write.source,
        cause=write.cause,
        moved_from=write.moved_from,
    )


def _admitted(ports: Ports, pipeline: Pipeline, arrival: Arrival, now: datetime) -> Arrival:
    """The arrival; in quarantine when the platform's own news made it once too often, for a person to look at."""
    try:
        control.check_hops(arrival.cause)
    except Refused as error:
        control.note_refusal(ports, pipeline.name, arrival.cause, error.message, now)
        return replace(arrival, state=ArrivalState.QUARANTINED, reason=error.message)
    return arrival


def _new(arrival: Arrival) -> list[Write]:
    writes: list[Write] = [Insert(f"arrival/{arrival.id}", to_builtins(arrival))]
    if arrival.state is ArrivalState.PENDING:
        writes.append(_pending(arrival))
    return writes


def _pending(arrival: Arrival) -> Insert:
    return Insert(books.pending_key(arrival), {"id": arrival.id, "arrived_at": arrival.arrived_at.isoformat()})


def _found_again(row: Row, known: Seen | None, write: Written, now: datetime) -> tuple[Arrival, list[Write]]:
    """The arrival of a write that is known, and what must be written because it lies there (again)."""
    arrival = from_builtins(Arrival, row.value)
    if known is not None and known.id == write.id and known.gone_at is None:
        return arrival, []
    if arrival.state is ArrivalState.SUPERSEDED:
        arrival = replace(arrival, state=ArrivalState.PENDING, batch=None, reason=None, arrived_at=now, gone_at=None)
        return arrival, [Replace(row.key, to_builtins(arrival), row.etag), _pending(arrival)]
    if arrival.gone_at is not None:
        arrival = replace(arrival, gone_at=None)
        return arrival, [Replace(row.key, to_builtins(arrival), row.etag), Delete(gone_key(arrival))]
    return arrival, []


def _seen_write(row: Row | None, write: Written) -> Write | None:
    """The write that makes this the newest known of its name; None when it is that already."""
    key, value = _seen(write, row)
    if row is None:
        return Insert(key, value)
    return Replace(key, value, row.etag) if value != row.value else None


def _seen(write: Written, row: Row | None) -> tuple[str, Json]:
    sequencer = newest(write.sequencer, row.value["sequencer"] if row is not None else None)
    return seen_key(write.ref.path), to_builtins(Seen(write.id, write.url, write.etag, sequencer))


# ------------------------------------------------------------------------------------------------ gone
def lose(ports: Ports, pipeline: Pipeline, ref: BlobRef, now: datetime, why: str, sequencer: str | None = None) -> bool:
    """Write down that nothing lies under that name any more; whether that is news.

    A file that waits is given up; one that is in a dataset version stays there, and is said to be gone.
    """
    ledger, partition = ports.ledger, pipeline.partition
    while True:
        row = seen(ledger, partition, ref.path)
        if row is None:
            # Nothing is known of it. With a sequencer the event says more: what is older than this is no news either.
            value = to_builtins(Seen(None, ref.url, None, sequencer, now))
            writes: list[Write] = [Insert(seen_key(ref.path), value)] if sequencer is not None else []
        else:
            writes = _gone(ledger, partition, row, now, why, sequencer)
        try:
            ledger.commit(partition, writes)
        except Conflict:
            continue
        return row is not None and row.value["gone_at"] is None


def lose_many(ports: Ports, pipeline: Pipeline, rows: Iterable[Row], now: datetime, why: str) -> int:
    """`lose`, for names whose rows have just been read; how many were news. Many at a time go into one commit; what
    somebody else has changed since is left to him."""
    count = 0
    remaining = iter(rows)
    while chunk := list(islice(remaining, CHUNK)):
        parts = [_gone(ports.ledger, pipeline.partition, row, now, why, None) for row in chunk]
        try:
            ports.ledger.commit(pipeline.partition, [each for part in parts for each in part])
            count += len(chunk)
            continue
        except Conflict:
            pass
        for row in chunk:
            with suppress(Conflict):
                ports.ledger.commit(pipeline.partition, _gone(ports.ledger, pipeline.partition, row, now, why, None))
                count += 1
    return count


def _gone(ledger: Ledger, partition: str, row: Row, now: datetime, why: str, sequencer: str | None) -> list[Write]:
    sequencer = newest(sequencer, row.value["sequencer"])
    if row.value["gone_at"] is not None:
        value = {**row.value, "sequencer": sequencer}
        return [Replace(row.key, value, row.etag)] if value != row.value else []
    value = {**row.value, "sequencer": sequencer, "gone_at": now.isoformat()}
    lost = _lost(ledger, partition, row.value["id"], now, why) if row.value["id"] is not None else []
    return [Replace(row.key, value, row.etag), *lost]


def _lost(ledger: Ledger, partition: str, id_: str, now: datetime, why: str) -> list[Write]:
    """What must be written of an arrival whose bytes are no longer where they came from."""
    row = ledger.get(partition, f"arrival/{id_}")
    if row is None:
        return []
    arrival = from_builtins(Arrival, row.value)
    if arrival.state is ArrivalState.PENDING and why != "written over" and arrival.kept is None:
        reason = f"{arrival.url} was {why} before it was read"
        given_up = replace(arrival, state=ArrivalState.SUPERSEDED, reason=reason)
        return [Replace(row.key, to_builtins(given_up), row.etag), Delete(books.pending_key(arrival))]
    if arrival.state is ArrivalState.ACCEPTED and arrival.gone_at is None:
        gone: Json = {"arrival": id_, "url": arrival.url, "why": why, "gone_at": now.isoformat()}
        marked = replace(arrival, gone_at=now)
        return [Replace(row.key, to_builtins(marked), row.etag), Insert(gone_key(arrival), gone)]
    return []


def gone_key(arrival: Arrival) -> str:
    return f"{GONE}{arrival.batch:08d}/{arrival.id}"


def gone_of(ledger: Ledger, partition: str, batch: int) -> Iterator[Json]:
    """The accepted files of a batch that are no longer where they came from: arrival, url, why, gone_at."""
    return (row.value for row in books.every(ledger, partition, f"{GONE}{batch:08d}/"))


# ------------------------------------------------------------------------------------------------ held
@dataclass(frozen=True)
class Decision:
    """What has become of an arrival, what is to be told of it, and when it was found that nothing lies there any more."""

    arrival: Arrival
    told: tuple[Insert, ...] = ()
    gone_at: datetime | None = None


def decide(ports: Ports, pipeline: Pipeline, decisions: Sequence[Decision]) -> None:
    """Write down what has become of arrivals; many in one commit. Safe to call again. What has been decided meanwhile, or
    has come to wait anew since it was looked at, stays as it is."""
    ledger, partition = ports.ledger, pipeline.partition
    # An arrival, what is told of it, and what it holds or where it was.
    step = MAX_WRITES // (2 + max((len(each.told) for each in decisions), default=0))
    for start in range(0, len(decisions), step):
        chunk = decisions[start : start + step]
        # One of two files with equal bytes and name holds them.
        writes = {write.key: write for each in chunk for write in _decision(ledger, partition, each)}
        try:
            ledger.commit(partition, list(writes.values()))
        except Conflict:
            for each in chunk:
                _decide(ledger, partition, each)


def _decide(ledger: Ledger, partition: str, decision: Decision) -> None:
    while True:
        try:
            return ledger.commit(partition, _decision(ledger, partition, decision))
        except Conflict:
            continue


def _decision(ledger: Ledger, partition: str, decision: Decision) -> list[Write]:
    arrival, value = decision.arrival, to_builtins(decision.arrival)
    row = ledger.get(partition, f"arrival/{arrival.id}")
    if row is None or not _waits_still(from_builtins(Arrival, row.value), arrival):
        return []
    writes: list[Write] = [Replace(row.key, value, row.etag), *decision.told]
    if arrival.state is ArrivalState.ACCEPTED:
        key, mine = _held_key(arrival.sha256 or "", arrival.url), {"arrival": arrival.id}
        before = ledger.get(partition, key)
        writes.append(Insert(key, mine) if before is None else Replace(key, mine, before.etag))
    elif decision.gone_at is not None:
        place = seen(ledger, partition, parse_url(arrival.url).path)
        # Should the very same write come back, it waits again.
        if place is not None and place.value["id"] == arrival.id and place.value["gone_at"] is None:
            gone = {**place.value, "gone_at": decision.gone_at.isoformat()}
            writes.append(Replace(place.key, gone, place.etag))
    return writes


def _waits_still(known: Arrival, looked_at: Arrival) -> bool:
    """Whether the arrival waits as it did when it was looked at: a host that was slow undoes nothing."""
    same = (known.replays, known.arrived_at) == (looked_at.replays, looked_at.arrived_at)
    return same and known.state is ArrivalState.PENDING


def held(ports: Ports, partition: str, arrival: Arrival) -> Arrival | None:
    """The accepted file of an earlier batch that this one only repeats: equal bytes under the same name, under the name
    it was moved from, or in the very same write, which now lies under another name (a rename that no event told of)."""
    ledger, sha256 = ports.ledger, arrival.sha256 or ""
    for url in (arrival.url, arrival.moved_from):
        row = ledger.get(partition, _held_key(sha256, url)) if url is not None else None
        if row is not None and (found := _holder(ledger, partition, row, arrival)) is not None:
            return found
    for row in ledger.scan(partition, f"held/{sha256}/", limit=100):
        found = _holder(ledger, partition, row, arrival)
        if found is not None and found.etag == arrival.etag and not _is_there(ports, found):
            return found
    return None


def _is_there(ports: Ports, arrival: Arrival) -> bool:
    """Whether that write still lies where it came from, as far as can be said."""
    try:
        there = ports.drops.look(arrival.url)
    except NotFound:  # in a store that this app no longer reads
        return True
    return there is not None and there.etag == arrival.etag


def _holder(ledger: Ledger, partition: str, row: Row, arrival: Arrival) -> Arrival | None:
    if row.value["arrival"] == arrival.id:
        return None
    found = books.arrival(ledger, partition, row.value["arrival"])
    # Only what an earlier batch holds is certain to be in the table: a file of this one may yet be found to be gone.
    earlier = found.batch is not None and arrival.batch is not None and found.batch < arrival.batch
    return found if found.state is ArrivalState.ACCEPTED and earlier else None


def _held_key(sha256: str, url: str) -> str:
    return f"held/{sha256}/{id_of(url)}"


# ------------------------------------------------------------------------------------------------ the flow
def wake(ports: Ports, pipeline: Pipeline, *, again: bool = False) -> Json | None:
    """The intake flow to start, under an id that says which lane and epoch; `full` when it need not wait any longer.
    None while the pipeline is paused: what waits is taken in when it goes on.

    That is said once for a batch, and `again` by the sweep: who said it first may have died before the flow heard.
    """
    if control.is_paused(ports.ledger, pipeline.partition):
        return None
    epoch = lanes.enter(ports.ledger, pipeline.partition, LANE)
    return {
        "flow": "intake",
        "id": f"intake-{pipeline.name}-{epoch}",
        "input": {"pipeline": pipeline.name, "epoch": epoch},
        "signal": "full" if _full(ports, pipeline, again) else None,
    }


def _full(ports: Ports, pipeline: Pipeline, again: bool) -> bool:
    """Whether the next batch is full, and this caller is the first to say so (or says it `again`)."""
    limit = pipeline.spec.batching.max_files
    head = books.head(ports.ledger, pipeline.partition)
    batch = int(head.value["batch"]) + 1
    if head.value["open"] is not None or (head.value["full"] == batch and not again):
        return False
    if ports.ledger.count(pipeline.partition, "pending/", limit) < limit:
        return False
    if head.value["full"] == batch:
        return again
    try:
        ports.ledger.commit(pipeline.partition, [Replace("head", {**head.value, "full": batch}, head.etag)])
    except Conflict:
        return False
    return True
