"""Why something was done: carried from what came in, through flows and runs, to what the platform tells others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dropforge.domain.errors import BadInput

MAX_HOPS_GIVEN = 1000
# An event's id as `told_id` makes it.
_TOLD = re.compile(r".+\.([0-9]{1,4})")


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


def told_id(id_: str, hops: int) -> str:
    """The id under which an event is told. It says how many hops what follows from it has behind it, so that whoever
    names the event as his reason, and nothing else, cannot hide a loop; and no table of all events told is kept."""
    return f"{id_}.{hops}"


def hops_of(event_id: object) -> int:
    """The hops that an id made by `told_id` says; 0 for anything else."""
    found = _TOLD.fullmatch(event_id) if isinstance(event_id, str) else None
    return min(int(found[1]), MAX_HOPS_GIVEN) if found else 0


def follow(
    id_: str, door: str, *, correlation: str | None = None, causation: object = None, hops: object = None
) -> Cause:
    """The cause that something is which came through a door: `causation` is the id of the event that its sender acts
    on, `hops` the number that stood beside it (also as text). Raises `BadInput` when that is no number of hops."""
    return Cause(id_, door, correlation, max(hops_given(hops), hops_of(causation)))


def hops_given(value: object) -> int:
    """A number of hops as somebody outside says it; nothing said is 0. Raises `BadInput`."""
    if value is None:
        return 0
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 4 and int(text) <= MAX_HOPS_GIVEN:
        return int(text)
    raise BadInput(f"hops is {value!r}; it must be a whole number from 0 to {MAX_HOPS_GIVEN}")
