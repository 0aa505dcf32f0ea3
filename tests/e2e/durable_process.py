"""A process that runs the kitchen sink in a durable engine until its orchestrations are done; made to be killed."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from dropforge.host.durable.engine import DurableEngine
from dropforge.host.durable.errors import InstanceFinished
from tests.conftest import episodes_of
from tests.unit.host.durable_world import client_input, invoker


async def _drive(engine: DurableEngine, number: int) -> str:
    """As a client that retries: start under a fixed id, approve once, wait."""
    instance_id = f"flow-{number}"
    status = await engine.status(instance_id, history=True)
    if status is None:
        await engine.start_new("everything", client_input({"key": f"k{number}"}), instance_id)
    events = (status.history if status else None) or []
    if not any(event["EventType"] == "EventRaised" and event["Name"] == "Approval" for event in events):
        with contextlib.suppress(InstanceFinished):
            await engine.raise_event(instance_id, "Approval", json.dumps(number))
    done = await engine.wait(instance_id)
    assert done is not None
    return f"{done.runtime_status} {done.output}"


async def main(database: Path, count: int) -> None:
    engine = DurableEngine(database, invoker(), record=episodes_of("kitchen_sink"))
    await engine.start()
    print("up", flush=True)
    results = await asyncio.gather(*(_drive(engine, number) for number in range(count)))
    rows, _ = await engine.entities()
    await engine.stop()
    print(json.dumps({"results": results, "entities": {row.entity_id: row.state for row in rows}}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
