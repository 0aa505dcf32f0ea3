"""The data plane of Azure ML beside ARM: run history with its logs, and where MLflow logs what a run measured."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from tests.azure.jobs import Job, Jobs
from tests.azure.places import LOCATION
from tests.azure.resources import not_found
from tests.azure.wire import Answer, Call, Refused


class History:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self.base = ""

    def discovery(self) -> Answer:
        here = dict.fromkeys(("api", "history", "experimentation", "modelmanagement", "mlflow", "studio"), self.base)
        return Answer(200, {**here, "catalog": f"https://catalog.{LOCATION}.azureml.ms"})

    def answer(self, call: Call) -> Answer:
        """`/history/v1.0{workspace}[/experiments/{e}]/runs/{run}[/details|/children]`."""
        segments = call.path.strip("/").split("/")
        at = [segment.lower() for segment in segments].index("runs")
        if at + 1 == len(segments):
            raise not_found(call.path)
        job = self._jobs.by_name.get(segments[at + 1])
        if job is None:
            raise not_found(f"runs/{segments[at + 1]}")
        rest = segments[at + 2 :]
        if call.method == "PATCH" and not rest:
            return self._patch(job, call.json())
        if rest == ["details"]:
            return Answer(200, self._details(job))
        if rest == ["children"]:
            children = [self._jobs.by_name[name] for name in job.children if name in self._jobs.by_name]
            return Answer(200, {"value": [self._run(child) for child in children]})
        return Answer(200, self._run(job))

    def _patch(self, job: Job, body: dict[str, Any]) -> Answer:
        given = job.resource["properties"]
        for key in ("tags", "properties"):
            given.setdefault(key, {}).update(body.get(key) or {})
        for key, name in (("displayName", "displayName"), ("description", "description")):
            if key in body:
                given[name] = body[key]
        if "hidden" in body:
            given["isArchived"] = body["hidden"]
        return Answer(200, self._run(job))

    def _run(self, job: Job) -> dict[str, Any]:
        given = job.resource["properties"]
        return {
            "runId": job.name,
            "parentRunId": job.parent,
            "rootRunId": job.parent or job.name,
            "experimentId": self._jobs.experiment(given["experimentName"]),
            "status": job.status,
            "createdUtc": job.created_at,
            "startTimeUtc": job.started_at,
            "endTimeUtc": job.ended_at,
            "displayName": given.get("displayName"),
            "runType": "sweep" if given["jobType"] == "Sweep" else "azureml.scriptrun",
            "tags": given.get("tags", {}),
            "properties": given.get("properties", {}),
            "target": str(given.get("computeId", "")).rsplit("/", 1)[-1],
            "error": self._error(job),
            "warnings": [],
        }

    def _details(self, job: Job) -> dict[str, Any]:
        told = self._run(job)
        told["logFiles"] = {
            # A link with a signature of its own, as those into the workspace's storage.
            name: f"{self.base}/artifact/{quote(job.name)}/{name}?sv=2024-11-04&sr=b&sig=test"
            for name in sorted(job.logs)
        }
        told["runDefinition"] = {"script": None, "command": job.resource["properties"].get("command")}
        return told

    def _error(self, job: Job) -> dict[str, Any] | None:
        if job.error is None:
            return None
        code, message = job.error
        inner = {"code": code, "message": message, "messageParameters": {}, "details": []}
        kind = (
            "UserError"
            if code in ("UserError", "ImagePullFailure") or code.startswith("ScriptExecution")
            else "ServiceError"
        )
        return {
            "error": {**inner, "code": kind, "innerError": {"code": code}},
            "environment": LOCATION,
            "time": job.ended_at,
        }

    def artifact(self, call: Call) -> Answer:
        """A log, as a blob: whole, or the range that is asked for."""
        _, _, name, log = call.path.split("/", 3)
        job = self._jobs.by_name.get(name)
        path = job.logs.get(log) if job else None
        if path is None or not path.exists():
            return Answer(404, b"", {"x-ms-error-code": "BlobNotFound"})
        if "sig" not in call.query:
            return Answer(403, b"", {"x-ms-error-code": "AuthenticationFailed"})
        data = path.read_bytes()
        asked = call.headers.get("range", call.headers.get("x-ms-range", ""))
        if not asked.startswith("bytes="):
            return Answer(200, data, {"Accept-Ranges": "bytes"}, "text/plain")
        first, _, last = asked.removeprefix("bytes=").partition("-")
        if int(first) >= len(data):
            return Answer(416, b"", {"x-ms-error-code": "InvalidRange", "Content-Range": f"bytes */{len(data)}"})
        end = min(int(last), len(data) - 1) if last else len(data) - 1
        part = data[int(first) : end + 1]
        return Answer(206, part, {"Content-Range": f"bytes {first}-{end}/{len(data)}"}, "text/plain")

    def mlflow(self, call: Call) -> Answer:
        """The tracking of MLflow's REST API 2.0, as much as Azure ML has: no logged models, no traces."""
        what = call.path.rsplit("/api/2.0/mlflow/", 1)[-1]
        given: dict[str, Any] = {**call.query, **(call.json() or {})} if call.body else dict(call.query)
        if what.startswith("experiments/"):
            name = given.get("experiment_name", "Default")
            told = {"experiment_id": given.get("experiment_id", self._jobs.experiment(name)), "name": name}
            return Answer(200, {"experiment": {**told, "artifact_location": "", "lifecycle_stage": "active"}})
        job = self._jobs.by_name.get(str(given.get("run_id") or given.get("run_uuid")))
        if job is None:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"no run {given.get('run_id')} and no {what}")
        match what:
            case "runs/get":
                return Answer(200, {"run": self._mlflow_run(job)})
            case "runs/update":
                return Answer(200, {"run_info": self._mlflow_run(job)["info"]})
            case "runs/log-metric":
                _metric(job, given)
            case "runs/log-parameter":
                job.parameters[given["key"]] = given["value"]
            case "runs/set-tag":
                job.tags[given["key"]] = given["value"]
            case "runs/log-batch":
                for metric in given.get("metrics", []):
                    _metric(job, metric)
                job.parameters.update({one["key"]: one["value"] for one in given.get("params", [])})
                job.tags.update({one["key"]: one["value"] for one in given.get("tags", [])})
            case _:
                # As Azure ML: `logged-models` and others of MLflow 3 are not there.
                raise Refused(404, "ENDPOINT_NOT_FOUND", f"no {what}")
        return Answer(200, {})

    def _mlflow_run(self, job: Job) -> dict[str, Any]:
        artifacts = job.folder / "artifacts"
        artifacts.mkdir(parents=True, exist_ok=True)
        given = job.resource["properties"]
        return {
            "info": {
                "run_id": job.name,
                "run_uuid": job.name,
                "run_name": given.get("displayName") or job.name,
                "experiment_id": self._jobs.experiment(given["experimentName"]),
                "status": "RUNNING" if not job.ended else "FINISHED",
                "start_time": int(time.time() * 1000),
                "lifecycle_stage": "active",
                "artifact_uri": artifacts.as_uri(),
            },
            "data": {
                "metrics": [{"key": key, **values[-1]} for key, values in job.metrics.items()],
                "params": [{"key": key, "value": value} for key, value in job.parameters.items()],
                "tags": [{"key": key, "value": value} for key, value in job.tags.items()],
            },
        }


def _metric(job: Job, given: dict[str, Any]) -> None:
    told = {"value": float(given["value"]), "timestamp": given.get("timestamp", 0), "step": int(given.get("step") or 0)}
    job.metrics.setdefault(given["key"], []).append(told)
