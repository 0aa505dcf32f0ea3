"""Starting a flow that may have been started before: "already there" is success."""

from __future__ import annotations

import time
from collections.abc import Callable
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


class Starter:
    """`start`, spared where this process has made it moments ago: what brings work by the hundred a second.

    Sparing it loses no wake-up. Who brings work reads the flow's lane after he has written the work down; as long as the
    lane names the flow that was started, that flow looks at the work once more before it ends (see `steps.lanes`). A flow
    that ended in any other way than by itself is started anew by the sweep. A signal is always passed on.
    """

    def __init__(self, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._started: dict[str, float] = {}

    async def start(self, client: df.DurableOrchestrationClient, wanted: dict[str, Any]) -> None:
        """Start the flow, unless that has been done within the last seconds and there is no signal to pass on."""
        now = self._clock()
        if (
            not wanted.get("signal")
            and wanted["id"] in self._started
            and now - self._started[wanted["id"]] < self._seconds
        ):
            return
        await start(client, wanted)
        self._started = {id_: when for id_, when in self._started.items() if now - when < self._seconds}
        self._started[wanted["id"]] = now
