"""Processes that write without end, for tests that kill them or let them race: `python -m tests.contract.writers`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.drops import LocalDrops
from dropforge.adapters.local.journal import Journal
from dropforge.adapters.local.ledger import SqliteLedger
from dropforge.adapters.local.serving import LocalServing
from dropforge.adapters.registry import LedgerRegistry
from dropforge.domain.endpoints import Desired
from dropforge.domain.errors import Conflict
from dropforge.domain.events import DomainEvent
from dropforge.ports import Insert, Replace
from tests.contract.samples import NOW, lineage

PAD = "x" * 20_000


def start(loop: str, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start a loop in a process of its own."""
    command = [sys.executable, "-m", "tests.contract.writers", loop, str(folder), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed(loop: str, folder: Path, after: int, *arguments: object) -> list[int]:
    """Kill a loop after it has acknowledged that many writes; the numbers of all it acknowledged."""
    with start(loop, folder, *arguments) as process:
        assert process.stdout
        acknowledged = [int(process.stdout.readline()) for _ in range(after)]
        process.kill()
        # It went on between our last look and its end. Half a line is a number it had not yet told.
        return acknowledged + [int(line) for line in process.stdout.readlines() if line.endswith("\n")]


def finished(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each process printed; all must have ended well."""
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return printed


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def pairs(folder: Path, first: str) -> None:
    """Commit rows in pairs, for ever."""
    with closing(SqliteLedger(folder / "ledger.db")) as ledger:
        for number in count(int(first)):
            ledger.commit("p", [Insert(f"{side}/{number:06}", {"n": number, "pad": PAD}) for side in ("a", "b")])
            tell(number)


def increments(folder: Path, times: str) -> None:
    """Count one row up by compare-and-set."""
    with closing(SqliteLedger(folder / "ledger.db")) as ledger:
        for _ in range(int(times)):
            while True:
                row = ledger.get("p", "counter")
                write = Replace("counter", {"n": row.value["n"] + 1}, row.etag) if row else Insert("counter", {"n": 1})
                try:
                    ledger.commit("p", [write])
                    break
                except Conflict:
                    continue


def artifacts(folder: Path, first: str) -> None:
    """Put artifacts, for ever."""
    store = LocalArtifacts(folder / "artifacts")
    for number in count(int(first)):
        store.put(f"a/{number}/model", bytes([number % 256]) * 300_000)
        tell(number)


def one_artifact(folder: Path, content: str) -> None:
    """Put other bytes under one name than the process beside."""
    store = LocalArtifacts(folder / "artifacts")
    for number in range(40):
        try:
            store.put(f"race/{number}", content.encode() * 50_000)
            tell(number)
        except Conflict:
            continue


def drops(folder: Path, first: str) -> None:
    """Drop files, for ever."""
    (folder / "source").write_bytes(b"x" * 300_000)
    store = LocalDrops(folder / "drops", settle_seconds=0)
    for number in count(int(first)):
        store.put("drops", f"a/{number % 3}/{number}.csv", folder / "source")
        tell(number)


def events(folder: Path, first: str) -> None:
    """Publish events, for ever."""
    journal = Journal(folder)
    for number in count(int(first)):
        journal.publish(DomainEvent(f"id-{number}", "Tick", "clock", NOW, {"n": number, "pad": PAD}))
        tell(number)


def some_events(folder: Path, first: str) -> None:
    """Publish forty events."""
    journal = Journal(folder)
    for number in range(int(first), int(first) + 40):
        journal.publish(DomainEvent(f"id-{number}", "Tick", "clock", NOW, {"pad": PAD}))


def revisions(folder: Path, first: str, step: str) -> None:
    """Publish revisions of one endpoint."""
    serving = LocalServing(folder)
    for revision in range(int(first), 120, int(step)):
        serving.publish(Desired("flights", revision, (), NOW))
        published = serving.desired("flights")
        assert published is not None
        assert published.revision >= revision


def register(folder: Path, model: str) -> None:
    """Register twenty runs; the process beside registers the same ones."""
    with closing(SqliteLedger(folder / "ledger.db")) as ledger:
        registry = LedgerRegistry(ledger, LocalArtifacts(folder / "artifacts"))
        for number in range(20):
            tell(registry.register(model, "model", lineage(f"r{number}"), NOW).version)


LOOPS: dict[str, Callable[..., Any]] = {
    loop.__name__: loop
    for loop in (pairs, increments, artifacts, one_artifact, drops, events, some_events, revisions, register)
}

if __name__ == "__main__":
    LOOPS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
