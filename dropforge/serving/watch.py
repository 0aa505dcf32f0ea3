"""What looks on while requests are answered, where it is asked for: the log of requests and answers, and traces.

A server that is asked for neither has no `Watch`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from dropforge import telemetry
from dropforge.domain.errors import BadInput, DropforgeError
from dropforge.domain.traces import span_told
from dropforge.serving.batching import Answer, Job
from dropforge.serving.callers import Caller, plain
from dropforge.serving.protocol import Ask
from dropforge.serving.traffic import Turns

if TYPE_CHECKING:
    from dropforge.serving.request_log import RequestLog


@dataclass(slots=True)
class Seen:
    """What is remembered of a request that is looked at. `request_id` is told to the caller."""

    request_id: str | None
    began_ns: int
    # Under which span of the caller's this one lies; empty: a trace of its own. None: no span.
    parent: str | None


class Watch:
    """On the event loop only."""

    def __init__(self, request_log: RequestLog | None, traces: Sampler | None) -> None:
        self.request_log = request_log
        self._traces = traces
        self._prefix = os.urandom(6).hex()
        self._numbers = count(1)

    def close(self) -> None:
        """Write what is to be written still, for a while."""
        if self.request_log is not None:
            self.request_log.close()

    def begin(self, caller: Caller, ask: Ask) -> Seen | None:
        """A request was read. None when nothing is to be remembered of it."""
        parent = self._traces.parent(caller.traceparent) if self._traces is not None else None
        if self.request_log is None:
            return None if parent is None else Seen(caller.request_id, time.time_ns(), parent)
        request_id = caller.request_id or plain(ask.id) or f"{self._prefix}-{next(self._numbers):x}"
        return Seen(request_id, time.time_ns(), parent)

    def end(self, endpoint: str, job: Job, answer: Answer, seen: Seen, seconds: float) -> None:
        """It was answered, or was not."""
        if self.request_log is not None and seen.request_id is not None:
            self.request_log.take(endpoint, job, answer, seen.request_id, seen.began_ns, seconds)
        if seen.parent is not None:
            deployment = job.model.deployment
            telemetry.served(
                f"infer {endpoint}",
                seen.parent or None,
                seen.began_ns,
                error=f"{type(answer).__name__}: {answer.message}" if isinstance(answer, DropforgeError) else None,
                endpoint=endpoint,
                model=deployment.model,
                version=deployment.version,
                dataset_version=deployment.dataset_version,
                rows=job.ask.rows,
                request_id=seen.request_id or job.ask.id,
            )


class Sampler:
    """Which requests have a span: those whose caller has one that is recorded, and a share of those without."""

    def __init__(self, share: float) -> None:
        self._turns = Turns(share) if share > 0 else None

    def parent(self, traceparent: str | None) -> str | None:
        """The caller's span, empty for a trace that begins here, None for no span."""
        if traceparent is not None and span_told(traceparent) is not None:
            return traceparent if int(traceparent[53:55], 16) & 1 else None
        return "" if self._turns is not None and self._turns.mine() else None


def sampler(environment: Mapping[str, str]) -> Sampler | None:
    """As OpenTelemetry's own variables say: `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`; None where there is no
    place to send to. Without them only the callers' spans are followed. Raises `BadInput`."""
    if not telemetry.configured(environment):
        return None
    kind = environment.get("OTEL_TRACES_SAMPLER", "").removeprefix("parentbased_")
    if kind == "traceidratio":
        text = environment.get("OTEL_TRACES_SAMPLER_ARG", "1.0")
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise BadInput(f"OTEL_TRACES_SAMPLER_ARG is {text!r}; it must be a share from 0 to 1")
        return Sampler(share)
    return Sampler(1.0 if kind == "always_on" else 0.0)


def open_watch(
    shares: Mapping[str, float],
    put: Callable[[str, bytes], None],
    replica: str,
    file_seconds: float,
    environment: Mapping[str, str],
) -> Watch | None:
    """What the options and the environment ask for; None when that is nothing. Raises `BadInput`."""
    traces, request_log = sampler(environment), None
    if shares:
        try:
            # Half a second, which a server that logs nothing does without.
            from dropforge.serving.request_log import RequestLog
        except ModuleNotFoundError as error:
            raise BadInput(f"--log-requests writes Parquet: {error}; pip install 'dropforge[request-log]'") from error
        request_log = RequestLog(put, replica, shares, file_seconds=file_seconds)
    return Watch(request_log, traces) if request_log is not None or traces is not None else None
