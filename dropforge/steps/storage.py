"""Storage events: what they say is checked against what is known, and written down; the store settles every doubt.

An event is a hint. One that announces a write never heard of is believed, because that is cheap and looked at again when
the file is read. Whatever else it says (a delete, a rename, a write older than one that is known), the store is asked
what lies there now, and the ledger is brought in line with that; so the order in which events come does not matter.

partition `storage`   counts            how many events there were of each kind that brings no arrival
                      misfit/<slot>     the newest events that make no sense, with the reason
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache

from dropforge.domain.arrivals import Heard, heard
from dropforge.domain.blobs import BlobRef
from dropforge.domain.errors import BadInput, Conflict, DropforgeError, NotFound
from dropforge.domain.storage_events import StorageEvent, StorageKind, is_newer, parse
from dropforge.ports import Insert, Json, Ports, Replace, Write
from dropforge.steps import arrivals, books, reconcile
from dropforge.steps.arrivals import Written
from dropforge.steps.books import Pipeline

PARTITION = "storage"
COUNTS = "counts"
MISFIT = "misfit/"
MOST_MISFITS = 200
_MOST_TEXT = 4000

log = logging.getLogger(__name__)


@dataclass
class Heeded:
    """What came of some events: the flows to start, and why some of them (by their place) must be told again."""

    start: list[Json] = field(default_factory=list)
    failures: dict[int, DropforgeError] = field(default_factory=dict)


def heed(ports: Ports, told: Sequence[object], container: str, now: datetime) -> Heeded:
    """Write down what the events (the envelopes of either schema) say of the files in the container.

    Events that make no sense are kept for people to see: telling them again cannot mend them. Any event may come many
    times, late and in any order. Raises `Unavailable` when the ledger does not answer: then all must be told again.
    """
    return _Heeding(ports, container, now).all(told)


def report(ports: Ports) -> Json:
    """How many events brought no arrival, by kind, and the newest ones that make no sense, the newest first."""
    row = ports.ledger.get(PARTITION, COUNTS)
    misfits = [each.value for each in books.every(ports.ledger, PARTITION, MISFIT)]
    return {
        "counts": row.value if row is not None else {},
        "misfits": sorted(misfits, key=lambda each: str(each["at"]), reverse=True),
    }


class _Heeding:
    """Some events on their way into the ledger."""

    def __init__(self, ports: Ports, container: str, now: datetime) -> None:
        self._ports = ports
        self._container = container
        self._now = now
        self._pipelines = books.pipelines(ports.ledger)
        # Writes to take down, by pipeline: many in one commit.
        self._new: dict[str, list[tuple[int, Written]]] = defaultdict(list)
        self._waiting: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._misfits: list[Json] = []

    def all(self, told: Sequence[object]) -> Heeded:
        heeded = Heeded()
        doubts: list[tuple[int, Callable[[], None]]] = []
        for place, each in enumerate(told):
            try:
                event = parse(each)
                self._count(event)
                doubts += [(place, doubt) for doubt in self._one(place, event)]
            except BadInput as error:
                self._misfit(each, error.message)
        for name, new in self._new.items():
            pipeline = self._named(name)
            taken, known = arrivals.record(self._ports, pipeline, [write for _, write in new], self._now)
            if taken.waits:
                self._waiting.add(name)
            places = {id(write): place for place, write in new}
            doubts += [(places[id(each)], lambda p=pipeline, w=each: self._known(p, w)) for each in known]  # type: ignore[misc]
        # After what is believed: an event about a file in the same delivery finds it in the ledger.
        for place, doubt in doubts:
            try:
                doubt()
            except BadInput as error:
                self._misfit(told[place], error.message)
            except DropforgeError as error:
                heeded.failures[place] = error
        self._note()
        flows = [arrivals.wake(self._ports, self._named(name)) for name in sorted(self._waiting)]
        heeded.start = [flow for flow in flows if flow is not None]
        return heeded

    def _one(self, place: int, event: StorageEvent) -> list[Callable[[], None]]:
        """Note what can be believed; what must be asked of the store comes back."""
        match event.kind:
            case StorageKind.CREATED:
                return self._created(place, event) if event.is_whole else []
            case StorageKind.DELETED:
                return [lambda: self._settled(event, event.url)]
            case StorageKind.RENAMED:
                return [
                    lambda: self._settled(event, event.url, moved_from=self._located(event.source_url)),
                    lambda: self._settled(event, event.source_url, why="renamed"),
                ]
            case StorageKind.DIRECTORY_RENAMED:
                return [lambda: self._directory_renamed(event)]
            case StorageKind.DIRECTORY_DELETED:
                return [lambda: self._under(event.url)]
            case _:
                return []

    # -------------------------------------------------------------------------------------------- one file
    def _created(self, place: int, event: StorageEvent) -> list[Callable[[], None]]:
        ref = self._located(event.url)
        if ref is not None and event.subject is not None and event.subject != (ref.container, ref.path):
            _tell_disagreement(event.subject[0], ref.container)
        pipeline = self._owner(ref)
        if ref is None or pipeline is None:
            self._counts["elsewhere"] += 1
            return []
        write = Written(ref, ref.url, event.etag, event.size_bytes or 0, "event", event.sequencer, cause=event.cause)
        self._new[pipeline.name].append((place, write))
        return []

    def _known(self, pipeline: Pipeline, write: Written) -> None:
        """A write under a name of which something is known."""
        known = arrivals.seen_of(arrivals.seen(self._ports.ledger, pipeline.partition, write.ref.path))
        if heard(known, write.url, write.etag, write.sequencer) is Heard.DOUBTFUL:
            self._counts["doubtful"] += 1
            self._settle(pipeline, write)
        elif arrivals.take(self._ports, pipeline, write, self._now).waits:
            self._waiting.add(pipeline.name)

    def _settled(self, event: StorageEvent, url: str, why: str = "deleted", moved_from: BlobRef | None = None) -> None:
        ref = self._located(url)
        pipeline = self._owner(ref)
        if ref is None or pipeline is None:
            self._counts["elsewhere"] += 1
            return
        known = arrivals.seen_of(arrivals.seen(self._ports.ledger, pipeline.partition, ref.path))
        if known is not None and is_newer(known.sequencer, event.sequencer):
            self._counts["late"] += 1
            return
        # Nothing but the new name of a rename says that the old one's bytes are there.
        before = moved_from.url if moved_from is not None else None
        told = Written(ref, ref.url, "", 0, "event", event.sequencer, event.cause, before)
        self._settle(pipeline, told, why)

    def _settle(self, pipeline: Pipeline, told: Written, why: str = "deleted") -> None:
        if reconcile.settle(self._ports, pipeline, told, self._now, why).waits:
            self._waiting.add(pipeline.name)

    # -------------------------------------------------------------------------------------------- many files
    def _directory_renamed(self, event: StorageEvent) -> None:
        after, before = self._located(event.url), self._located(event.source_url)

        def moved(ref: BlobRef) -> str | None:
            if after is None or before is None:
                return None
            return replace(ref, path=before.path + ref.path.removeprefix(after.path)).url

        self._under(event.url, moved)
        self._under(event.source_url, why="renamed")

    def _under(self, url: str, moved: Callable[[BlobRef], str | None] = lambda _: None, why: str = "deleted") -> None:
        """Every file below that folder, as it lies there now."""
        ref = self._located(url)
        if ref is None:
            return
        folder = ref.path.rstrip("/") + "/"
        for pipeline in self._pipelines:
            drop = pipeline.spec.dataset.drop
            if not folder.startswith(drop) and not drop.startswith(folder):
                continue
            prefix = max(folder, drop, key=len)
            found = reconcile.under(
                self._ports, pipeline, self._pipelines, self._container, prefix, self._now, moved, why
            )
            if found.waits:
                self._waiting.add(pipeline.name)

    # -------------------------------------------------------------------------------------------- where
    def _located(self, url: str) -> BlobRef | None:
        """The file, when it is in the container that files are dropped into."""
        try:
            ref = self._ports.drops.locate(url)
        except NotFound:
            return None
        return ref if ref.container == self._container else None

    def _owner(self, ref: BlobRef | None) -> Pipeline | None:
        return arrivals.owner(self._pipelines, ref.path) if ref is not None else None

    def _named(self, name: str) -> Pipeline:
        return next(each for each in self._pipelines if each.name == name)

    # -------------------------------------------------------------------------------------------- notes
    def _count(self, event: StorageEvent) -> None:
        if event.kind is not StorageKind.CREATED:
            self._counts[event.kind.value] += 1
        elif not event.is_whole:
            self._counts["unfinished"] += 1

    def _misfit(self, told: object, reason: str) -> None:
        log.warning("a storage event makes no sense and is kept under %s: %s", MISFIT, reason)
        self._counts["misfit"] += 1
        self._misfits.append({"at": self._now.isoformat(), "reason": reason[:1000], "event": _shown(told)})

    def _note(self) -> None:
        """One commit for all that is only counted."""
        ledger = self._ports.ledger
        while self._counts:
            row = ledger.get(PARTITION, COUNTS)
            before = row.value if row is not None else {}
            counts = {**before, **{key: int(before.get(key, 0)) + more for key, more in self._counts.items()}}
            writes: list[Write] = [Replace(COUNTS, counts, row.etag) if row is not None else Insert(COUNTS, counts)]
            kept = self._misfits[-40:]
            first = int(counts.get("misfit", 0)) - len(kept)
            for number, misfit in enumerate(kept, first):
                key = f"{MISFIT}{number % MOST_MISFITS:04d}"
                old = ledger.get(PARTITION, key)
                writes.append(Insert(key, misfit) if old is None else Replace(key, misfit, old.etag))
            try:
                ledger.commit(PARTITION, writes)
            except Conflict:
                continue
            return


def _shown(told: object) -> str:
    try:
        text = json.dumps(told, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        text = ascii(told)
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "…"


@lru_cache(maxsize=256)
def _tell_disagreement(subject: str, url: str) -> None:
    """Once for each pair of containers, as long as this process lives."""
    log.warning(
        "storage events say container %r in their subject and %r in their url (or differ in the path); the url counts",
        subject,
        url,
    )
