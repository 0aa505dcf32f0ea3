"""How flows call activities and wait: the words every flow is written in.

Only what both durable SDKs (1.x and 2.x) offer is used. Two habits of the 1.x SDK shape this file: an external event
that came once satisfies every later wait of its name in the same execution, so a flow waits for a name at most once and
then continues as new; and a timer left running keeps a finished flow alive, so the loser of a race is cancelled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from datetime import datetime
from typing import Any, TypeAlias

import azure.durable_functions as df

Flow: TypeAlias = Generator[Any, Any, Any]

# Steps are safe to run twice. What fails five times in a row fails the flow; the sweep starts it again.
RETRY = df.RetryOptions(first_retry_interval_in_milliseconds=1_000, max_number_of_attempts=5)


def do(context: df.DurableOrchestrationContext, activity: str, **value: Any) -> Any:
    """The task of running an activity on a small JSON value."""
    return context.call_activity_with_retry(activity, RETRY, value)


def wait(context: df.DurableOrchestrationContext, until: datetime, event: str | None = None) -> Flow:
    """Wait until a time, or until the event comes; returns whether the event did."""
    timer = context.create_timer(until)
    if event is None:
        yield timer
        return False
    signal = context.wait_for_external_event(event)
    winner = yield context.task_any([timer, signal])
    if winner is timer:
        return False
    timer.cancel()
    return True


def guarded(flow: Callable[[df.DurableOrchestrationContext], Flow]) -> Callable[[df.DurableOrchestrationContext], Flow]:
    """The flow, but what fails it is written where `dropforge status` shows it, before it fails."""

    @functools.wraps(flow)
    def watched(context: df.DurableOrchestrationContext) -> Flow:
        try:
            result = yield from flow(context)
        except Exception as error:
            yield do(
                context, "note_trouble", pipeline=context.get_input()["pipeline"], message=f"{flow.__name__}: {error}"
            )
            raise
        return result

    return watched
