"""Starting a flow that may have been started before: "already there" is success."""

from __future__ import annotations

from typing import Any

import azure.durable_functions as df

# What the Durable extension answers (409, older ones 500) when an instance with that id is alive.
ALIVE = "already exists"


async def start(client: df.DurableOrchestrationClient, wanted: dict[str, Any] | None) -> bool:
    """Start the flow a step asked for (`{"flow", "id", "input", "signal"?}`), and pass its signal on.

    Returns whether there was one to start. A flow of that id that is alive is left alone.
    """
    if wanted is None:
        return False
    try:
        await client.start_new(wanted["flow"], wanted["id"], wanted["input"])
    except Exception as error:
        if ALIVE not in str(error):
            raise
        if wanted.get("signal"):
            await client.raise_event(wanted["id"], wanted["signal"], True)
    return True
