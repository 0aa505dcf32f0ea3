"""Trace and span ids that follow from what is known, so that no context has to travel with events, flows and jobs.

Whatever was set going by one cause is one trace: its id is the correlation id when that is a W3C trace id already, and
else a hash of it. A step that runs twice tells the same span twice, under the same id.
https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from dropforge.domain.causes import Cause

_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
# The span that everything else of its trace lies under: what came in through the door.
ROOT = "door"


@dataclass(frozen=True)
class Trace:
    """One trace, by its id (32 hex digits)."""

    id: str

    def span(self, name: str, key: str = "") -> str:
        """The id (16 hex digits) of the span of that name; `key` tells several of one name apart."""
        return _hex("span", self.id, name, key)[:16]

    def parent(self, name: str, key: str = "") -> str:
        """The `traceparent` of that span, for whoever goes on under it."""
        return f"00-{self.id}-{self.span(name, key)}-01"


def trace_of(cause: Cause | None, dataset: str, version: int) -> Trace:
    """The trace of what a cause set going; of what nothing known set going (a file that no event told of), that of the
    dataset version that it became."""
    told = (cause.correlation or cause.id) if cause is not None else ""
    if _TRACE_ID.fullmatch(told):
        return Trace(told)
    return Trace(_hex("trace", told) if told else _hex("trace", dataset, str(version)))


def trace_told(traceparent: object) -> str | None:
    """The trace id that a caller's `traceparent` (or Azure's `Diagnostic-Id`) names; None for anything else."""
    told = span_told(traceparent)
    return told[0].id if told is not None else None


def span_told(traceparent: object) -> tuple[Trace, str] | None:
    """The trace and the span id that a `traceparent` names; None for anything else."""
    found = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    return (Trace(found[1]), found[2]) if found else None


def _hex(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
