"""How much the ledger on Table storage costs over the bare SDK. Run: `python -m benchmarks.azure_storage`.

Azurite, one process, one thread; each pair is measured in turns, so that both see the same machine. The bare calls write and
read an entity with the same text. The last line is one JSON object: rates a second, and the ledger's share of the SDK's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from itertools import count

from azure.data.tables import TableServiceClient

from dropforge.adapters.azure.ledger import TableLedger
from dropforge.ports import Insert
from tests.azurite import installed, running

TEXT = json.dumps(
    {"url": "https://account.blob.core.windows.net/drops/flights/day.csv", "state": "arrived", "n": [1] * 80}
)


def measured(one: Callable[[int], object], other: Callable[[int], object], times: int, rounds: int) -> dict[str, float]:
    """Calls a second of both, and the median over the rounds of the second's rate as a share of the first's."""
    numbers = count()
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, found in zip((one, other), rates, strict=True):
            started = time.perf_counter()
            for _ in range(times):
                call(next(numbers))
            found.append(times / (time.perf_counter() - started))
    shares = [ours / bare for bare, ours in zip(*rates, strict=True)]
    return {
        "sdk_per_second": round(statistics.median(rates[0]), 1),
        "ledger_per_second": round(statistics.median(rates[1]), 1),
        "share": round(statistics.median(shares), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    value = json.loads(TEXT)
    with running(installed()) as azurite:
        service = TableServiceClient.from_connection_string(azurite.connection_string)
        with service, closing(TableLedger(azurite.connection_string, "ours")) as ledger:
            table = service.create_table("bare")
            ledger.commit("p", [Insert("first", {})])

            def entity(key: str) -> dict[str, str]:
                return {"PartitionKey": "p", "RowKey": key, "value": TEXT}

            def pick(size: int) -> dict[str, float]:
                return measured(
                    lambda n: table.submit_transaction([("create", entity(f"{size}-{n}-{k}")) for k in range(size)]),
                    lambda n: ledger.commit("p", [Insert(f"{size}-{n}-{k}", value) for k in range(size)]),
                    chosen.times // size or 1,
                    chosen.rounds,
                )

            found = {
                "commit_1": measured(
                    lambda n: table.create_entity(entity(f"one-{n}")),
                    lambda n: ledger.commit("p", [Insert(f"one-{n}", value)]),
                    chosen.times,
                    chosen.rounds,
                ),
                "commit_1_transaction": pick(1),
                "commit_10": pick(10),
                "commit_100": pick(100),
            }
            table.upsert_entity(entity("read"))
            ledger.commit("p", [Insert("read", value)])
            found["get"] = measured(
                lambda _: table.get_entity("p", "read"),
                lambda _: ledger.get("p", "read"),
                chosen.times,
                chosen.rounds,
            )
    for name, rates in found.items():
        print(f"{name:22} {rates['sdk_per_second']:8} {rates['ledger_per_second']:8} {rates['share']:6}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
