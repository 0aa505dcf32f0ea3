"""A Databricks workspace on loopback: the Jobs API 2.2, whose runs are processes of this machine.

What a run sees of Unity Catalog is a folder for each run: its volumes are the containers of a storage account, copied in when
it starts, and `runs` is copied back while it goes on. Requests are held to the SDK's own classes: what those do not know is
refused.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock, Thread
from typing import Any

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient, ContainerClient
from databricks.sdk.service.jobs import JobEnvironment, QueueSettings, SubmitTask

from tests.azure.identity import Identity
from tests.azure.mounts import Output
from tests.azure.server import serving
from tests.azure.wire import Answer, Call
from tests.azurite import Azurite

AUDIENCE = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d"
VOLUMES = "/Volumes/main/dropforge"
CONTAINERS = ("artifacts", "tables", "runs")
# What a job does with the entry point of a wheel: by the package's metadata, or else a function of the package itself.
_WRAPPER = """
import sys
from importlib import import_module, metadata
package, entry = sys.argv[1:3]
sys.argv = ["python", *sys.argv[3:]]
found = [each for each in metadata.distribution(package).entry_points if each.name == entry]
function = found[0].load() if found else getattr(import_module(package), entry)
try:
    function()
except SystemExit as error:
    # A notebook takes any exit for a failure.
    raise RuntimeError(f"SystemExit: {error.code}") from None
"""
_SUBMIT_KEYS = {"run_name", "idempotency_token", "timeout_seconds", "queue", "tasks", "environments"}
_GRACE_SECONDS = 5.0
_TERMINATIONS = {"SUCCESS": "SUCCESS", "USER_CANCELED": "CANCELED", "CANCELED": "TIMEDOUT"}


class Refusal(Exception):
    """An error as Databricks answers it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = Answer(status, {"error_code": code, "message": message})


@dataclass
class Run:
    """One run, as the workspace keeps it. Times are Unix milliseconds."""

    number: int
    body: dict[str, Any]
    folder: Path
    start_time: int
    state: str = "PENDING"
    code: str = ""
    message: str = ""
    kind: str = ""
    began: int | None = None
    end_time: int | None = None
    logs: str = ""
    error: str | None = None
    process: subprocess.Popen[bytes] | None = None
    # Why it is to end before its time: code, type, message.
    told: tuple[str, str, str] | None = None
    # When its machine is taken away, on the monotonic clock.
    killed_at: float = float("inf")

    @property
    def task_number(self) -> int:
        return self.number + 1

    @property
    def token(self) -> str:
        return str(self.body.get("idempotency_token", ""))


@dataclass
class Recorded:
    method: str
    path: str
    body: Any
    status: int


@dataclass
class Workspace:
    """What tests see of it, and how they make it fail."""

    storage: str
    folder: Path
    token: str = "dapi-a-token-for-tests"
    url: str = ""
    ca_file: Path = Path()
    identity: Identity = field(default_factory=Identity)
    requests: list[Recorded] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    policies: set[str] = field(default_factory=lambda: {"A-POLICY"})
    # Faults.
    held: bool = False
    hidden_details: bool = False
    _faults: list[Callable[[Call], Answer | None]] = field(default_factory=list)
    _launches: list[tuple[str, str, str]] = field(default_factory=list)
    _deleted: set[str] = field(default_factory=set)
    _lock: RLock = field(default_factory=RLock)
    _over: bool = False
    _threads: list[Thread] = field(default_factory=list)

    # -------------------------------------------------------------------------------------------- what goes wrong
    def answer_with(self, status: int, code: str, message: str, times: int = 1, path: str = "", **headers: str) -> None:
        """The next so many calls (of that path) get this answer, and nothing is done."""
        left = [times]

        def fault(call: Call) -> Answer | None:
            if left[0] <= 0 or path not in call.path or "/api/" not in call.path:
                return None
            left[0] -= 1
            return Answer(status, {"error_code": code, "message": message}, {"Retry-After": "0", **headers})

        self._faults.append(fault)

    def lose_answers(self, path: str, times: int = 1) -> None:
        """The next so many calls of that path are carried out, and nobody is told."""
        left = [times]

        def fault(call: Call) -> Answer | None:
            if left[0] <= 0 or path not in call.path:
                return None
            left[0] -= 1
            self._carried_out(call)
            return Answer(200, lost=True)

        self._faults.append(fault)

    def fail_launch(self, code: str, kind: str, message: str, times: int = 1) -> None:
        """The next so many runs end like this before anything of theirs has run."""
        self._launches += [(code, kind, message)] * times

    def lose_machines(self, code: str, kind: str, message: str) -> None:
        """Everything that runs now is killed, and its run ends like this."""
        self._end_running(code, kind, message)

    def cancel_by_hand(self) -> None:
        """Somebody cancels in the workspace what runs now."""
        self._end_running("USER_CANCELED", "SUCCESS", "Run cancelled by ada@example.com.")

    def delete(self, run: Run) -> None:
        """As after 60 days, or by hand."""
        with self._lock:
            assert run.state == "TERMINATED", "Databricks deletes no run that goes on"
            self.runs.remove(run)
            self._deleted.add(run.token)

    def _end_running(self, code: str, kind: str, message: str) -> None:
        with self._lock:
            for run in self.runs:
                if run.state in ("PENDING", "RUNNING"):
                    run.told = (code, kind, message)
                    if run.process is not None:
                        _kill(run.process)

    # -------------------------------------------------------------------------------------------- calls
    def answered(self, call: Call) -> Answer:
        if call.path == "/identity":
            return self.identity.token(call)
        if call.path == "/.well-known/databricks-config":
            return Answer(200, {"oidc_endpoint": f"{self.url}/oidc", "workspace_id": "1", "cloud": "Azure"})
        answer = next((found for fault in self._faults if (found := fault(call)) is not None), None)
        answer = answer or self._carried_out(call)
        if "/api/" in call.path:
            self.requests.append(
                Recorded(call.method, call.path, json.loads(call.body) if call.body else call.query, answer.status)
            )
        return answer

    def _carried_out(self, call: Call) -> Answer:
        routes: dict[tuple[str, str], Callable[[Call], Any]] = {
            ("POST", "/api/2.2/jobs/runs/submit"): self._submit,
            ("GET", "/api/2.2/jobs/runs/get"): lambda call: self._shown(self._find(call.query["run_id"])),
            ("GET", "/api/2.2/jobs/runs/get-output"): self._output,
            ("POST", "/api/2.2/jobs/runs/cancel"): self._cancel,
        }
        route = routes.get((call.method, call.path))
        if route is None:
            return Answer(404, {"error_code": "ENDPOINT_NOT_FOUND", "message": f"No API found for {call.path}"})
        try:
            self._check_token(call)
            with self._lock:
                return Answer(200, route(call))
        except Refusal as refusal:
            return refusal.answer

    def _check_token(self, call: Call) -> None:
        _, _, token = call.headers.get("authorization", "").partition(" ")
        if token == self.token:
            return
        parts = token.split(".")
        if len(parts) != 3 or f'"aud": "{AUDIENCE}"' not in _decoded(parts[1]):
            raise Refusal(401, "UNAUTHENTICATED", "Credential was not sent or was of an unsupported type for this API.")

    def _submit(self, call: Call) -> dict[str, Any]:
        body = json.loads(call.body)
        _check(body, self)
        known = next((run for run in self.runs if run.token and run.token == body.get("idempotency_token")), None)
        if known is not None:
            return {"run_id": known.number}
        if body.get("idempotency_token") in self._deleted:
            raise Refusal(400, "INVALID_STATE", "The run with the provided idempotency token has been deleted.")
        number = 1_000_000 + 10 * (len(self.runs) + len(self._deleted))
        run = Run(number, body, self.folder / str(number), _now())
        self.runs.append(run)
        thread = Thread(target=self._live, args=(run,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return {"run_id": number}

    def _find(self, number: object) -> Run:
        for run in self.runs:
            if str(number) in (str(run.number), str(run.task_number)):
                return run
        raise Refusal(400, "INVALID_PARAMETER_VALUE", f"Run {number} does not exist.")

    def _cancel(self, call: Call) -> dict[str, Any]:
        run = self._find(json.loads(call.body)["run_id"])
        if run.state in ("PENDING", "RUNNING") and run.told is None:
            run.told = ("USER_CANCELED", "SUCCESS", "Run cancelled.")
            if run.process is not None:
                # The notebook is interrupted first.
                run.process.send_signal(signal.SIGINT)
                run.killed_at = time.monotonic() + _GRACE_SECONDS
        return {}

    def _shown(self, run: Run) -> dict[str, Any]:
        over = run.state == "TERMINATED"
        result = None if not over else _TERMINATIONS.get(run.code, "FAILED")
        old = {"life_cycle_state": run.state, "result_state": result, "state_message": run.message}
        details = {"code": run.code, "type": run.kind, "message": run.message} if over else None
        new = None if self.hidden_details else {"state": run.state, "termination_details": details}
        setup = (run.began - run.start_time) if run.began else None
        ran = (run.end_time or _now()) - run.began if run.began else None
        times = {"start_time": run.start_time, "setup_duration": setup, "end_time": run.end_time}
        task = {**times, "run_id": run.task_number, "task_key": run.body["tasks"][0]["task_key"], "state": old}
        return {
            **times,
            "run_id": run.number,
            "run_name": run.body.get("run_name"),
            "run_page_url": f"{self.url}/?o=1#job/1/run/{run.number}",
            "state": old,
            "status": new,
            "tasks": [{**task, "execution_duration": ran if over else 0}],
        }

    def _output(self, call: Call) -> dict[str, Any]:
        run = self._find(call.query["run_id"])
        if str(run.number) == call.query["run_id"]:
            raise Refusal(
                400,
                "INVALID_PARAMETER_VALUE",
                "Retrieving the output of runs with multiple tasks is not supported. Please retrieve the output of each "
                "individual task run instead.",
            )
        return {"metadata": self._shown(run), "logs": run.logs, "error": run.error}

    # -------------------------------------------------------------------------------------------- runs
    def _live(self, run: Run) -> None:
        while self.held and run.told is None and not self._over:
            time.sleep(0.01)
        with self._lock:
            if run.told is None and self._launches:
                run.told = self._launches.pop(0)
        ended: tuple[str, str, str, str | None]
        if run.told is not None:
            ended = (*run.told, None)
        else:
            try:
                ended = self._run(run)
            except Refusal as refusal:
                ended = ("LIBRARY_INSTALLATION_ERROR", "CLIENT_ERROR", str(refusal), None)
        with self._lock:
            run.code, run.kind, run.message, run.error = ended
            run.state, run.end_time = "TERMINATED", _now()

    def _run(self, run: Run) -> tuple[str, str, str, str | None]:
        task = run.body["tasks"][0]["python_wheel_task"]
        with BlobServiceClient.from_connection_string(self.storage, retry_total=2) as service:
            kept = self._mount(run, service)
            site = _installed(run, self)
            local = str(run.folder / "volumes")
            words = [word.replace(VOLUMES, local) for word in task["parameters"]]
            log = run.folder / "log.txt"
            with log.open("wb") as told, self._lock:
                if run.told is not None:
                    return (*run.told, None)
                run.process = subprocess.Popen(
                    [sys.executable, "-c", _WRAPPER, task["package_name"], task["entry_point"], *words],
                    stdin=subprocess.DEVNULL,
                    stdout=told,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=run.folder,
                    env={
                        "PATH": os.environ["PATH"],
                        "PYTHONPATH": str(site),
                        "HOME": str(run.folder),
                        "DATABRICKS_RUNTIME_VERSION": "16.4",
                    },
                )
                run.state, run.began = "RUNNING", _now()
            code = self._watched(run, kept)
        run.logs = log.read_text(errors="replace")
        if run.told is not None:
            return (*run.told, None)
        if code == 0:
            return "SUCCESS", "SUCCESS", "", None
        lines = [line for line in run.logs.splitlines() if line.strip()]
        error = lines[-1] if lines else f"exit code {code}"
        return "RUN_EXECUTION_ERROR", "CLIENT_ERROR", "Task node failed with message: Workload failed, see run output for details.", error  # fmt: skip

    def _watched(self, run: Run, kept: list[Output]) -> int:
        """Until the process has ended; what it has written is kept, unless its machine was lost."""
        assert run.process is not None
        deadline = time.monotonic() + float(run.body.get("timeout_seconds") or 1e9)
        while (code := run.process.poll()) is None:
            if time.monotonic() > deadline:
                run.told = ("CANCELED", "CLIENT_ERROR", "Run timed out: the maximum run duration was exceeded.")
                run.killed_at = deadline
            if self._over or time.monotonic() > run.killed_at:
                _kill(run.process)
            for each in kept:
                each.push(closed_only=True)
            time.sleep(0.03)
        # What it left running goes with its machine.
        _kill(run.process)
        if run.told is None or run.told[0] == "USER_CANCELED":
            for each in kept:
                each.push(closed_only=False)
        return code

    def _mount(self, run: Run, service: BlobServiceClient) -> list[Output]:
        """The volumes as folders; the run's own part of `runs` is written back."""
        name = _run_id(run)
        for container in CONTAINERS:
            client = service.get_container_client(container)
            start = f"{name}/" if container == "runs" else ""
            for blob in list(client.list_blob_names(name_starts_with=start)):
                _download(client, blob, run.folder / "volumes" / container / blob)
        output = run.folder / "volumes" / "runs" / name / "output"
        output.mkdir(parents=True, exist_ok=True)
        kept = Output(service.get_container_client("runs"), f"{name}/output", output)
        kept.pull()
        return [kept]


def _run_id(run: Run) -> str:
    words = run.body["tasks"][0]["python_wheel_task"]["parameters"]
    return str(words[words.index("--run") + 1]).split("/")[-2]


def _download(client: ContainerClient, blob: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    # A mount shows what is there: what is deleted between the listing and the look is not.
    with suppress(ResourceNotFoundError):
        to.write_bytes(client.download_blob(blob).readall())


def _wheel(run: Run) -> str:
    task = run.body["tasks"][0]
    if task.get("new_cluster"):
        return str(next(each["whl"] for each in task["libraries"] if "whl" in each))
    (environment,) = run.body["environments"]
    return re.sub(r"\[.*\]$", "", environment["spec"]["dependencies"][0])


def _installed(run: Run, workspace: Workspace) -> Path:
    """Where the wheel is installed; what it needs is there already."""
    wheel = run.folder / "volumes" / _wheel(run).removeprefix(f"{VOLUMES}/")
    site = run.folder / "site"
    if not wheel.is_file():
        raise Refusal(400, "", f"Library installation failed: {_wheel(run)} does not exist.")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


# ------------------------------------------------------------------------------------------------ the request
def _check(body: dict[str, Any], workspace: Workspace) -> None:
    """What the real service would refuse, and whatever the SDK's classes do not know."""
    unknown = sorted(set(body) - _SUBMIT_KEYS)
    if unknown:
        raise _malformed(f"unknown fields {unknown}")
    for kind, values in (
        (SubmitTask, body.get("tasks", [])),
        (JobEnvironment, body.get("environments", [])),
        (QueueSettings, [body["queue"]] if "queue" in body else []),
    ):
        for value in values:
            known = kind.from_dict(value).as_dict()  # type: ignore[attr-defined]
            if known != value:
                raise _malformed(f"{kind.__name__}: sent {value}, understood {known}")
    if len(str(body.get("idempotency_token", ""))) > 64:
        raise _invalid("The idempotency token must have at most 64 characters.")
    if len(body.get("tasks", [])) != 1:
        raise _invalid("This workspace takes runs of one task.")
    (task,) = body["tasks"]
    kinds = [key for key in task if key.endswith("_task")]
    if kinds != ["python_wheel_task"] or not task["python_wheel_task"].get("package_name"):
        raise _invalid(f"The task must be of one kind, found {kinds}.")
    if len(json.dumps(task["python_wheel_task"].get("parameters", []))) > 10_000:
        raise _invalid("The parameters cannot exceed 10,000 bytes.")
    if "new_cluster" in task:
        _check_cluster(task, workspace)
    else:
        _check_serverless(task, body)


def _check_serverless(task: dict[str, Any], body: dict[str, Any]) -> None:
    keys = [each["environment_key"] for each in body.get("environments", [])]
    if task.get("environment_key") not in keys:
        raise _invalid(f"An environment is required for serverless task {task['task_key']}.")
    if "libraries" in task:
        raise _invalid("Libraries field is not supported for serverless task, please specify libraries in environment.")
    for each in body["environments"]:
        if not each["spec"].get("environment_version") or not each["spec"].get("dependencies"):
            raise _invalid("Either environment_version or base_environment needs to be provided.")


def _check_cluster(task: dict[str, Any], workspace: Workspace) -> None:
    cluster = task["new_cluster"]
    if "environment_key" in task:
        raise _invalid("An environment key is only for serverless tasks.")
    if "policy_id" in cluster and cluster["policy_id"] not in workspace.policies:
        raise Refusal(403, "PERMISSION_DENIED", f"You are not authorized to use policy {cluster['policy_id']}.")
    if "policy_id" not in cluster and not (cluster.get("spark_version") and cluster.get("node_type_id")):
        raise _invalid("Missing required field: spark_version or node_type_id.")
    if cluster.get("num_workers") == 0:
        single = cluster.get("spark_conf", {}).get("spark.databricks.cluster.profile") == "singleNode"
        if not single or cluster.get("custom_tags", {}).get("ResourceClass") != "SingleNode":
            raise _invalid("Cluster with zero workers must be a single node cluster.")
    if any("[" in each.get("whl", "") for each in task.get("libraries", [])):
        raise _invalid("Library whl must be a path: brackets are not allowed.")


def _invalid(message: str) -> Refusal:
    return Refusal(400, "INVALID_PARAMETER_VALUE", message)


def _malformed(message: str) -> Refusal:
    return Refusal(400, "MALFORMED_REQUEST", message)


def _decoded(part: str) -> str:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Everything that the process has started, as when its machine is gone: all that is of its session."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            # The name, in brackets, may hold anything.
            session = stat.read_text().rpartition(")")[2].split()[3]
            if int(session) == process.pid:
                os.kill(int(stat.parent.name), signal.SIGKILL)


def _now() -> int:
    return int(time.time() * 1000)


@contextmanager
def databricks(storage: Azurite, folder: Path) -> Iterator[Workspace]:
    """The workspace, over the containers of that storage account; everything of it has ended afterwards."""
    workspace = Workspace(storage.connection_string, folder)
    with serving(workspace.answered) as (url, ca_file):
        workspace.url, workspace.ca_file = url, ca_file
        workspace.identity.url = url
        try:
            yield workspace
        finally:
            workspace._over = True
            workspace.held = False
            for thread in workspace._threads:
                thread.join(timeout=30)
