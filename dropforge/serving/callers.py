"""What the head of a request tells of who asks, whatever protocol it came in by."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dropforge.serving.traffic import STICKY_HEADERS

REQUEST_ID = "x-request-id"
# What may stand in a header of an answer, and in a log.
_PLAIN = re.compile(r"[!-~]([ -~]{0,198}[!-~])?")


@dataclass(frozen=True, slots=True)
class Caller:
    """`sticky`: equal ones are answered by equal versions. `request_id`: the caller's own name for the request."""

    sticky: str | None = None
    request_id: str | None = None
    traceparent: str | None = None


NOBODY = Caller()


def caller_of(header: Callable[[str], str | None]) -> Caller:
    """`header` finds a header's value by its name in lower case."""
    sticky = next((value for name in STICKY_HEADERS if (value := header(name)) is not None), None)
    request_id, traceparent = header(REQUEST_ID), header("traceparent")
    if sticky is None and request_id is None and traceparent is None:
        return NOBODY
    return Caller(sticky, plain(request_id), traceparent)


def plain(request_id: str | None) -> str | None:
    """The id, if it is printable and short; None for any other."""
    return request_id if request_id is not None and _PLAIN.fullmatch(request_id) else None
