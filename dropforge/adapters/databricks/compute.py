"""`Compute` as one-time runs of a Databricks workspace. Nothing is kept here: every state is read from the workspace and from
what lies in `runs/<run>/`, so whichever host asks, today's or one started after a crash, sees the same.

    databricks/<attempt>.asked   the attempt is about to be submitted
    databricks/<attempt>.json    the number that Databricks gave it
    stop.json                    the run ends from our side; no host starts anything for it any more

Each attempt has an idempotency token made of run and attempt: submitting it again finds the run that is there. So whoever
sees the first mark without the second, after a crash between the two, submits again and knows. A run whose machines are
lost goes on as a second and third attempt, which find the checkpoints of those before.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from dropforge.adapters.azure.run_files import LOG, OUTPUT, RunFiles, table_path
from dropforge.adapters.databricks import task
from dropforge.adapters.databricks.endings import Ending, Stand, ending, stand
from dropforge.adapters.databricks.workspace import asking, line_of, workspace_client
from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused, RunFailed
from dropforge.domain.runs import ENDED, RunResult, RunSpec, RunState, RunStatus
from dropforge.settings import Databricks
from dropforge.training.contract import NodeResult

log = logging.getLogger(__name__)

ATTEMPTS = 3
STOP = "stop.json"
_GET, _OUTPUT = "/api/2.2/jobs/runs/get", "/api/2.2/jobs/runs/get-output"


@dataclass(frozen=True)
class _Run:
    """What Databricks says of a run."""

    number: int
    stand: Stand
    # Of the one task, by which its output is asked for.
    task_number: int | None
    url: str | None
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True)
class _Stop:
    """What ended the run from our side."""

    state: RunState
    reason: str
    at: datetime


class DatabricksCompute:
    """See the top of the file. Any number of threads and hosts may use it."""

    def __init__(
        self, settings: Databricks, files: RunFiles, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._settings = settings
        self._files = files
        self._clock = clock

    # -------------------------------------------------------------------------------------------- the port
    def submit(self, spec: RunSpec) -> None:
        """As the port says. Raises `BadInput` also for what Databricks refuses for good."""
        task.wanted(spec, self._settings)
        table_path(spec, "Databricks")
        self._files.put_spec(spec)
        stop = self._stopped(spec.run)
        if stop is not None and stop.state is RunState.FAILED:
            raise BadInput(stop.reason, run=spec.run)
        if stop is None:
            self._start(spec, 1)

    def status(self, run: str) -> RunStatus:
        """As the port says; the same look starts the next attempt of a run that lost its machines."""
        return self._look(self._files.spec(run), go_on=True)

    def result(self, run: str) -> RunResult:
        """As the port says; the log becomes an artifact too, however the run ended. `Refused` while it runs."""
        status = self._look(self._files.spec(run), go_on=False)
        if status.state not in ENDED:
            raise Refused(f"run {run} is {status.state.value}; ask for its result once it has ended", run=run)
        self._files.keep_log(run)
        if status.state is not RunState.SUCCEEDED:
            raise RunFailed(status.reason or f"run {run} {status.state.value}", run=run)
        return self._files.collect(run)

    def cancel(self, run: str) -> None:
        """As the port says; returns at once, and Databricks ends the run. One that is still to be submitted never starts."""
        spec = self._files.spec(run)
        if self._look(spec, go_on=False).state in ENDED:
            return
        self._stop(spec, RunState.CANCELLED, "cancelled")
        for attempt in range(1, ATTEMPTS + 1):
            number = self._number(spec, attempt)
            if number is not None:
                self._cancel(number)
            elif self._was_asked(spec, attempt):
                # Finds it by its token, and ends it, because the run is stopped.
                self._start(spec, attempt)

    def logs(self, run: str, tail_bytes: int = 65536) -> str:
        """As the port says: as the node leaves it on the volume, every half minute at the latest."""
        spec = self._files.spec(run)
        if tail_bytes <= 0:
            return ""
        kept = self._files.tail(run, f"{OUTPUT}/{LOG}", tail_bytes)
        if kept is not None:
            return kept
        # Packages that cannot be installed, a volume that cannot be written to.
        newest = self._newest(spec)
        told = self._output(newest) if newest is not None else {}
        text = str(told.get("logs") or told.get("error_trace") or "").encode()
        return text[-tail_bytes:].decode(errors="ignore")

    # -------------------------------------------------------------------------------------------- looking
    def _look(self, spec: RunSpec, *, go_on: bool) -> RunStatus:
        """How the run stands. `go_on`: start what is to be started and end what is to be ended."""
        stop = self._stopped(spec.run)
        lost: Ending | None = None
        for attempt in range(1, ATTEMPTS + 1):
            number = self._number(spec, attempt)
            if number is None:
                return self._not_started(spec, attempt, stop, lost, go_on=go_on)
            run = self._get(number)
            if run is None:
                gone = self._gone(spec, attempt, number, stop)
                if isinstance(gone, RunStatus):
                    return gone
                lost = gone
                continue
            if run.stand.phase != "over":
                return self._going(spec, run, stop, go_on=go_on)
            ended = self._ended(spec, run, stop)
            if isinstance(ended, RunStatus):
                return ended
            lost = ended
        assert lost is not None
        reason = f"{lost.reason}; given up after {ATTEMPTS} attempts"
        return RunStatus(spec.run, RunState.FAILED, reason, ended_at=self._clock())

    def _not_started(
        self, spec: RunSpec, attempt: int, stop: _Stop | None, lost: Ending | None, *, go_on: bool
    ) -> RunStatus:
        """Nobody has written down that the attempt was submitted."""
        if stop is not None and not self._was_asked(spec, attempt):
            before = "" if attempt > 1 or stop.state is RunState.FAILED else " before it started"
            return RunStatus(spec.run, stop.state, stop.reason + before, ended_at=stop.at)
        if stop is not None and stop.state is RunState.FAILED:
            return RunStatus(spec.run, stop.state, stop.reason, ended_at=stop.at)
        if go_on:
            if lost is not None:
                log.warning("run %s goes on as attempt %d: %s", spec.run, attempt, lost.reason)
            try:
                self._start(spec, attempt)
            except BadInput as error:
                return RunStatus(spec.run, RunState.FAILED, error.message, ended_at=self._clock())
        return RunStatus(spec.run, RunState.SUBMITTED)

    def _gone(self, spec: RunSpec, attempt: int, number: int, stop: _Stop | None) -> RunStatus | Ending:
        """How a run ended whose newest attempt was deleted, which only one that has ended can be; or why it went on with
        another."""
        reason = (
            f"Databricks knows nothing of its run {number} any more, and it left no result: somebody deleted it, or it is more "
            "than 60 days old"
        )
        if self._was_asked(spec, attempt + 1):
            # What lies there by now may be the later attempt's.
            return Ending(reason, again=True)
        node = self._left(spec)
        if node is not None and (stop is None or node.state is not RunState.CANCELLED):
            return RunStatus(spec.run, node.state, node.reason, None, self._clock(), node.exit_code)
        if stop is not None:
            return RunStatus(spec.run, stop.state, stop.reason, ended_at=stop.at)
        return RunStatus(spec.run, RunState.FAILED, reason, ended_at=self._clock())

    def _going(self, spec: RunSpec, run: _Run, stop: _Stop | None, *, go_on: bool) -> RunStatus:
        # Also when whoever wrote that down did not live to do it.
        if go_on and stop is not None:
            self._cancel(run.number)
        if run.stand.phase == "waiting":
            return RunStatus(spec.run, RunState.SUBMITTED, url=run.url)
        return RunStatus(spec.run, RunState.RUNNING, started_at=run.started_at, url=run.url)

    def _ended(self, spec: RunSpec, run: _Run, stop: _Stop | None) -> RunStatus | Ending:
        """How the run ended with that attempt, or why it may go on with another."""
        ended_at = run.ended_at or self._clock()
        status = RunStatus(spec.run, RunState.SUCCEEDED, None, run.started_at, ended_at, 0, url=run.url)
        # What the node writes last. Its machines may fail after that, with all there that it had to leave.
        node = self._left(spec)
        if run.stand.succeeded or (node is not None and node.state is RunState.SUCCEEDED):
            return status
        if node is not None and node.state is RunState.FAILED:
            return replace(status, state=RunState.FAILED, reason=_with(node.reason, run), exit_code=node.exit_code)
        if stop is not None:
            return replace(status, state=stop.state, reason=_with(stop.reason, run), exit_code=None)
        if run.stand.timed_out:
            reason = f"it did not end within {spec.timeout_seconds} seconds and the time its machines took to start"
            reason += " (training.compute.timeout)"
            return replace(status, state=RunState.FAILED, reason=_with(reason, run), exit_code=None)
        if run.stand.cancelled:
            reason = f"run {run.number} was cancelled in Databricks" + (
                f": {run.stand.message}" if run.stand.message else ""
            )
            return replace(status, state=RunState.CANCELLED, reason=_with(reason, run), exit_code=None)
        found = ending(run.stand)
        if found.again:
            return Ending(_with(found.reason, run), again=True)
        # The state only says that the task failed; its output says how.
        error = str(self._output(run).get("error") or "")
        reason = f"{found.reason}: {error}" if error and error not in found.reason else found.reason
        return replace(status, state=RunState.FAILED, reason=_with(reason, run), exit_code=None)

    # -------------------------------------------------------------------------------------------- starting and ending
    def _start(self, spec: RunSpec, attempt: int) -> None:
        """Submit that attempt, or find it submitted. Raises `BadInput` for what Databricks refuses for good."""
        number = self._number(spec, attempt)
        if number is None:
            self._files.put_mark(spec.run, f"databricks/{attempt}.asked", self._clock().isoformat().encode())
            try:
                number = self._submit(spec, attempt)
            except BadInput as error:
                self._stop(spec, RunState.FAILED, error.message)
                raise
            content = json.dumps({"run_id": number, "at": self._clock().isoformat()}).encode()
            self._files.put_mark(spec.run, f"databricks/{attempt}.json", content)
        # Whoever cancels writes that down before he looks for attempts: one of the two finds the other.
        if self._stopped(spec.run) is not None:
            self._cancel(number)

    def _submit(self, spec: RunSpec, attempt: int) -> int:
        from databricks.sdk.errors import ResourceDoesNotExist

        try:
            with self._asking(f"the submission of run {spec.run!r}", run=spec.run):
                client = workspace_client(self._settings.host)
                return int(client.jobs.submit(**task.request(spec, self._settings, attempt)).run_id)
        except NotFound as error:
            # Not the 404 of a host that is no workspace: that may be mended, and the run goes on.
            if not isinstance(error.__cause__, ResourceDoesNotExist):
                raise
            said = line_of(error.__cause__)
            raise BadInput(
                f"run {spec.run} names what Databricks does not know: {said}; correct training.compute", run=spec.run
            ) from error

    def _stop(self, spec: RunSpec, state: RunState, reason: str) -> None:
        """Write down that the run ends; who came first stands."""
        content = {"state": state.value, "reason": reason, "at": self._clock().isoformat()}
        self._files.put_mark(spec.run, STOP, json.dumps(content).encode())

    def _stopped(self, run: str) -> _Stop | None:
        found = self._files.read(run, STOP)
        if found is None:
            return None
        value = json.loads(found)
        return _Stop(RunState(value["state"]), value["reason"], datetime.fromisoformat(value["at"]))

    def _cancel(self, number: int) -> None:
        """Ask for the end of a run; no effect on one that has ended or is gone."""
        try:
            with self._asking(f"the end of run {number}"):
                workspace_client(self._settings.host).jobs.cancel_run(number)
        except (NotFound, Conflict, BadInput) as error:
            log.info("run %d was not cancelled: %s", number, error)

    # -------------------------------------------------------------------------------------------- what is known
    def _number(self, spec: RunSpec, attempt: int) -> int | None:
        found = self._files.read(spec.run, f"databricks/{attempt}.json")
        return None if found is None else int(json.loads(found)["run_id"])

    def _was_asked(self, spec: RunSpec, attempt: int) -> bool:
        return self._files.read(spec.run, f"databricks/{attempt}.asked") is not None

    def _left(self, spec: RunSpec) -> NodeResult | None:
        """The node's own last word."""
        try:
            return self._files.node_result(spec.run)
        except RunFailed as error:
            return NodeResult(spec.run, RunState.FAILED, 1, error.message, 0.0, 0.0)

    def _newest(self, spec: RunSpec) -> _Run | None:
        numbers = (self._number(spec, attempt) for attempt in range(ATTEMPTS, 0, -1))
        number = next((each for each in numbers if each is not None), None)
        return self._get(number) if number is not None else None

    def _get(self, number: int) -> _Run | None:
        """What Databricks says of the run; None when it knows nothing of it."""
        told = self._ask(_GET, number)
        if told is None:
            return None
        (only, *_) = told.get("tasks") or [{}]
        found = stand(told)
        began = only.get("start_time") or told.get("start_time")
        # Until then its machines were coming up; one that never came so far has no start.
        ran = found.phase == "running" or found.succeeded or bool(only.get("execution_duration"))
        started_at = _time(began + (only.get("setup_duration") or 0)) if began and ran else None
        return _Run(
            number, found, only.get("run_id"), told.get("run_page_url"), started_at, _time(told.get("end_time"))
        )

    def _output(self, run: _Run) -> Mapping[str, Any]:
        """What the task printed and what it ended with; nothing where there is none."""
        return (self._ask(_OUTPUT, run.task_number) or {}) if run.task_number is not None else {}

    def _ask(self, path: str, number: int) -> dict[str, Any] | None:
        """As it is told: the SDK's own classes drop codes that are newer than they are."""
        try:
            with self._asking(f"run {number}"):
                client = workspace_client(self._settings.host)
                told: Any = client.api_client.do("GET", path, query={"run_id": number})
        except NotFound:
            return None
        except BadInput as error:
            if "does not exist" in error.message:
                return None
            raise
        return dict(told)

    def _asking(self, what: str, **about: object) -> Any:
        return asking(self._settings.host, what, **about)


def _with(reason: str | None, run: _Run) -> str:
    reason = reason or "it gave no reason"
    return f"{reason}; see {run.url}" if run.url else reason


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
