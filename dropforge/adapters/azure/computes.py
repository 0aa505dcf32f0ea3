"""`Compute` as several of them: each run goes where its pipeline's `training.compute.target` says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from dropforge.adapters.azure.run_files import RunFiles
from dropforge.domain.errors import BadInput
from dropforge.domain.runs import RunResult, RunSpec, RunStatus
from dropforge.ports import Compute

# What makes the target one of this app's.
_SETTINGS = {
    "azureml": "DROPFORGE_AML_WORKSPACE",
    "databricks": "DROPFORGE_DATABRICKS_HOST and DROPFORGE_DATABRICKS_VOLUMES",
}
# Of a pipeline that names none: it was written for one machine.
_DEFAULT = "local"


class Computes:
    """What a run was submitted to is read from its spec, so any host knows. Any number of threads may use it."""

    def __init__(self, files: RunFiles, targets: Mapping[str, Compute]) -> None:
        self._files = files
        self._targets = dict(targets)
        # A run's target never changes.
        self._target = lru_cache(maxsize=1000)(self._read)

    def submit(self, spec: RunSpec) -> None:
        """As the port says. Raises `BadInput` for a target that this app has no settings for."""
        target = str(spec.compute.get("target", _DEFAULT))
        self._named(target, spec.run).submit(spec)

    def status(self, run: str) -> RunStatus:
        return self._of(run).status(run)

    def result(self, run: str) -> RunResult:
        return self._of(run).result(run)

    def cancel(self, run: str) -> None:
        self._of(run).cancel(run)

    def logs(self, run: str, tail_bytes: int = 65536) -> str:
        return self._of(run).logs(run, tail_bytes)

    def _of(self, run: str) -> Compute:
        """Raises `NotFound` for a run that was never submitted."""
        return self._named(self._target(run), run)

    def _read(self, run: str) -> str:
        return str(self._files.spec(run).compute.get("target", _DEFAULT))

    def _named(self, target: str, run: str) -> Compute:
        if target in self._targets:
            return self._targets[target]
        here = f"this app trains on {', '.join(self._targets)}" if self._targets else "this app trains nowhere yet"
        if target == _DEFAULT:
            missing = "which needs a machine that stays; set azureml or databricks"
        elif target in _SETTINGS:
            missing = f"for which {_SETTINGS[target]} must be set"
        else:
            missing = f"which is none of {', '.join(_SETTINGS)}"
        more = [f"{name} with {setting}" for name, setting in _SETTINGS.items() if name not in (*self._targets, target)]
        offered = f" ({'; '.join(more)})" if more else ""
        raise BadInput(f"training.compute.target is {target}, {missing}; {here}{offered}", run=run, target=target)
