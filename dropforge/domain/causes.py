"""Why something was done: carried from what came in, through flows and runs, to what the platform tells others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """What came in through a door and made the platform act.

    `hops` counts how often the platform's own news came back to it: 0 for what somebody outside did on his own account;
    one more than the event's for what was asked because of an event that the platform had told.
    """

    # Id of the event, message, request or alert.
    id: str
    # `storage`, `command`, `http`, `alert` or `timer`.
    door: str
    # What the asker calls his piece of work; kept through everything that follows from it.
    correlation: str | None = None
    hops: int = 0


def furthest(causes: Iterable[Cause | None]) -> Cause | None:
    """Of several causes of one thing, the one with the most hops: a loop must not hide behind a fresh cause."""
    return max((each for each in causes if each is not None), key=lambda each: each.hops, default=None)
