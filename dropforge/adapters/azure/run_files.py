"""The container that the app and its runs share, wherever they run: what was asked of a run, and what it left."""

from __future__ import annotations

import re
import tempfile
from contextlib import suppress
from pathlib import Path

from azure.core.exceptions import AzureError

from dropforge.adapters.azure.places import RUNS, TABLES
from dropforge.adapters.azure.storage import Place, account_name, errors, is_taken, mapped, service
from dropforge.adapters.local.atomic import whole_file
from dropforge.adapters.run_outcome import collected
from dropforge.domain.errors import BadInput, Conflict, NotFound, RunFailed
from dropforge.domain.runs import RunResult, RunSpec, RunState
from dropforge.ports import Artifacts
from dropforge.training.contract import EVIDENCE, GOLDEN, METRICS, MODEL, RESULT, SWEEP, NodeResult
from dropforge.wire import from_json, to_json

SPEC = "run.json"
OUTPUT = "output"
LOG = "log.txt"
TARGETS = ("azureml", "databricks")
# What is a job's name in Azure ML as well, with room for `_2`.
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

_TABLE = re.compile(
    rf"(?:(?:az|azure|abfss?)://{TABLES}(?:@[^/]+)?|https?://[^/]+(?:/[^/]+)?/{TABLES})/(?P<path>[^?#]+?)/?"
)


def table_path(spec: RunSpec, compute: str) -> str:
    """Where the run's table lies below its container. Raises `BadInput`, for the jobs of that compute, when it is not in our
    storage account."""
    found = _TABLE.fullmatch(spec.table_uri)
    if found is None:
        raise BadInput(
            f"table {spec.table_uri!r} is not in container {TABLES!r} of the storage account, so no job in {compute} can read "
            "it; a pipeline that trains there needs DROPFORGE_ADAPTERS=azure",
            run=spec.run,
        )
    return found["path"]


class RunFiles:
    """`<run>/run.json`, `<run>/output/` and the marks beside them. Nothing is kept in between: every host sees the same.

    Any number of threads may use it.
    """

    def __init__(self, storage: str, artifacts: Artifacts) -> None:
        """`storage`: a connection string, or the account's URL, which is then reached as the app's identity."""
        self._service = service(storage)
        self._runs = self._service.get_container_client(RUNS)
        self._place = Place(account_name(self._service), RUNS)
        self._artifacts = artifacts

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    # -------------------------------------------------------------------------------------------- what was asked
    def put_spec(self, spec: RunSpec) -> None:
        """Keep what is asked of the run. An equal spec again: nothing happens. Raises `Conflict` for another spec under an
        equal run id, `BadInput` for what is no run id, or for a target that no compute here stands for."""
        target = spec.compute.get("target")
        if target is not None and target not in TARGETS:
            raise BadInput(
                f"training.compute.target is {target!r}, which runs nothing here; choose one of {', '.join(TARGETS)}",
                run=spec.run,
            )
        if not self.put_mark(spec.run, SPEC, to_json(spec)) and to_json(self.spec(spec.run)) != to_json(spec):
            message = f"run {spec.run} was submitted with another spec; give the new one another run id"
            raise Conflict(message, run=spec.run)

    def spec(self, run: str) -> RunSpec:
        """What was asked of the run. Raises `NotFound` for a run that was never submitted."""
        found = self.read(run, SPEC)
        if found is None:
            raise NotFound(f"no run {run!r} was submitted here", run=run)
        return from_json(RunSpec, found)

    # -------------------------------------------------------------------------------------------- what it left
    def collect(self, run: str, folder: str = OUTPUT) -> RunResult:
        """The result of a run that has ended, with model, evidence, metrics and log put among the artifacts; calling
        again gives the same. Raises `RunFailed` with the node's own reason, or with what is missing, and `NotFound`."""
        spec = self.spec(run)
        self.keep_log(run, folder)
        with tempfile.TemporaryDirectory(prefix="dropforge-collect-") as name:
            here = Path(name)
            result = self.node_result(run, folder)
            if result is not None and result.state is not RunState.SUCCEEDED:
                raise RunFailed(result.reason or f"run {run} {result.state.value}", run=run)
            for each in (RESULT, MODEL, EVIDENCE, GOLDEN, METRICS, SWEEP):
                self._fetch(run, f"{folder}/{each}", here / each)
            return collected(spec, here, self._artifacts)

    def keep_log(self, run: str, folder: str = OUTPUT) -> None:
        """Put the run's log among the artifacts, if it left one; the first one put stays."""
        with tempfile.TemporaryDirectory(prefix="dropforge-collect-") as name:
            if self._fetch(run, f"{folder}/{LOG}", Path(name) / LOG):
                with suppress(Conflict):
                    self._artifacts.put(f"runs/{run}/{LOG}", Path(name) / LOG)

    def node_result(self, run: str, folder: str = OUTPUT) -> NodeResult | None:
        """What the node itself says of how it ended; None when it left no word. Raises `RunFailed` for what is none."""
        found = self.read(run, f"{folder}/{RESULT}")
        try:
            return None if found is None else from_json(NodeResult, found)
        except BadInput as error:
            raise RunFailed(f"run {run} left files that say something else: {error.message}", run=run) from error

    # -------------------------------------------------------------------------------------------- files
    def put_mark(self, run: str, path: str, content: bytes) -> bool:
        """Write `<run>/<path>` unless it is there; whether it was not. A mark that was set stays as it is."""
        blob = self._path(run, path)
        try:
            self._runs.upload_blob(blob, content, overwrite=False)
        except AzureError as error:
            if not is_taken(error):
                raise mapped(error, self._place, blob) from error
            return False
        return True

    def read(self, run: str, path: str) -> bytes | None:
        """The bytes of `<run>/<path>`; None when there is none."""
        blob = self._path(run, path)
        try:
            with errors(self._place, blob):
                content: bytes = self._runs.download_blob(blob).readall()
        except NotFound:
            return None
        return content

    def tail(self, run: str, path: str, size_bytes: int) -> str | None:
        """The end of `<run>/<path>`; None when there is none."""
        blob = self._path(run, path)
        try:
            with errors(self._place, blob):
                client = self._runs.get_blob_client(blob)
                size: int = client.get_blob_properties().size
                start = max(0, size - size_bytes)
                content: bytes = client.download_blob(offset=start, length=size - start).readall() if size else b""
        except NotFound:
            return None
        # The first character may be cut in two.
        return content.decode(errors="ignore" if start else "replace")

    def _fetch(self, run: str, path: str, to: Path) -> bool:
        """Copy a file to this machine; whether there was one."""
        blob = self._path(run, path)
        try:
            with errors(self._place, blob), whole_file(to, durable=False) as writer:
                self._runs.download_blob(blob).readinto(writer)
        except NotFound:
            return False
        return True

    def _path(self, run: str, path: str) -> str:
        if not _RUN.fullmatch(run):
            raise BadInput(f"run {run!r} is not a run id; use up to 128 letters, digits, '_' and '-'", run=run)
        return f"{run}/{path}"
