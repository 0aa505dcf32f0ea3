"""Jobs of Azure ML: accepted, run as processes of this machine, preempted, cancelled and forgotten."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tests.azure.execution import Order
from tests.azure.faults import Faults
from tests.azure.mounts import Mounts
from tests.azure.places import SUBSCRIPTION, WORKSPACE, now
from tests.azure.resources import Store, method_not_allowed, not_found, page
from tests.azure.run_events import RunEvents
from tests.azure.wire import Answer, Call, Refused, without_nulls

ENDED = frozenset({"Completed", "Failed", "Canceled"})
# What may change of a job that is there.
_MUTABLE = frozenset({"description", "tags", "displayName", "properties", "isArchived"})
# Of the service alone.
_MADE = frozenset({"status", "services", "outputs"})
_ISO = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")


def seconds(duration: str) -> float:
    """Of an ISO 8601 duration."""
    found = _ISO.fullmatch(duration)
    if found is None:
        raise Refused(400, "UserError", f"{duration!r} is not an ISO 8601 duration.")
    days, hours, minutes, rest = (float(part or 0) for part in found.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + rest


@dataclass
class Job:
    """A job and what became of it."""

    name: str
    resource: dict[str, Any]
    folder: Path
    status: str = "NotStarted"
    created_at: str = field(default_factory=now)
    started_at: str | None = None
    ended_at: str | None = None
    # How often its command was started.
    attempts: int = 0
    # As run history tells it: code and message.
    error: tuple[str, str] | None = None
    exit_code: int | None = None
    logs: dict[str, Path] = field(default_factory=dict)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    # Of a sweep: its trials; of a trial: what it tries.
    children: list[str] = field(default_factory=list)
    parent: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    cancelled: Event = field(default_factory=Event)
    forgotten: bool = False
    # As they were asked for, before their places were filled in.
    asked_outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    thread: Thread | None = None

    @property
    def properties(self) -> dict[str, Any]:
        return dict(self.resource["properties"])

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True)
class Machine:
    """What jobs run on."""

    image: Path
    folder: Path
    queue_seconds: float
    grace_seconds: float
    # Variables that say where metrics go.
    tracking: dict[str, str]


class Jobs:
    def __init__(self, store: Store, faults: Faults, events: RunEvents) -> None:
        self._store = store
        self._faults = faults
        self._events = events
        self.by_name: dict[str, Job] = {}
        self.machine: Machine
        self.mounts: Mounts
        self.issue_token: Callable[[], str] = lambda: ""
        # By job type.
        self.runners: dict[str, Callable[[Jobs, Job], None]] = {}

    # --- the calls

    def answer(self, call: Call, segments: list[str]) -> Answer:
        """`jobs`, `jobs/{name}`, `jobs/{name}/cancel`."""
        if not segments:
            return page(self._listed(call), call, self._store.base)
        job = self._found(segments[0])
        if len(segments) == 2 and segments[1].lower() == "cancel" and call.method == "POST":
            return self._cancel(job or self._missing(segments[0]))
        if call.method == "PUT":
            return self._put(segments[0], without_nulls(call.json()))
        if job is None:
            raise self._missing(segments[0])
        if call.method == "GET":
            return Answer(200, self.shown(job))
        if call.method == "DELETE":
            return self._delete(job)
        raise method_not_allowed(call)

    def _found(self, name: str) -> Job | None:
        job = self.by_name.get(name)
        if job is not None and name in self._faults.vanished:
            self.forget(job)
        return self.by_name.get(name)

    def _missing(self, name: str) -> Any:
        raise not_found(f"{WORKSPACE}/jobs/{name}")

    def forget(self, job: Job) -> None:
        job.forgotten = True
        job.cancelled.set()
        self.by_name.pop(job.name, None)

    def _listed(self, call: Call) -> list[dict[str, Any]]:
        view = call.query.get("listViewType", "ActiveOnly")
        tag = call.query.get("tag")
        found = []
        for job in sorted(self.by_name.values(), key=lambda one: one.created_at, reverse=True):
            archived = bool(job.resource["properties"].get("isArchived"))
            if view != "All" and archived != (view == "ArchivedOnly"):
                continue
            name, _, value = (tag or "").partition("=")
            tags = job.resource["properties"].get("tags", {})
            if tag and (name not in tags or (value and tags[name] != value)):
                continue
            # The trials of a sweep are listed under it only.
            if job.parent is None:
                found.append(self.shown(job))
        return found

    def _put(self, name: str, body: dict[str, Any]) -> Answer:
        old = self._found(name)
        if old is not None:
            return self._update(old, body)
        given = body["properties"]
        self._check(given)
        if self._faults.take("quota_at_submit"):
            raise Refused(
                400,
                "UserError",
                "The specified Azure ML Compute Instance type has no quota left: the requested nodes exceed the vCPU quota "
                "of the subscription in this region. Request a quota increase or choose another size.",
            )
        identity = f"{WORKSPACE}/jobs/{name}"
        job = Job(name, {**body, "id": identity, "name": name}, self.machine.folder / name)
        self.add(job)
        return Answer(201, self.shown(job))

    def add(self, job: Job) -> None:
        """Known from now on, and run."""
        job.resource.setdefault("type", "Microsoft.MachineLearningServices/workspaces/jobs")
        job.resource["systemData"] = {"createdAt": job.created_at, "createdBy": "test", "createdByType": "Application"}
        given = job.resource["properties"]
        given.setdefault("experimentName", "Default")
        given.setdefault("isArchived", False)
        given.setdefault("tags", {})
        given.setdefault("properties", {})
        job.asked_outputs = copy.deepcopy(given.get("outputs") or {})
        for output, value in (given.get("outputs") or {}).items():
            place = value.get("uri") or f"azureml://datastores/workspaceblobstore/paths/azureml/{job.name}/{output}/"
            value["uri"] = place.replace("${{name}}", job.name).replace("${{output_name}}", output)
        self.by_name[job.name] = job
        job.thread = Thread(
            target=self.runners[given["jobType"]], args=(self, job), daemon=True, name=f"job {job.name}"
        )
        job.thread.start()

    def _check(self, given: dict[str, Any]) -> None:
        if given.get("jobType") not in self.runners:
            raise Refused(
                400, "UserError", f"This control plane runs {list(self.runners)} jobs, not {given.get('jobType')!r}."
            )
        compute = given.get("computeId")
        if compute and not self._store.get(compute):
            raise Refused(
                400, "UserError", f"The compute target {compute.rsplit('/', 1)[-1]} was not found in the workspace."
            )
        if not compute and not (given.get("resources") or {}).get("instanceType"):
            raise Refused(400, "UserError", "A job without a compute target needs an instance type.")
        environment = given.get("trial", given).get("environmentId", "")
        if environment.startswith("/subscriptions/") and not self._store.get(environment):
            raise Refused(400, "UserError", f"The environment {environment} was not found in the workspace.")
        for limit in ("timeout", "trialTimeout"):
            if text := (given.get("limits") or {}).get(limit):
                seconds(text)

    def _update(self, job: Job, body: dict[str, Any]) -> Answer:
        before = job.resource["properties"]
        given = body["properties"]
        for key in sorted(set(given) - _MUTABLE - _MADE):
            if given[key] != before.get(key):
                raise Refused(
                    400,
                    "UserError",
                    "A job with this name already exists. If you are trying to create a new job, use a different name. If you "
                    "are trying to update an existing job, the existing job's "
                    f"{key} cannot be changed. Only description, tags, displayName, properties, and isArchived can be updated.",
                )
        before.update({key: given[key] for key in _MUTABLE & set(given)})
        return Answer(200, self.shown(job))

    def _cancel(self, job: Job) -> Answer:
        if not job.ended:
            job.status = "CancelRequested"
            for name in job.children:
                if child := self.by_name.get(name):
                    child.cancelled.set()
        job.cancelled.set()
        place = f"{self._store.base}/subscriptions/{SUBSCRIPTION}/providers/Microsoft.MachineLearningServices"
        headers = {
            "Location": f"{place}/jobCancellations/{job.name}?api-version=2023-04-01-preview",
            "Retry-After": "0",
        }
        return Answer(202, None, headers)

    def cancellation(self, name: str, retry_after: str) -> Answer:
        job = self.by_name.get(name)
        if job is not None and not job.ended:
            again = f"{self._store.base}/subscriptions/{SUBSCRIPTION}/providers/Microsoft.MachineLearningServices/jobCancellations"
            return Answer(
                202, None, {"Location": f"{again}/{name}?api-version=2023-04-01-preview", "Retry-After": retry_after}
            )
        return Answer(200)

    def _delete(self, job: Job) -> Answer:
        if not job.ended:
            raise Refused(
                400, "UserError", f"Job {job.name} is {job.status}: only a job that has ended can be deleted."
            )
        self.forget(job)
        return Answer(200)

    def shown(self, job: Job) -> dict[str, Any]:
        told = copy.deepcopy(job.resource)
        given = told["properties"]
        given["status"] = job.status
        given["services"] = {
            "Studio": {
                "jobServiceType": "Studio",
                "endpoint": f"https://ml.azure.com/runs/{job.name}?wsid={WORKSPACE}",
            },
            "Tracking": {
                "jobServiceType": "Tracking",
                "endpoint": f"azureml://{self._store.base.removeprefix('https://')}",
            },
        }
        given["properties"] = {**given.get("properties", {}), "_azureml.ComputeTargetType": "amlctrain"}
        if job.parent:
            given["parentJobName"] = job.parent
        if "uri" not in given.setdefault("outputs", {}).setdefault("default", {"jobOutputType": "uri_folder"}):
            given["outputs"]["default"] |= {"mode": "ReadWriteMount"}
            given["outputs"]["default"]["uri"] = (
                f"azureml://datastores/workspaceartifactstore/ExperimentRun/dcid.{job.name}"
            )
        return told

    def output_uri(self, job: str, output: str) -> str | None:
        found = self.by_name.get(job)
        value = ((found.resource["properties"].get("outputs") or {}).get(output) if found else None) or {}
        return value.get("uri")

    # --- what happens meanwhile

    def moved(self, job: Job, status: str) -> None:
        with self._store.lock:
            if job.ended or (job.cancelled.is_set() and status not in ENDED):
                return
            job.status = status
            if status == "Running" and job.started_at is None:
                job.started_at = now()
            if status in ENDED:
                job.ended_at = now()
            if not job.forgotten:
                self._events.moved(job.name, job.resource["properties"], status)

    def failed(self, job: Job, code: str, message: str) -> None:
        job.error = (code, message)
        self.moved(job, "Failed")

    def order(self, job: Job) -> Order:
        given = job.resource["properties"]
        experiment = given["experimentName"]
        environment = {
            "AZUREML_RUN_ID": job.name,
            "AZUREML_ROOT_RUN_ID": job.parent or job.name,
            "AZUREML_RUN_TOKEN": self.issue_token(),
            "AZUREML_EXPERIMENT_NAME": experiment,
            "AZUREML_EXPERIMENT_ID": self.experiment(experiment),
            "AZUREML_ARM_SUBSCRIPTION": SUBSCRIPTION,
            "AZUREML_ARM_RESOURCEGROUP": "rg",
            "AZUREML_ARM_WORKSPACE_NAME": "ws",
            "AZUREML_WORKSPACE_SCOPE": WORKSPACE,
            "MLFLOW_RUN_ID": job.name,
            "MLFLOW_EXPERIMENT_NAME": experiment,
            "MLFLOW_EXPERIMENT_ID": self.experiment(experiment),
            "MLFLOW_TRACKING_TOKEN": self.issue_token(),
            **self.machine.tracking,
        }
        if (given.get("identity") or {}).get("identityType") == "Managed":
            environment["DEFAULT_IDENTITY_CLIENT_ID"] = given["identity"].get("clientId", "")
        return Order(job.name, given, environment, job.values)

    def image_of(self, job: Job) -> str:
        environment = self._store.get(job.resource["properties"].get("environmentId", ""))
        return str(environment["properties"].get("image", "")) if environment else ""

    def experiment(self, name: str) -> str:
        return self._events.experiment(name)

    @property
    def faults(self) -> Faults:
        return self._faults

    def stop(self) -> None:
        """Ends every job; nothing keeps running."""
        threads = [job.thread for job in self.by_name.values()]
        for job in list(self.by_name.values()):
            self.forget(job)
        for thread in threads:
            if thread is not None:
                thread.join(10)
