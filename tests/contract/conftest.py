"""Every adapter of a port runs through the same file. To add one: a line in its port's table here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dropforge.adapters.azure.artifacts import BlobArtifacts
from dropforge.adapters.azure.blobs import BlobDrops
from dropforge.adapters.azure.ledger import TableLedger
from dropforge.adapters.azure.serving import BlobServing, ServingBlobs
from dropforge.adapters.event_grid import EventGridTopic
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
from dropforge.adapters.webhook import Webhook
from dropforge.domain.endpoints import ReplicaState
from dropforge.ports import Artifacts, Drops, Events, Ledger, Registry, Serving
from tests.azure.aml_bench import mirror_bench
from tests.azurite import Azurite, azurite
from tests.contract.samples import NOW
from tests.contract.web import web

__all__ = ["azurite"]


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


@contextmanager
def azure_drops(azurite: Azurite) -> Iterator[DropBench]:
    with azurite.container("drops") as client, closing(BlobDrops(azurite.connection_string, "drops")) as drops:
        yield DropBench(
            drops, lambda path, content: _void(client.upload_blob(path, content, overwrite=True)), client.delete_blob
        )


def _memory_serving(folder: Path) -> ServingBench:
    clock = Clock()
    serving = MemoryServing(clock=clock)
    return ServingBench(serving, serving.report, clock)


def _local_serving(folder: Path) -> ServingBench:
    clock = Clock()
    return ServingBench(LocalServing(folder, clock=clock), lambda state: write_report(folder, state), clock)


@contextmanager
def azure_serving(azurite: Azurite) -> Iterator[ServingBench]:
    clock = Clock()
    store, alive = azurite.connection_string, timedelta(seconds=10)
    with (
        azurite.container("serving"),
        closing(ServingBlobs(store)) as replica,
        closing(BlobServing(store, alive=alive, clock=clock)) as serving,
    ):
        yield ServingBench(serving, replica.write_report, clock)


@contextmanager
def _memory_events(folder: Path) -> Iterator[EventBench]:
    events = MemoryEvents()
    yield EventBench(events, lambda: [(e.id, e.type, e.subject, e.at, e.data) for e in events.published])


@contextmanager
def _journal(folder: Path) -> Iterator[EventBench]:
    journal = Journal(folder)
    yield EventBench(journal, lambda: [_heard(entry.event) for entry in journal.read(limit=1000)])


@contextmanager
def _webhook(folder: Path) -> Iterator[EventBench]:
    with web() as listener:
        yield EventBench(Webhook(listener.url), lambda: [_heard(each.json()) for each in listener.requests])


@contextmanager
def _event_grid(folder: Path) -> Iterator[EventBench]:
    # The SDK sends a list of one.
    with web() as listener, closing(EventGridTopic(f"{listener.url}/api/events", "key")) as topic:
        yield EventBench(topic, lambda: [_heard(event) for each in listener.requests for event in each.json()])


def _heard(event: dict[str, Any]) -> tuple[str, str, str, datetime, dict[str, Any]]:
    """What a listener makes of a CloudEvent."""
    kind, at = event["type"].removeprefix("dropforge."), datetime.fromisoformat(event["time"])
    return event["id"], kind, event["subject"], at, event["data"]


def _void(_: object) -> None:
    return None


_fresh = count(1)


def fresh(what: str) -> str:
    """A name for a table or a container that no test before used: quicker than to empty one."""
    return f"{what}{next(_fresh)}"


LEDGERS: dict[str, Callable[[Path], AbstractContextManager[Ledger]]] = {
    "memory": lambda folder: nullcontext(MemoryLedger()),
    "local": lambda folder: closing(SqliteLedger(folder / "ledger.db")),
}
ARTIFACTS: dict[str, Callable[[Path], Artifacts]] = {
    "memory": lambda folder: MemoryArtifacts(),
    "local": lambda folder: LocalArtifacts(folder / "artifacts"),
}
DROPS: dict[str, Callable[[Path], DropBench]] = {"memory": _memory_drops, "local": _local_drops}
# Beside its table: the emulator is a process that the whole session shares.
AZURITE = "azurite"
SERVINGS: dict[str, Callable[[Path], ServingBench]] = {"memory": _memory_serving, "local": _local_serving}
EVENTS: dict[str, Callable[[Path], AbstractContextManager[EventBench]]] = {
    "memory": _memory_events,
    "local": _journal,
    "webhook": _webhook,
    "event_grid": _event_grid,
}
# A registry is made of a ledger and an artifact store; in Azure ML it is mirrored besides.
REGISTRIES = {name: (name, name) for name in ("memory", "local", AZURITE)} | {"azureml": ("memory", "memory")}


# ---------------------------------------------------------------------------------------------- the fixtures
@contextmanager
def ledger_of(name: str, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    if name != AZURITE:
        with LEDGERS[name](request.getfixturevalue("tmp_path")) as made:
            yield made
        return
    with closing(TableLedger(request.getfixturevalue(AZURITE).connection_string, fresh("ledger"))) as made:
        yield made


@contextmanager
def artifacts_of(name: str, request: pytest.FixtureRequest) -> Iterator[Artifacts]:
    if name != AZURITE:
        yield ARTIFACTS[name](request.getfixturevalue("tmp_path"))
        return
    with closing(BlobArtifacts(request.getfixturevalue(AZURITE).connection_string, fresh("artifacts"))) as made:
        yield made


@pytest.fixture(params=[*LEDGERS, AZURITE])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    with ledger_of(request.param, request) as made:
        yield made


@pytest.fixture(params=[*ARTIFACTS, AZURITE])
def artifacts(request: pytest.FixtureRequest) -> Iterator[Artifacts]:
    with artifacts_of(request.param, request) as made:
        yield made


@pytest.fixture(params=[*DROPS, AZURITE])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DropBench]:
    if request.param != AZURITE:
        yield DROPS[request.param](tmp_path)
        return
    with azure_drops(request.getfixturevalue(AZURITE)) as made:
        yield made


@pytest.fixture(params=[*SERVINGS, AZURITE])
def serving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServingBench]:
    if request.param != AZURITE:
        yield SERVINGS[request.param](tmp_path)
        return
    with azure_serving(request.getfixturevalue(AZURITE)) as made:
        yield made


@pytest.fixture(params=EVENTS)
def events(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventBench]:
    with EVENTS[request.param](tmp_path) as made:
        yield made


@dataclass
class RegistryBench:
    """A registry, the artifacts that its models lie in, and a second registry as another host would have it."""

    registry: Registry
    another: Registry
    artifacts: Artifacts


@pytest.fixture(params=REGISTRIES)
def models(request: pytest.FixtureRequest) -> Iterator[RegistryBench]:
    rows, files = REGISTRIES[request.param]
    with ledger_of(rows, request) as made, artifacts_of(files, request) as store:
        registry, another = LedgerRegistry(made, store), LedgerRegistry(made, store)
        if request.param != "azureml":
            yield RegistryBench(registry, another, store)
            return
        with mirror_bench() as mirror:
            yield RegistryBench(mirror(registry, store), mirror(another, store), store)
