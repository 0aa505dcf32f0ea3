"""Every adapter of a port runs through the same file. To add one: a line in its port's table here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.drops import LocalDrops
from dropforge.adapters.local.journal import Journal
from dropforge.adapters.local.ledger import SqliteLedger
from dropforge.adapters.local.serving import LocalServing, write_report
from dropforge.adapters.memory.artifacts import MemoryArtifacts
from dropforge.adapters.memory.drops import MemoryDrops
from dropforge.adapters.memory.events import MemoryEvents
from dropforge.adapters.memory.ledger import MemoryLedger
from dropforge.adapters.memory.serving import MemoryServing
from dropforge.adapters.registry import LedgerRegistry
from dropforge.domain.endpoints import ReplicaState
from dropforge.ports import Artifacts, Drops, Events, Ledger, Registry, Serving
from tests.contract.samples import NOW


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class DropBench:
    """A drop store, and what people do to it from outside: each write is a whole file."""

    drops: Drops
    write: Callable[[str, bytes], None]
    remove: Callable[[str], None]


@dataclass
class ServingBench:
    """A serving store, what a replica does to it, and its clock."""

    serving: Serving
    report: Callable[[ReplicaState], None]
    clock: Clock


@dataclass
class EventBench:
    """Where events go, and what a listener has heard: id, type, subject, time and data of each."""

    events: Events
    heard: Callable[[], list[tuple[str, str, str, datetime, dict[str, Any]]]]


# ---------------------------------------------------------------------------------------------- the tables
def _memory_drops(folder: Path) -> DropBench:
    drops = MemoryDrops()
    return DropBench(drops, lambda path, content: _void(drops.write(path, content)), drops.remove)


def _local_drops(folder: Path) -> DropBench:
    root = folder / "drops"

    def write(path: str, content: bytes) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        # By rename, as careful tools do: a write in place within one tick of a coarse clock would look like none.
        (root / ".writing").write_bytes(content)
        (root / ".writing").replace(root / path)

    return DropBench(LocalDrops(root, settle_seconds=0), write, lambda path: (root / path).unlink())


def _memory_serving(folder: Path) -> ServingBench:
    clock = Clock()
    serving = MemoryServing(clock=clock)
    return ServingBench(serving, serving.report, clock)


def _local_serving(folder: Path) -> ServingBench:
    clock = Clock()
    return ServingBench(LocalServing(folder, clock=clock), lambda state: write_report(folder, state), clock)


def _memory_events(folder: Path) -> EventBench:
    events = MemoryEvents()
    return EventBench(events, lambda: [(e.id, e.type, e.subject, e.at, e.data) for e in events.published])


def _journal(folder: Path) -> EventBench:
    journal = Journal(folder)

    def heard() -> list[tuple[str, str, str, datetime, dict[str, Any]]]:
        told = [entry.event for entry in journal.read(limit=1000)]
        return [
            (e["id"], e["type"].removeprefix("dropforge."), e["subject"], datetime.fromisoformat(e["time"]), e["data"])
            for e in told
        ]

    return EventBench(journal, heard)


def _void(_: object) -> None:
    return None


LEDGERS: dict[str, Callable[[Path], AbstractContextManager[Ledger]]] = {
    "memory": lambda folder: nullcontext(MemoryLedger()),
    "local": lambda folder: closing(SqliteLedger(folder / "ledger.db")),
}
ARTIFACTS: dict[str, Callable[[Path], Artifacts]] = {
    "memory": lambda folder: MemoryArtifacts(),
    "local": lambda folder: LocalArtifacts(folder / "artifacts"),
}
DROPS: dict[str, Callable[[Path], DropBench]] = {"memory": _memory_drops, "local": _local_drops}
SERVINGS: dict[str, Callable[[Path], ServingBench]] = {"memory": _memory_serving, "local": _local_serving}
EVENTS: dict[str, Callable[[Path], EventBench]] = {"memory": _memory_events, "local": _journal}
# A registry is made of a ledger and an artifact store.
REGISTRIES = {name: (name, name) for name in ("memory", "local")}


# ---------------------------------------------------------------------------------------------- the fixtures
@pytest.fixture(params=LEDGERS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with LEDGERS[request.param](tmp_path) as made:
        yield made


@pytest.fixture(params=ARTIFACTS)
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    return ARTIFACTS[request.param](tmp_path)


@pytest.fixture(params=DROPS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> DropBench:
    return DROPS[request.param](tmp_path)


@pytest.fixture(params=SERVINGS)
def serving(request: pytest.FixtureRequest, tmp_path: Path) -> ServingBench:
    return SERVINGS[request.param](tmp_path)


@pytest.fixture(params=EVENTS)
def events(request: pytest.FixtureRequest, tmp_path: Path) -> EventBench:
    return EVENTS[request.param](tmp_path)


@dataclass
class RegistryBench:
    """A registry, the artifacts that its models lie in, and a second registry as another host would have it."""

    registry: Registry
    another: Registry
    artifacts: Artifacts


@pytest.fixture(params=REGISTRIES)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryBench]:
    rows, files = REGISTRIES[request.param]
    store = ARTIFACTS[files](tmp_path)
    with LEDGERS[rows](tmp_path) as made:
        yield RegistryBench(LedgerRegistry(made, store), LedgerRegistry(made, store), store)
