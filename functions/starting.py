"""Starting a flow that may have been started before: "already there" is success."""

from __future__ import annotations

from typing import Any

import azure.durable_functions as df

# The SDK raises a bare Exception that holds the response's text.
# What the Durable extension answers (409, older ones 500) when an instance with that id is alive.
ALIVE = "already exists"
# What the SDK says when an event is raised to an instance that is over (410).
OVER = "completed or failed"


async def start(client: df.DurableOrchestrationClient, wanted: dict[str, Any] | None) -> bool:
    """Start the flow a step asked for (`{"flow", "id", "input", "signal"?}`), and pass its signal on.

    Returns whether there was one to start. A flow of that id that is alive is left alone.
    """
    if wanted is None:
        return False
    while True:
        try:
            await client.start_new(wanted["flow"], wanted["id"], wanted["input"])
        except Exception as error:
            if ALIVE not in str(error):
                raise
            if not wanted.get("signal"):
                return True
            try:
                await client.raise_event(wanted["id"], wanted["signal"], True)
            except Exception as gone:
                if OVER not in str(gone):
                    raise
                continue  # it ended between the two calls, and may not have seen the work: start it again
        return True
