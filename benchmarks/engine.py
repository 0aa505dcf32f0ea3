"""How fast the durable engine is, and whether it stays so as its store fills. Run: `python -m benchmarks.engine`.

Small orchestrations of three activities, through the real SDK, every step committed with `synchronous = FULL`.
The last line is one JSON object:

    orchestrations_per_second   while the store fills from 1,000 to 20,000, everything included
    slowdown_1k_to_20k          cost of one with 20,000 instances in the store / cost with 1,000, measured in turns
    raw_limit_per_second        the same episodes through the bare SDK handle, plus the bare SQLite writes, no engine
    of_raw_limit                speed with 20,000 in the store / raw limit, measured in turns
"""

import argparse
import asyncio
import contextlib
import json
import logging
import sqlite3
import statistics
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import azure.durable_functions as df
from azure.functions import meta

from dropforge.host.durable.engine import DurableEngine

BLOCK = 250
SMALL = 1_000
AT_ONCE = 100

app = df.DFApp()


@app.activity_trigger(input_name="n")
def step(n: int) -> int:
    return n + 1


@app.orchestration_trigger(context_name="context")
def three_steps(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
    n = 0
    for _ in range(3):
        n = yield context.call_activity("step", n)
    return n


class Functions:
    """The bare minimum between engine and SDK: the converters and handles that any host calls."""

    def __init__(self) -> None:
        found = {function.get_function_name(): function.get_user_function() for function in app.get_functions()}
        self._step, self._flow = found["step"], found["three_steps"]
        self.orchestrators = frozenset({"three_steps"})
        self.activities = frozenset({"step"})
        self.entities = frozenset[str]()
        self.contexts: list[str] = []
        self._converter = meta.get_binding_registry().get("activityTrigger")

    def orchestrate(self, name: str, context_json: str) -> str:
        if len(self.contexts) < 4:
            self.contexts.append(context_json)
        return str(self._flow(context_json))

    def operate(self, name: str, context_json: str) -> str:
        raise NotImplementedError("this app has no entities")

    async def act(self, name: str, input_json: str | None, *, instance_id: str, task_id: int) -> str | None:
        return self.act_now(input_json)

    def act_now(self, input_json: str | None) -> str:
        value = self._converter.decode(meta.Datum(input_json, "json"), trigger_metadata=None)
        return str(self._converter.encode(self._step(n=value), expected_type=None).value)


async def _one(engine: DurableEngine, gate: asyncio.Semaphore) -> None:
    async with gate:
        status = await engine.wait(await engine.start_new("three_steps"))
        if status is None or status.output != "3":
            raise AssertionError(f"wrong result: {status}")


async def _block(engine: DurableEngine) -> float:
    """Seconds for one block."""
    gate = asyncio.Semaphore(AT_ONCE)
    started = time.perf_counter()
    await asyncio.gather(*(_one(engine, gate) for _ in range(BLOCK)))
    return time.perf_counter() - started


@contextlib.asynccontextmanager
async def _engine(folder: Path, name: str, functions: Functions) -> AsyncIterator[DurableEngine]:
    engine = DurableEngine(folder / name, functions, log=logging.getLogger("benchmark"))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def measure(folder: Path, functions: Functions, instances: int, rounds: int) -> dict[str, float]:
    """Fills one store, then takes turns between it, a small one and no engine: a busy machine disturbs all alike."""
    async with _engine(folder, "small.db", functions) as small, _engine(folder, "full.db", functions) as full:
        filling = []
        for number in range(instances // BLOCK):
            filling.append(await _block(full))
            if number % max(instances // BLOCK // 10, 1) == 0:
                print(f"{number * BLOCK:>7} in the store: {BLOCK / filling[-1]:7.1f} orchestrations/s", flush=True)
        for _ in range(SMALL // BLOCK):
            await _block(small)
        turns = [(await _block(small), await _block(full), raw_limit(folder, functions)) for _ in range(rounds)]
    rate = BLOCK / statistics.median(filling[SMALL // BLOCK :] or filling)
    bytes_each = (folder / "full.db").stat().st_size / (instances + rounds * BLOCK)
    print(f"database: {bytes_each:,.0f} bytes per finished orchestration")
    return {
        "orchestrations_per_second": round(rate, 1),
        "slowdown_1k_to_20k": round(statistics.median(b / a for a, b, _ in turns), 3),
        "raw_limit_per_second": round(statistics.median(raw for _, _, raw in turns), 1),
        "of_raw_limit": round(statistics.median(BLOCK / b / raw for _, b, raw in turns), 3),
        "instances": instances,
    }


def raw_limit(folder: Path, functions: Functions, rounds: int = 250) -> float:
    """Orchestrations per second without an engine: the SDK's part, and SQLite's for the same rows, one by one."""
    started = time.perf_counter()
    for _ in range(rounds):
        for context in functions.contexts:
            functions.orchestrate("three_steps", context)
        for n in range(3):
            functions.act_now(str(n))
    sdk = time.perf_counter() - started
    database = sqlite3.connect(folder / "raw.db", isolation_level=None)
    database.execute("DROP TABLE IF EXISTS rows")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, text TEXT)")
    started = time.perf_counter()
    # What one orchestration writes: an instance, four episodes, three activities; twenty episodes share a commit.
    for _ in range(rounds * 4 // 20):
        database.execute("BEGIN IMMEDIATE")
        for _ in range(40):
            database.execute("INSERT INTO rows (text) VALUES (?)", ("x" * 500,))
        database.execute("COMMIT")
    rows = time.perf_counter() - started
    database.close()
    return rounds / (sdk + rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--instances", type=int, default=20_000, help="how full the full store is")
    parser.add_argument("--rounds", type=int, default=15, help="turns between small store, full store and no engine")
    wanted = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), Functions(), wanted.instances, wanted.rounds))))


if __name__ == "__main__":
    main()
