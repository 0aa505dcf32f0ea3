"""Reconcile: lay the listing of the container beside what the ledger knows, and heal what events missed.

Both sides come in the order of the paths, a page at a time, so a pass holds two pages whatever the container holds. Order
is what makes it fast, not what makes it right: what seems to be gone is looked at once more before it is given up, and
what seems to be new is written down only if it is (some stores sort folders in their own way).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from dropforge.domain.blobs import BlobRef, normal_etag
from dropforge.domain.errors import NotFound
from dropforge.ports import Drop, Json, Ports, Row
from dropforge.steps import arrivals, books
from dropforge.steps.arrivals import Taken, Written
from dropforge.steps.books import Pipeline


@dataclass
class Found:
    """What a pass found: files listed, writes that were not known, names whose file is gone."""

    listed: int = 0
    found: int = 0
    gone: int = 0
    waits: bool = False

    def add(self, taken: Taken) -> None:
        self.found += taken.news
        self.waits |= taken.waits


def reconcile(ports: Ports, name: str | None, container: str, now: datetime) -> Json:
    """Take down every file of the pipeline (None: of each) whose event was lost, and mark every one that is gone.

    Returns how many files were `listed`, `found` and `gone`, and the flows to `start`. Safe to call again and at once
    from two hosts. Raises `NotFound` for an unknown pipeline, `Unavailable` when the container does not answer; what was
    found until then is down.
    """
    everybody = books.pipelines(ports.ledger)
    chosen = everybody if name is None else [books.pipeline(ports.ledger, name)]
    passes = [under(ports, each, everybody, container, each.spec.dataset.drop, now) for each in chosen]
    flows = [arrivals.wake(ports, each) for each, told in zip(chosen, passes, strict=True) if told.waits]
    return {
        "found": sum(told.found for told in passes),
        "gone": sum(told.gone for told in passes),
        "listed": sum(told.listed for told in passes),
        "start": [flow for flow in flows if flow is not None],
    }


def under(
    ports: Ports,
    pipeline: Pipeline,
    everybody: Sequence[Pipeline],
    container: str,
    prefix: str,
    now: datetime,
    moved: Callable[[BlobRef], str | None] = lambda _: None,
    why: str = "deleted",
) -> Found:
    """One pass over the names that begin with the prefix. `moved` says which URL a file had before, if it was renamed,
    `why` how what is gone came to be so."""
    told = Found()
    new: list[Written] = []
    missing: list[Row] = []

    def flush() -> None:
        taken, known = arrivals.record(ports, pipeline, new, now)
        told.add(taken)
        for each in known:
            told.add(settle(ports, pipeline, each, now, why))
        told.gone += arrivals.lose_many(ports, pipeline, missing, now, why)
        new.clear()
        missing.clear()

    for place, row in _beside(ports, pipeline, container, prefix):
        if place is not None:
            told.listed += 1
            write = _news(pipeline, everybody, *place, row, moved)
            if write is not None and row is None:
                new.append(write)
            elif write is not None:
                # Listed a while ago, perhaps: what lies there now counts.
                told.add(settle(ports, pipeline, write, now, why))
        elif row is not None and row.value["gone_at"] is None and _is_gone(ports, row.value["url"]):
            missing.append(row)
        if len(new) + len(missing) >= arrivals.CHUNK:
            flush()
    flush()
    return told


def settle(ports: Ports, pipeline: Pipeline, told: Written, now: datetime, why: str = "deleted") -> Taken:
    """Bring what is known of one name in line with what lies there now, whichever etag and size are told of it."""
    drop = ports.drops.look(told.url)
    if drop is None:
        arrivals.lose(ports, pipeline, told.ref, now, why, told.sequencer)
    elif drop.finished:
        write = replace(told, etag=normal_etag(drop.etag), size_bytes=drop.size_bytes)
        return arrivals.take(ports, pipeline, write, now)
    return Taken()


def _news(
    pipeline: Pipeline,
    everybody: Sequence[Pipeline],
    ref: BlobRef,
    drop: Drop,
    row: Row | None,
    moved: Callable[[BlobRef], str | None],
) -> Written | None:
    """The write that a listed file is, when it is not what is known of its name already."""
    etag = normal_etag(drop.etag)
    if row is not None and row.value["etag"] == etag and row.value["gone_at"] is None:
        return None
    owner = arrivals.owner(everybody, ref.path)
    if owner is None or owner.name != pipeline.name:
        return None
    return Written(ref, ref.url, etag, drop.size_bytes, "reconcile", moved_from=moved(ref))


def _is_gone(ports: Ports, url: str) -> bool:
    try:
        return ports.drops.look(url) is None
    except NotFound:
        # It came from a store that this app no longer reads: nothing can be said of it.
        return False


def _beside(
    ports: Ports, pipeline: Pipeline, container: str, prefix: str
) -> Iterator[tuple[tuple[BlobRef, Drop] | None, Row | None]]:
    """The listing and the rows, side by side: what has no partner comes alone."""
    rows = books.every(ports.ledger, pipeline.partition, arrivals.seen_prefix(prefix))
    row = next(rows, None)
    for drop in ports.drops.list(container, prefix):
        ref = ports.drops.locate(drop.url)
        key = arrivals.seen_key(ref.path)
        while row is not None and row.key < key:
            yield None, row
            row = next(rows, None)
        if row is not None and row.key == key:
            yield (ref, drop), row
            row = next(rows, None)
        else:
            yield (ref, drop), None
    while row is not None:
        yield None, row
        row = next(rows, None)
