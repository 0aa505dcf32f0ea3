"""How long reconcile takes over many files, and how much memory. Run: `python -m benchmarks.reconcile`.

A folder of so many files and the SQLite ledger; then the same in memory. Three passes:

    first    nothing is known yet: every event was lost
    steady   everything is known: what the timer pays every few minutes
    healing  one file in a hundred was never told of, one in a hundred is gone

The raw limit is to list the folder and read the ledger's rows, and compare nothing. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from dropforge.adapters.local.drops import LocalDrops
from dropforge.adapters.local.ledger import SqliteLedger
from dropforge.adapters.memory.drops import MemoryDrops
from dropforge.adapters.memory.ledger import MemoryLedger
from dropforge.ports import Drops, Insert, Json, Ledger, Ports
from dropforge.steps import arrivals, books, reconcile

NOW = datetime.now(UTC)
FOLDERS = 100
PIPELINE = """
name: many
dataset: {format: csv, label: y}
training: {command: python train.py}
evaluation: {metric: log_loss}
"""


def ports_of(ledger: Ledger, drops: Drops) -> Ports:
    """As much of the world as reconcile uses."""
    value: Json = {
        "name": "many",
        "text": PIPELINE,
        "code": "code/many/0.zip",
        "code_sha256": "0",
        "training_key": "0",
        "revision": 1,
        "applied_at": NOW.isoformat(),
    }
    ledger.commit(books.PIPELINES, [Insert("pipeline/many", value)])
    nothing = cast(Any, None)
    return Ports(
        ledger=ledger,
        drops=drops,
        artifacts=nothing,
        tables=nothing,
        compute=nothing,
        registry=nothing,
        serving=nothing,
        events={},
        replies=nothing,
    )


def name_of(number: int) -> str:
    return f"many/{number % FOLDERS:03}/{number:07}.csv"


def played(
    ports: Ports, count: int, write: Callable[[int], None], remove: Callable[[int], None], label: str
) -> dict[str, float]:
    """The three passes."""
    figures: dict[str, float] = {}

    def timed(what: str, **expected: int) -> None:
        begun = time.perf_counter()
        told = reconcile.reconcile(ports, "many", "drops", NOW)
        figures[f"{label}_{what}_seconds"] = round(time.perf_counter() - begun, 2)
        found = {key: told[key] for key in expected}
        assert found == expected, f"{what}: wanted {expected}, found {found}"

    for number in range(count):
        write(number)
    timed("first", listed=count, found=count, gone=0)
    timed("steady", listed=count, found=0, gone=0)
    for number in range(0, count, 100):
        remove(number)
        write(count + number)
    part = len(range(0, count, 100))
    timed("healing", listed=count, found=part, gone=part)
    begun = time.perf_counter()
    listed = sum(1 for _ in ports.drops.list("drops", "many/"))
    rows = sum(1 for _ in books.every(ports.ledger, "p.many", arrivals.SEEN))
    figures[f"{label}_raw_seconds"] = round(time.perf_counter() - begun, 2)
    assert listed == count and rows == count + part
    figures[f"{label}_steady_of_raw"] = round(figures[f"{label}_steady_seconds"] / figures[f"{label}_raw_seconds"], 2)
    return figures


def on_disk(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="dropforge-bench-") as text:
        root = Path(text) / "drops"
        for number in range(FOLDERS):
            (root / "many" / f"{number:03}").mkdir(parents=True)
        ledger = SqliteLedger(Path(text) / "ledger.db")
        try:
            ports = ports_of(ledger, LocalDrops(root, settle_seconds=0))
            before = peak_mib()
            found = played(
                ports,
                count,
                lambda number: _void((root / name_of(number)).write_bytes(b"x")),
                lambda number: (root / name_of(number)).unlink(),
                "disk",
            )
            return found | {"disk_memory_mib": round(peak_mib() - before, 1)}
        finally:
            ledger.close()


def in_memory(count: int) -> dict[str, float]:
    drops = MemoryDrops()
    ports = ports_of(MemoryLedger(), drops)
    return played(
        ports,
        count,
        lambda number: _void(drops.write(name_of(number), b"x")),
        lambda number: drops.remove(name_of(number)),
        "memory",
    )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _void(_: object) -> None:
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    count = parser.parse_args().files
    # On disk first: what the process grew to before cannot be told from what this takes.
    figures = on_disk(count)
    print(json.dumps(figures), flush=True)
    print(json.dumps({"files": count, **figures, **in_memory(count)}))


if __name__ == "__main__":
    main()
