"""A compute that runs nothing: tests and rehearsals say how each run goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import RLock
from typing import Any

from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused, RunFailed
from dropforge.domain.runs import ENDED, RunResult, RunSpec, RunState, RunStatus
from dropforge.ports import Artifacts


@dataclass(frozen=True)
class _Left:
    """What a succeeded run left on its node."""

    model: bytes
    evidence: bytes
    metrics: dict[str, float]
    environment: dict[str, Any]
    seconds: float


@dataclass
class _Run:
    spec: RunSpec
    status: RunStatus
    log: str = ""
    left: _Left | None = None


@dataclass
class MemoryCompute:
    """`Compute` whose runs go as the test says: `begin`, `say`, then `succeed` or `fail`.

    `on_submit` is called once for each run that starts, so a script can let every run end at once.
    """

    artifacts: Artifacts
    on_submit: Callable[[RunSpec], None] = lambda spec: None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _runs: dict[str, _Run] = field(default_factory=dict)
    # Reentrant: a script may end the run while it is being submitted.
    _lock: RLock = field(default_factory=RLock)

    @property
    def submitted(self) -> list[RunSpec]:
        """What was asked of each run that started, in order."""
        return [run.spec for run in self._runs.values()]

    # -------------------------------------------------------------------------------------------- the port
    def submit(self, spec: RunSpec) -> None:
        with self._lock:
            known = self._runs.get(spec.run)
            if known is not None:
                if known.spec != spec:
                    raise Conflict(f"run {spec.run} was submitted with another spec", run=spec.run)
                return
            self._runs[spec.run] = _Run(spec, RunStatus(spec.run, RunState.SUBMITTED))
            self.on_submit(spec)

    def status(self, run: str) -> RunStatus:
        return self._find(run).status

    def result(self, run: str) -> RunResult:
        with self._lock:
            found = self._find(run)
        if found.status.state not in ENDED:
            raise Refused(f"run {run} is {found.status.state.value}; ask for its result once it has ended", run=run)
        if found.left is None:
            raise RunFailed(found.status.reason or f"run {run} {found.status.state.value}", run=run)
        model, evidence = f"runs/{run}/model.onnx", f"runs/{run}/evidence.json"
        sha256 = self.artifacts.put(model, found.left.model)
        self.artifacts.put(evidence, found.left.evidence)
        left = found.left
        return RunResult(run, model, sha256, evidence, left.metrics, left.environment, left.seconds)

    def cancel(self, run: str) -> None:
        self._end(run, RunState.CANCELLED, "cancelled")

    def logs(self, run: str, tail_bytes: int = 65536) -> str:
        content = self._find(run).log.encode()
        return content[max(0, len(content) - tail_bytes) :].decode(errors="ignore")

    # -------------------------------------------------------------------------------------------- how a run goes
    def begin(self, run: str) -> None:
        """The run gets a node and starts."""
        with self._lock:
            found = self._find(run)
            if found.status.state is not RunState.SUBMITTED:
                raise BadInput(f"run {run} cannot begin: it is {found.status.state.value}", run=run)
            found.status = replace(found.status, state=RunState.RUNNING, started_at=self.clock())

    def say(self, run: str, text: str) -> None:
        """The run prints something."""
        with self._lock:
            self._find(run).log += text

    def succeed(
        self,
        run: str,
        model: bytes,
        evidence: bytes,
        metrics: dict[str, float] | None = None,
        environment: dict[str, Any] | None = None,
        seconds: float = 1.0,
    ) -> None:
        """The run ends well and leaves these; no effect when it has ended before, as by `cancel`."""
        left = _Left(model, evidence, metrics or {}, environment or {}, seconds)
        self._end(run, RunState.SUCCEEDED, None, 0, left)

    def fail(self, run: str, reason: str, exit_code: int = 1) -> None:
        """The run ends without a model; no effect when it has ended before."""
        self._end(run, RunState.FAILED, reason, exit_code)

    def _end(
        self, run: str, state: RunState, reason: str | None, exit_code: int | None = None, left: _Left | None = None
    ) -> None:
        with self._lock:
            found = self._find(run)
            if found.status.state in ENDED:
                return
            now = self.clock()
            started = found.status.started_at or (now if left else None)
            found.left = left
            found.status = RunStatus(run, state, reason, started, now, exit_code)

    def _find(self, run: str) -> _Run:
        try:
            return self._runs[run]
        except KeyError:
            raise NotFound(f"no run {run!r} was submitted here", run=run) from None
