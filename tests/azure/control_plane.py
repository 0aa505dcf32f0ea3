"""Azure's control plane on loopback, for tests: ARM and Azure ML as far as the platform uses them. See README.md."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.azure import arm_types
from tests.azure.endpoints import Endpoints
from tests.azure.faults import Faults
from tests.azure.history import History
from tests.azure.identity import Identity
from tests.azure.jobs import Jobs, Machine
from tests.azure.mounts import Mounts
from tests.azure.places import PROVIDER, WORKSPACE
from tests.azure.resources import (
    ASSETS,
    Assets,
    Store,
    check_names,
    datastores,
    forbidden,
    no_place,
    not_found,
    page,
    patterned,
    workspace,
)
from tests.azure.run_events import RunEvents
from tests.azure.running import run_command
from tests.azure.scoring import Scoring
from tests.azure.server import serving
from tests.azure.sweeps import run_sweep
from tests.azure.wire import Answer, Call, Refused, without_nulls
from tests.azurite import ACCOUNT, Azurite

# Integers in Azure; a fraction, which every client of azure-core takes, so that tests do not wait.
RETRY_AFTER = "0.05"
_COMPUTES = {"cpu-cluster": "Dedicated", "gpu-cluster": "LowPriority"}


@dataclass(frozen=True)
class Recorded:
    method: str
    path: str
    api_version: str
    body: Any
    status: int
    # Of the body's type; empty for what has none.
    problems: tuple[str, ...] = ()
    # What `faults` did to it.
    fault: str | None = None


class ControlPlane:
    """What the tests see. All of it may be read at any time."""

    workspace = WORKSPACE

    def __init__(self, storage: Azurite | None, folder: Path, *, operation_seconds: float) -> None:
        self.url = ""
        self.ca_file = Path()
        self.requests: list[Recorded] = []
        self.identity = Identity()
        self.faults = Faults(self.identity, RETRY_AFTER)
        self.store = Store(operation_seconds=operation_seconds, retry_after=RETRY_AFTER)
        self._account = ACCOUNT if storage is not None else "nostorage"
        self._events = RunEvents()
        self._jobs = Jobs(self.store, self.faults, self._events)
        self._assets = Assets(self.store, self._events)
        self._endpoints = Endpoints(self.store, self.faults)
        self._history = History(self._jobs)
        self._scoring = Scoring(self.store, self._endpoints)
        self._jobs.runners = {"Command": run_command, "Sweep": run_sweep}
        self._jobs.mounts = Mounts(self.store, storage.connection_string if storage else None, self._jobs.output_uri)
        self._folder = folder

    def listens(self, url: str, ca_file: Path, machine: Machine) -> None:
        self.url, self.ca_file = url, ca_file
        self.identity.url = self.store.base = self._history.base = url
        self._jobs.machine = machine
        self._jobs.issue_token = lambda: self.identity.issue(url, int(time.time()) + 3600)
        datastores(self.store, self._account)
        for name, priority in _COMPUTES.items():
            self.add_compute(name, priority=priority)

    # --- what a test asks for

    def environment(self) -> dict[str, str]:
        """The variables that lead azure-ai-ml and azure-identity here."""
        return {
            "ARM_CLOUD_METADATA_URL": f"{self.url}/metadata/endpoints?api-version=2019-05-01",
            # azure-ai-ml keeps the cloud it has found first in this variable; of another control plane it would be wrong.
            "AZUREML_CURRENT_CLOUD": self.cloud,
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
            "SSL_CERT_FILE": str(self.ca_file),
            "IDENTITY_ENDPOINT": f"{self.url}/msi/token",
            "IDENTITY_HEADER": self.identity.header,
            "NO_PROXY": "127.0.0.1,localhost",
        }

    @property
    def cloud(self) -> str:
        return f"Test{self.url.rsplit(':', 1)[-1]}"

    @property
    def invalid(self) -> list[str]:
        """What is wrong with the bodies that were sent, of all requests."""
        return [
            f"{one.method} {one.path} ({one.api_version}): {problem}"
            for one in self.requests
            for problem in one.problems
        ]

    @property
    def jobs(self) -> dict[str, Any]:
        return self._jobs.by_name

    @property
    def events(self) -> list[dict[str, Any]]:
        """What Event Grid would deliver, in order; in its own schema."""
        return self._events.told

    @property
    def models(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By name and version."""
        return self._versions("models")

    @property
    def environments(self) -> dict[str, dict[str, dict[str, Any]]]:
        return self._versions("environments")

    @property
    def endpoints(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.store.under(f"{WORKSPACE}/onlineEndpoints")}

    def deployments(self, endpoint: str) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.store.under(f"{WORKSPACE}/onlineEndpoints/{endpoint}/deployments")}

    @property
    def mirrored(self) -> dict[tuple[str, str], int]:
        """How many calls were copied, by endpoint and deployment."""
        return self._scoring.mirrored

    def _versions(self, collection: str) -> dict[str, dict[str, dict[str, Any]]]:
        found = self.store.under(f"{WORKSPACE}/{collection}")
        return {one["name"]: {v["name"]: v for v in self.store.under(f"{one['id']}/versions")} for one in found}

    def add_compute(self, name: str, *, priority: str = "Dedicated") -> str:
        """A cluster; its ARM id."""
        scale = {"minNodeCount": 0, "maxNodeCount": 4, "nodeIdleTimeBeforeScaleDown": "PT2M"}
        inner = {"vmSize": "STANDARD_DS3_V2", "vmPriority": priority, "scaleSettings": scale}
        body = {"location": "westeurope", "properties": {"computeType": "AmlCompute", "properties": inner}}
        made = self.store.put(f"{WORKSPACE}/computes/{name}", body, "computes")
        made["properties"]["provisioningState"] = "Succeeded"
        return str(made["id"])

    def scoring_key(self, endpoint: str) -> str:
        return self._endpoints.keys(endpoint)["primaryKey"]

    def serve(self, deployment: str, url: str, endpoint: str | None = None) -> None:
        """This deployment answers what is asked of it from the server at `url`."""
        self._scoring.serve(deployment, url, endpoint)

    def wait(self, job: str, *, seconds: float = 30) -> Any:
        """The job, once it has ended."""
        deadline = time.monotonic() + seconds
        while not self.jobs[job].ended:
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job} is still {self.jobs[job].status} after {seconds} s")
            time.sleep(0.01)
        return self.jobs[job]

    def reset(self) -> None:
        """As new: nothing registered, nothing recorded, no fault; jobs that run are ended."""
        self._jobs.stop()
        for left in self._folder.iterdir():
            shutil.rmtree(left, ignore_errors=True)
        with self.store.lock:
            self.faults.clear()
            self.requests.clear()
            self.events.clear()
            self.store.clear()
            self._scoring.clear()
            self.listens(self.url, self.ca_file, self._jobs.machine)

    def close(self) -> None:
        self._jobs.stop()
        self._jobs.mounts.close()

    # --- the calls

    def answered(self, call: Call) -> Answer:
        fault = self.faults.of(call) if _can_fail(call) else None
        problems: list[str] = []
        if fault in ("throttled", "unavailable", "lost_before"):
            answer = self.faults.answer(fault)
        else:
            try:
                problems = self._problems(call)
                answer = self._route(call)
            except Refused as refused:
                answer = refused.answer
            except Exception as error:  # noqa: BLE001  a bug here must be seen in the test's failure, not as a hang
                answer = Answer(500, {"error": {"code": "ControlPlaneBug", "message": repr(error)}})
            if fault == "lost_after":
                answer = self.faults.answer(fault)
        self._record(call, 0 if answer.lost else answer.status, problems, fault)
        return answer

    def _record(self, call: Call, status: int, problems: list[str], fault: str | None) -> None:
        try:
            body = call.json()
        except Refused:
            body = call.body[:1000].decode("latin1")
        version = call.query.get("api-version", "")
        self.requests.append(Recorded(call.method, call.path, version, body, status, tuple(problems), fault))

    def _problems(self, call: Call) -> list[str]:
        """What the official type says against the body. What azure-ai-ml itself sends otherwise (see README.md) is not
        excused: there is a way around each."""
        kind = resource_type(call.path)
        if call.method not in ("PUT", "PATCH") or kind is None:
            return []
        # To ARM a null is the same as nothing.
        body, version = without_nulls(call.json()), call.query.get("api-version", "")
        return arm_types.problems(kind, version, body, partial=call.method == "PATCH")

    def _route(self, call: Call) -> Answer:
        path = call.path.lower()
        if path.startswith("/score/"):
            return self._scoring.answer(call)
        with self.store.lock:
            if path == "/metadata/endpoints":
                return Answer(200, [self._cloud()])
            if path == "/msi/token":
                return self.identity.token(call)
            if path.startswith("/artifact/"):
                return self._history.artifact(call)
            if path == "/discovery":
                return self._history.discovery()
            if path.startswith(("/history/", "/mlflow/")):
                self.identity.check(call, data_plane=True)
                return self._history.answer(call) if path.startswith("/history/") else self._history.mlflow(call)
            self.identity.check(call)
            if "api-version" not in call.query:
                raise Refused(
                    400,
                    "MissingApiVersionParameter",
                    "The api-version query parameter (?api-version=) is required for all requests.",
                )
            return self._arm(call)

    def _arm(self, call: Call) -> Answer:
        path = call.path.lower()
        if "/mfeoperation" in path:
            return self.store.operation(call)
        if "/jobcancellations/" in path:
            return self._jobs.cancellation(call.path.rsplit("/", 1)[1], RETRY_AFTER)
        found = patterned(call.path)
        if found is None:
            raise no_place(call.path)
        if self.faults.forbidden:
            raise forbidden(call)
        segments = (found["rest"] or "").split("/")
        check_names(call, segments)
        match [segments[0].lower(), *segments[1:]]:
            case [""]:
                return Answer(200, workspace(self.url, self._account))
            case ["jobs", *rest]:
                return self._jobs.answer(call, rest)
            case [collection, name, "versions", *rest] if collection in ASSETS and len(rest) < 2:
                return self._assets.version(call, collection, name, rest[0] if rest else None)
            case [collection, *rest] if collection in ASSETS and len(rest) < 2:
                return self._assets.container(call, collection, rest[0] if rest else None)
            case ["onlineendpoints", *rest]:
                return self._endpoint(call, rest)
            case [("computes" | "datastores") as collection, *rest] if len(rest) < 2:
                return self._kept(call, collection, rest[0] if rest else None)
        raise not_found(call.path)

    def _endpoint(self, call: Call, segments: list[str]) -> Answer:
        match [segment.lower() if at != 0 else segment for at, segment in enumerate(segments)]:
            case []:
                return self._endpoints.endpoint(call, None)
            case [name]:
                return self._endpoints.endpoint(call, name)
            case [name, "listkeys"] if call.method == "POST":
                return self._endpoints.list_keys(name)
            case [name, "token"] if call.method == "POST":
                return self._endpoints.token(name)
            case [name, "deployments"]:
                return self._endpoints.deployment(call, name, None)
            case [name, "deployments", _]:
                return self._endpoints.deployment(call, name, segments[2])
            case [name, "deployments", _, "getlogs"] if call.method == "POST":
                self.store.need(f"{WORKSPACE}/onlineEndpoints/{name}/deployments/{segments[2]}")
                return Answer(200, {"content": "the container's log"})
        raise not_found(call.path)

    def _kept(self, call: Call, collection: str, name: str | None) -> Answer:
        where = f"{WORKSPACE}/{collection}"
        if name is None:
            return page(self.store.under(where), call, self.url)
        if call.method == "GET":
            return Answer(200, self.store.need(f"{where}/{name}"))
        if call.method == "DELETE":
            return Answer(200 if self.store.resources.pop(f"{where}/{name}".lower(), None) else 204)
        old = self.store.get(f"{where}/{name}")
        made = self.store.put(f"{where}/{name}", without_nulls(call.json()), collection)

        def ready() -> None:
            made["properties"]["provisioningState"] = "Succeeded"

        if collection == "computes":
            return self.store.start(made, 200 if old else 201, "Updating" if old else "Creating", ready)
        return Answer(200 if old else 201, made)

    def _cloud(self) -> dict[str, Any]:
        return {
            "name": self.cloud,
            # The SDK makes the audience of Azure ML out of its ending: https://ml.azure.com.
            "portal": "https://portal.azure.com/",
            "resourceManager": f"{self.url}/",
            "authentication": {
                "loginEndpoint": "https://login.microsoftonline.com/",
                "audiences": [f"{self.url}/"],
                "tenant": "common",
            },
            "suffixes": {"storage": "core.windows.net"},
        }


def resource_type(path: str) -> str | None:
    """Of what lies at this path of ARM; None where there is no type of it."""
    found = patterned(path)
    if found is None:
        return None
    segments = (found["rest"] or "").split("/")
    if len(segments) % 2:
        return None
    kind = "/".join([f"{PROVIDER}/workspaces", *segments[::2]])
    return kind if arm_types.known(kind) else None


def _can_fail(call: Call) -> bool:
    """What the SDK reads without a second try, and what is no part of ARM, has faults of its own."""
    return not call.path.lower().startswith(("/metadata/", "/msi/", "/mlflow/", "/score/"))


@contextmanager
def control_plane(
    storage: Azurite | None = None,
    *,
    image: Path | None = None,
    queue_seconds: float = 0.0,
    grace_seconds: float = 2.0,
    operation_seconds: float = 0.05,
) -> Iterator[ControlPlane]:
    """A control plane of its own, with one workspace. Jobs find their commands in `image` first, a folder of programs;
    by default in the one of this Python. `grace_seconds` is the time between SIGTERM and SIGKILL."""
    folder = Path(mkdtemp(prefix="aml-"))
    plane = ControlPlane(storage, folder, operation_seconds=operation_seconds)
    try:
        with serving(plane.answered) as (url, ca_file):
            tracking = {"MLFLOW_TRACKING_URI": f"{url}/mlflow", "MLFLOW_TRACKING_SERVER_CERT_PATH": str(ca_file)}
            programs = image or Path(sys.executable).parent
            plane.listens(url, ca_file, Machine(programs, folder, queue_seconds, grace_seconds, tracking))
            try:
                yield plane
            finally:
                plane.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def used(plane: ControlPlane) -> Iterator[None]:
    """In this process too: its variables are set for the time."""
    before = {name: os.environ.get(name) for name in plane.environment()}
    os.environ.update(plane.environment())
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
