"""`Compute` as jobs of an Azure ML workspace. Nothing is kept here: every state is read from the jobs and from what lies
in `runs/<run>/`, so whichever host asks, today's or one started after a crash, sees the same.

A run is the job of its name. When that fails for want of its node, or is forgotten with nothing left, the run goes on as
`<run>_2` and then `<run>_3`, which find the checkpoints of those before in the same output folder. What ends a run from
our side is written down first (`stop.json`), so that no host starts a job for it later.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import Any

from azure.core.exceptions import AzureError

from dropforge.adapters.azure import aml_jobs
from dropforge.adapters.azure.aml_client import QuotaExceeded, asking, message_of, ml_client
from dropforge.adapters.azure.aml_endings import Ending, ending
from dropforge.adapters.azure.run_files import LOG, OUTPUT, RunFiles, table_path
from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused, RunFailed, Unavailable
from dropforge.domain.runs import ENDED, RunResult, RunSpec, RunState, RunStatus
from dropforge.settings import AzureML
from dropforge.training.contract import NodeResult

log = logging.getLogger(__name__)

ATTEMPTS = 3
STOP = "stop.json"
# A job that was just made may not be found at once.
SETTLE = timedelta(seconds=60)
_WAITING = frozenset({"NotStarted", "Starting", "Provisioning", "Preparing", "Queued", "Unapproved", "Scheduled"})
_GOING_DOWN = "CancelRequested"
# Paused and Unknown: only a look at the studio helps, and the run's own time limit ends it.
_OVER = frozenset({"Completed", "Failed", "Canceled"})
_LOGS = ("user_logs/std_log.txt", "user_logs/std_log_process_0.txt", "user_logs/std_log_process_00.txt")


@dataclass(frozen=True)
class _Job:
    """What Azure ML says of a job."""

    name: str
    status: str
    created_at: datetime | None
    url: str | None
    best_trial: str | None


@dataclass(frozen=True)
class _Told:
    """What run history says of it besides."""

    started_at: datetime | None = None
    ended_at: datetime | None = None
    code: str = ""
    message: str = ""
    # Addresses that let whoever has them read: never logged.
    logs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Stop:
    """What ended the run from our side."""

    state: RunState
    reason: str
    at: datetime


class AzureMLCompute:
    """See the top of the file. Any number of threads and hosts may use it."""

    def __init__(
        self,
        settings: AzureML,
        files: RunFiles,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        settle: timedelta = SETTLE,
    ) -> None:
        self._settings = settings
        self._files = files
        self._clock = clock
        self._settle = settle

    # -------------------------------------------------------------------------------------------- the port
    def submit(self, spec: RunSpec) -> None:
        """As the port says. Raises `BadInput` also for what Azure ML refuses for good, such as quota that is used up."""
        aml_jobs.wanted(spec, self._settings)
        table_path(spec, "Azure ML")
        self._files.put_spec(spec)
        stop = self._stopped(spec.run)
        if stop is not None and stop.state is RunState.FAILED:
            raise BadInput(stop.reason, run=spec.run)
        if stop is None and self._files.read(spec.run, _mark(spec, 1)) is None:
            self._start(spec, 1)

    def status(self, run: str) -> RunStatus:
        """As the port says; the same look starts the next attempt of a run that lost its node."""
        return self._look(self._files.spec(run), go_on=True)

    def result(self, run: str) -> RunResult:
        """As the port says; the log becomes an artifact too, however the run ended. `Refused` while it runs."""
        spec = self._files.spec(run)
        status = self._look(spec, go_on=False)
        if status.state not in ENDED:
            raise Refused(f"run {run} is {status.state.value}; ask for its result once it has ended", run=run)
        folder = self._folder(spec)
        self._files.keep_log(run, folder)
        if status.state is not RunState.SUCCEEDED:
            raise RunFailed(status.reason or f"run {run} {status.state.value}", run=run)
        return self._files.collect(run, folder)

    def cancel(self, run: str) -> None:
        """As the port says; returns at once, and Azure ML ends the job. A run whose job is still to be made never starts."""
        spec = self._files.spec(run)
        if self._look(spec, go_on=False).state in ENDED:
            return
        self._stop(spec, RunState.CANCELLED, "cancelled")
        self._cancel_jobs(spec)

    def logs(self, run: str, tail_bytes: int = 65536) -> str:
        """As the port says: of the newest attempt, as it is printed; once it has ended, as it was left."""
        spec = self._files.spec(run)
        if tail_bytes <= 0:
            return ""
        job = self._newest(spec)
        if job is None or job.status in _OVER:
            kept = self._files.tail(run, f"{self._folder(spec)}/{LOG}", tail_bytes)
            if kept is not None or job is None:
                return kept or ""
        # A sweep prints nothing of its own.
        trials = [] if spec.sweep is None else [job.best_trial] if job.best_trial else self._trials(job.name)
        addresses = dict(self._told(trials[-1] if trials else job.name).logs)
        address = next((addresses[name] for name in _LOGS if name in addresses), None)
        return _read_tail(address, tail_bytes) if address is not None else ""

    # -------------------------------------------------------------------------------------------- looking
    def _look(self, spec: RunSpec, *, go_on: bool) -> RunStatus:
        """How the run stands. `go_on`: start what is to be started and end what is to be ended."""
        stop = self._stopped(spec.run)
        lost: Ending | None = None
        for attempt in range(1, ATTEMPTS + 1):
            job = self._job(_name(spec, attempt))
            if job is None:
                mark = self._files.read(spec.run, _mark(spec, attempt))
                if mark is None:
                    return self._not_started(spec, attempt, stop, lost, go_on=go_on)
                if (left := self._left(spec)) is not None:
                    return left
                if self._clock() - datetime.fromisoformat(mark.decode()) < self._settle:
                    return RunStatus(spec.run, RunState.SUBMITTED)
                lost = Ending(
                    f"job {_name(spec, attempt)} is not known to Azure ML any more, and it left no result; somebody deleted "
                    f"it, or the workspace was made anew",
                    again=True,
                )
                continue
            if job.status not in _OVER:
                return self._going(spec, job, stop, go_on=go_on)
            ended = self._ended(spec, job, stop)
            if isinstance(ended, RunStatus):
                return ended
            lost = ended
        assert lost is not None
        reason = f"{lost.reason}; given up after {ATTEMPTS} attempts"
        return RunStatus(spec.run, RunState.FAILED, reason, ended_at=self._clock())

    def _not_started(
        self, spec: RunSpec, attempt: int, stop: _Stop | None, lost: Ending | None, *, go_on: bool
    ) -> RunStatus:
        """There is no job, and none has been made."""
        if stop is not None:
            before = "" if attempt > 1 or stop.state is RunState.FAILED else " before it started"
            return RunStatus(spec.run, stop.state, stop.reason + before, ended_at=stop.at)
        if go_on:
            if lost is not None:
                log.warning("run %s goes on as %s: %s", spec.run, _name(spec, attempt), lost.reason)
            try:
                self._start(spec, attempt)
            except BadInput as error:
                return RunStatus(spec.run, RunState.FAILED, error.message, ended_at=self._clock())
        return RunStatus(spec.run, RunState.SUBMITTED)

    def _left(self, spec: RunSpec) -> RunStatus | None:
        """How a run ended that has no job any more, by what its node left."""
        node = self._node(spec)
        # One that was told to end would have gone on elsewhere.
        if node is None or node.state is RunState.CANCELLED:
            return None
        return RunStatus(spec.run, node.state, node.reason, None, self._clock(), node.exit_code)

    def _going(self, spec: RunSpec, job: _Job, stop: _Stop | None, *, go_on: bool) -> RunStatus:
        if job.status in _WAITING:
            if go_on and stop is None:
                stop = self._overdue(spec, job)
            status = RunStatus(spec.run, RunState.SUBMITTED, url=job.url)
        else:
            status = RunStatus(spec.run, RunState.RUNNING, started_at=self._told(job.name).started_at, url=job.url)
        # Also when whoever wrote that down did not live to do it.
        if go_on and stop is not None and job.status != _GOING_DOWN:
            self._cancel(job.name)
        return status

    def _overdue(self, spec: RunSpec, job: _Job) -> _Stop | None:
        """The end of a run that has waited for a node for too long."""
        asked = aml_jobs.wanted(spec, self._settings)
        waited = self._clock() - job.created_at if job.created_at is not None else timedelta()
        if asked.queue_timeout is None or waited <= asked.queue_timeout:
            return None
        reason = (
            f"cancelled: it waited {_minutes(waited)} for {asked} ({job.status}), longer than "
            "training.compute.queue_timeout; raise that, or use a cluster with free nodes"
        )
        return self._stop(spec, RunState.CANCELLED, reason)

    def _ended(self, spec: RunSpec, job: _Job, stop: _Stop | None) -> RunStatus | Ending:
        """How the run ended with that job, or why it may go on with another."""
        told = self._told(job.name)
        ended_at = told.ended_at or self._clock()
        status = RunStatus(spec.run, RunState.SUCCEEDED, None, told.started_at, ended_at, 0, url=job.url)
        if job.status == "Completed":
            return status
        node = self._node(spec, job)
        # The last thing it does. A job may fail after that, with all there that it had to leave.
        if node is not None and node.state is RunState.SUCCEEDED:
            return status
        if node is not None and node.state is RunState.FAILED:
            return replace(status, state=RunState.FAILED, reason=_with(node.reason, job), exit_code=node.exit_code)
        found = ending(job.name, told.code, told.message)
        if stop is not None:
            return replace(status, state=stop.state, reason=_with(stop.reason, job), exit_code=None)
        if job.status == "Canceled" and not (told.code or told.message):
            return replace(status, **self._cancelled(spec, job, told), exit_code=None)
        if found.again:
            return Ending(_with(found.reason, job), again=True)
        return replace(status, state=RunState.FAILED, reason=_with(found.reason, job), exit_code=None)

    def _cancelled(self, spec: RunSpec, job: _Job, told: _Told) -> dict[str, Any]:
        """Azure ML cancels what runs too long, and may not say so."""
        limit = timedelta(seconds=spec.timeout_seconds)
        if told.started_at is not None and told.ended_at is not None and told.ended_at - told.started_at >= limit:
            found = ending(
                job.name, "", f"it ran for {_minutes(told.ended_at - told.started_at)}, longer than its limit"
            )
            return {"state": RunState.FAILED, "reason": _with(found.reason, job)}
        return {"state": RunState.CANCELLED, "reason": _with(f"job {job.name} was cancelled in Azure ML", job)}

    def _node(self, spec: RunSpec, job: _Job | None = None) -> NodeResult | None:
        """The node's own last word: of a sweep that failed, that of the first trial that has one."""
        if spec.sweep is None:
            return self._files.node_result(spec.run, OUTPUT)
        for trial in self._trials(job.name) if job is not None else []:
            node = self._files.node_result(spec.run, aml_jobs.trial_folder(trial))
            if node is not None and node.state is RunState.FAILED:
                return replace(node, reason=f"no trial succeeded; trial {trial}: {node.reason}")
        return None

    def _folder(self, spec: RunSpec) -> str:
        """Where the run's output lies. Raises `RunFailed` when a sweep that ended names no best trial."""
        if spec.sweep is None:
            return OUTPUT
        job = self._newest(spec)
        if job is not None and job.best_trial is not None:
            return aml_jobs.trial_folder(job.best_trial)
        if job is not None and job.status == "Completed":
            raise RunFailed(
                f"the sweep of run {spec.run} ended, but Azure ML names no best trial: did the trials log "
                f"{aml_jobs.OBJECTIVE}?",
                run=spec.run,
            )
        return OUTPUT

    # -------------------------------------------------------------------------------------------- starting and ending
    def _start(self, spec: RunSpec, attempt: int) -> None:
        """Make the job of that attempt, unless it is there. Raises `BadInput` for what Azure ML refuses for good."""
        name = _name(spec, attempt)
        if self._job(name) is None:
            try:
                self._put(spec, name)
            except (BadInput, QuotaExceeded) as error:
                self._stop(spec, RunState.FAILED, error.message)
                raise BadInput(error.message, run=spec.run) from error
        self._files.put_mark(spec.run, _mark(spec, attempt), self._clock().isoformat().encode())
        # Whoever cancels writes that down before he looks for jobs: one of the two finds the other.
        if self._stopped(spec.run) is not None:
            self._cancel(name)

    def _put(self, spec: RunSpec, name: str) -> None:
        asked = aml_jobs.wanted(spec, self._settings)
        what = f"job {name!r} on {asked}"
        client = self._client()
        try:
            with asking(self._settings.workspace, what, run=spec.run):
                client.jobs.create_or_update(aml_jobs.job_of(spec, self._settings, asked, name))
        except Conflict:
            # Another host was faster, or our own first try got through.
            if self._job(name) is None:
                raise
        except NotFound as error:
            said = message_of(error.__cause__) if isinstance(error.__cause__, AzureError) else error.message
            raise BadInput(f"{what} names what Azure ML does not know: {said}", run=spec.run) from error

    def _stop(self, spec: RunSpec, state: RunState, reason: str) -> _Stop:
        """Write down that the run ends; who came first stands."""
        content = {"state": state.value, "reason": reason, "at": self._clock().isoformat()}
        self._files.put_mark(spec.run, STOP, json.dumps(content).encode())
        found = self._stopped(spec.run)
        assert found is not None
        return found

    def _stopped(self, run: str) -> _Stop | None:
        found = self._files.read(run, STOP)
        if found is None:
            return None
        value = json.loads(found)
        return _Stop(RunState(value["state"]), value["reason"], datetime.fromisoformat(value["at"]))

    def _cancel_jobs(self, spec: RunSpec) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            job = self._job(_name(spec, attempt))
            if job is not None and job.status not in _OVER:
                self._cancel(job.name)

    # -------------------------------------------------------------------------------------------- Azure ML
    def _client(self) -> Any:
        with asking(self._settings.workspace, "the workspace"):
            return ml_client(self._settings.workspace)

    def _job(self, name: str) -> _Job | None:
        client = self._client()
        try:
            with asking(self._settings.workspace, f"job {name!r}"):
                found = client.jobs.get(name)
        except NotFound:
            return None
        studio = (found.services or {}).get("Studio")
        properties = found.properties or {}
        created_at = found.creation_context.created_at if found.creation_context else None
        return _Job(
            name,
            found.status,
            _aware(created_at),
            getattr(studio, "endpoint", None),
            properties.get("best_child_run_id"),
        )

    def _newest(self, spec: RunSpec) -> _Job | None:
        """The job that was made last. Azure ML is asked as far as there may be one: whoever made it may have died before it
        wrote that down."""
        newest: _Job | None = None
        for attempt in range(1, ATTEMPTS + 1):
            job = self._job(_name(spec, attempt))
            if job is None and self._files.read(spec.run, _mark(spec, attempt)) is None:
                break
            newest = job or newest
            if job is not None and (job.status not in _OVER or job.status == "Completed"):
                break
        return newest

    def _told(self, name: str) -> _Told:
        """Times, error and logs of a job; nothing of one that has no history yet."""
        client = self._client()
        try:
            with asking(self._settings.workspace, f"job {name!r}"):
                # What `jobs.stream` and `jobs.download` read; the SDK has no other door to it.
                found = client.jobs._runs_operations.get_run_details(name)
        except NotFound:
            return _Told()
        error = getattr(found.error, "error", None)
        warnings = [str(each.message) for each in found.warnings or [] if each.message]
        return _Told(
            _aware(found.start_time_utc),
            _aware(found.end_time_utc),
            _code(error),
            str(getattr(error, "message", None) or "\n".join(warnings)),
            tuple((found.log_files or {}).items()),
        )

    def _trials(self, name: str) -> list[str]:
        client = self._client()
        with asking(self._settings.workspace, f"trials of job {name!r}"):
            return [each.name for each in client.jobs.list(parent_job_name=name) if each is not None]

    def _cancel(self, name: str) -> None:
        """Ask for the end of a job; no effect on one that has ended or is gone."""
        client = self._client()
        with suppress(NotFound, Conflict, BadInput), asking(self._settings.workspace, f"the end of job {name!r}"):
            # Without a thread that waits for it: the next look sees.
            client.jobs.begin_cancel(name, polling=False)


def _name(spec: RunSpec, attempt: int) -> str:
    """A sweep's trials are called `<run>_0`, `<run>_1` and so on, so its attempts are not."""
    mark = "a" if spec.sweep is not None else ""
    return spec.run if attempt == 1 else f"{spec.run}_{mark}{attempt}"


def _mark(spec: RunSpec, attempt: int) -> str:
    return f"jobs/{_name(spec, attempt)}"


def _with(reason: str | None, job: _Job) -> str:
    return f"{reason or 'it gave no reason'}; see {job.url}" if job.url else reason or "it gave no reason"


def _code(error: Any) -> str:
    """The innermost word for what went wrong: the outermost only says whose fault it is."""
    code, inner = str(getattr(error, "code", None) or ""), getattr(error, "inner_error", None)
    while inner is not None:
        code, inner = str(getattr(inner, "code", None) or code), getattr(inner, "inner_error", None)
    return code


def _aware(at: datetime | None) -> datetime | None:
    return None if at is None else at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _minutes(time: timedelta) -> str:
    seconds = int(time.total_seconds())
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


def _read_tail(address: str, size_bytes: int) -> str:
    # The standard library's client: others log the address, which is a key to what it names.
    context = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE") or None)
    try:
        look = urllib.request.Request(address, method="HEAD")  # noqa: S310  Azure ML's own address
        with urllib.request.urlopen(look, timeout=10, context=context) as head:  # noqa: S310
            start = max(0, int(head.headers.get("Content-Length") or 0) - size_bytes)
        ask = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310
        with urllib.request.urlopen(ask, timeout=30, context=context) as answer:  # noqa: S310
            content: bytes = answer.read()
    except urllib.error.HTTPError as error:
        if error.code in (404, 416):
            return ""
        raise Unavailable(f"the log in Azure ML cannot be read: {error.code} {error.reason}; try again") from None
    except (OSError, HTTPException) as error:
        raise Unavailable(f"the log in Azure ML cannot be read: {type(error).__name__}; try again") from None
    # Whoever ignores the range sends all of it; and the first character may be cut in two.
    return content[-size_bytes:].decode(errors="ignore" if start else "replace")
