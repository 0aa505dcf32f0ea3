"""What Azure ML tells Event Grid about runs and models, in the shape of Microsoft's samples."""

from __future__ import annotations

import uuid
from threading import Lock
from typing import Any

from tests.azure.places import PROVIDER, WORKSPACE, now


class RunEvents:
    """Runs that failed or were cancelled tell nothing, as the documentation of 2026-07 says."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.told: list[dict[str, Any]] = []

    def experiment(self, name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{WORKSPACE}/experiments/{name}"))

    def moved(self, run: str, properties: dict[str, Any], status: str) -> None:
        if status == "Running":
            self._tell("RunStatusChanged", run, properties, runStatus=status)
        if status == "Completed":
            self._tell("RunStatusChanged", run, properties, runStatus=status)
            self._tell("RunCompleted", run, properties)

    def registered(self, model: str, version: str, properties: dict[str, Any]) -> None:
        number = int(version) if version.isdigit() else version
        tags, more = dict(properties.get("tags", {})), dict(properties.get("properties", {}))
        data = {"ModelName": model, "ModelVersion": number, "ModelTags": tags, "ModelProperties": more}
        self._send("ModelRegistered", f"models/{model}:{version}", data)

    def _tell(self, what: str, run: str, properties: dict[str, Any], **more: str) -> None:
        experiment = properties.get("experimentName", "Default")
        data: dict[str, Any] = {
            "experimentId": self.experiment(experiment),
            "experimentName": experiment,
            "runId": run,
            "runType": None,
            "runTags": dict(properties.get("tags", {})),
            "runProperties": dict(properties.get("properties", {})),
        }
        self._send(what, f"experiments/{data['experimentId']}/runs/{run}", {**data, **more})

    def _send(self, what: str, subject: str, data: dict[str, Any]) -> None:
        told = {
            "topic": WORKSPACE,
            "subject": subject,
            "eventType": f"{PROVIDER}.{what}",
            "eventTime": now(),
            "id": str(uuid.uuid4()),
            "data": data,
            "dataVersion": "",
            "metadataVersion": "1",
        }
        with self._lock:
            self.told.append(told)
