"""A world in memory with a clock of its own, in which flows run as plain generators: a year of drops in milliseconds.

Only wiring and clock are replaced: the flows, the activities' table and the steps are the ones that ship.
"""

from __future__ import annotations

import heapq
import io
import itertools
import zipfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dropforge.adapters.memory.artifacts import MemoryArtifacts
from dropforge.adapters.memory.compute import MemoryCompute
from dropforge.adapters.memory.drops import MemoryDrops
from dropforge.adapters.memory.events import MemoryEvents
from dropforge.adapters.memory.ledger import MemoryLedger
from dropforge.adapters.memory.replies import MemoryReplies
from dropforge.adapters.memory.serving import MemoryServing
from dropforge.adapters.memory.tables import MemoryTables
from dropforge.adapters.registry import LedgerRegistry
from dropforge.domain.blobs import parse_url
from dropforge.domain.endpoints import Desired, ReplicaState
from dropforge.domain.runs import RunSpec
from dropforge.domain.verdicts import BlockScore, Evidence
from dropforge.ports import Json, Ports
from dropforge.settings import Settings
from dropforge.steps import alerts, approvals, books, canary, deploy, intake, pipelines, storage, train
from dropforge.wire import to_json
from orchestrators.deploy import deploy as deploy_flow
from orchestrators.intake import intake as intake_flow
from orchestrators.respond import respond as respond_flow
from orchestrators.train import train as train_flow

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
FLOWS: dict[str, Callable[[Any], Any]] = {
    "intake": intake_flow,
    "train": train_flow,
    "deploy": deploy_flow,
    "respond": respond_flow,
}

YAML = """
name: demo
dataset:
  format: csv
  label: y
batching: {quiet_period: 10s, max_wait: 1m, max_files: 3}
training:
  command: python train.py
evaluation: {metric: log_loss}
"""


# ------------------------------------------------------------------------------------------------ tasks of a flow
@dataclass
class Task:
    result: Any = None
    done: bool = False


@dataclass
class Activity(Task):
    name: str = ""
    value: Any = None


@dataclass
class Sub(Task):
    name: str = ""
    value: Any = None
    id: str = ""


@dataclass
class Timer(Task):
    until: datetime = START
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Event(Task):
    name: str = ""


@dataclass
class AnyOf(Task):
    tasks: list[Task] = field(default_factory=list)


@dataclass
class Context:
    """As much of a DurableOrchestrationContext as the flows use."""

    instance_id: str
    asked: Any
    world: World
    again: Any = None

    @property
    def current_utc_datetime(self) -> datetime:
        return self.world.now

    def get_input(self) -> Any:
        return self.asked

    def call_activity_with_retry(self, name: str, _: object, value: Any) -> Task:
        return Activity(name=name, value=value)

    def call_sub_orchestrator(self, name: str, value: Any, instance_id: str) -> Task:
        return Sub(name=name, value=value, id=instance_id)

    def create_timer(self, until: datetime) -> Timer:
        return Timer(until=until)

    def wait_for_external_event(self, name: str) -> Event:
        return Event(name=name)

    def task_any(self, tasks: list[Task]) -> AnyOf:
        return AnyOf(tasks=tasks)

    def continue_as_new(self, value: Any) -> None:
        self.again = value


@dataclass
class Instance:
    id: str
    name: str
    context: Context
    code: Generator[Any, Any, Any]
    waiting: Task | None = None
    events: list[str] = field(default_factory=list)
    result: Any = None
    alive: bool = True
    parent: tuple[Instance, Sub] | None = None


class World:
    def __init__(self, folder: Path, yaml: str = YAML) -> None:
        self.now = START
        self.folder = folder
        ledger, artifacts = MemoryLedger(), MemoryArtifacts()
        self.compute = MemoryCompute(artifacts, on_submit=self._submitted, clock=lambda: self.now)
        self.drops = MemoryDrops(clock=lambda: self.now)
        self.serving = MemoryServing(clock=lambda: self.now, alive=timedelta(days=9999))
        self.events = MemoryEvents()
        self.replies = MemoryReplies()
        self.tables = MemoryTables()
        self.ports = Ports(
            ledger=ledger,
            drops=self.drops,
            artifacts=artifacts,
            tables=self.tables,
            compute=self.compute,
            registry=LedgerRegistry(ledger, artifacts),
            serving=self.serving,
            events={"memory": self.events},
            replies=self.replies,
        )
        self.settings = Settings("memory", folder, "drops", 30.0, 0.2, "0 * * * * *", None)
        self.instances: dict[str, Instance] = {}
        self.started: list[str] = []
        self._due: list[tuple[datetime, int, Callable[[], None]]] = []
        self._order = itertools.count()
        # What becomes of a submitted run; None: it goes on until the test ends it.
        self.trainer: Callable[[World, str], None] | None = lambda world, run: world.succeed(run, better=True)
        self.replica: Callable[[Desired], ReplicaState | None] = self.serves
        # How often each activity is run: 2 is a host that dies between the effect and its record, every time.
        self.times = 1
        self.log: list[str] = []
        pipelines.apply(self.ports, "demo", bundle_of({"pipeline.yaml": yaml, "train.py": "1"}), self.now)

    # -------------------------------------------------------------------------------------------- what people do
    def drop(self, path: str, text: str = "x,y\n1,0\n2,1\n", *, announce: int = 1) -> str:
        """A file appears, and is announced so many times."""
        drop = self.drops.write(path, text.encode())
        event = blob_created(drop.url, drop.etag, drop.size_bytes)
        for _ in range(announce):
            self.tell(event)
        return drop.url

    def tell(self, *events: object) -> None:
        """The events come in, in one delivery."""
        heeded = storage.heed(self.ports, events, "drops", self.now)
        for flow in heeded.start:
            self.start(flow)
        for error in heeded.failures.values():
            raise error

    def reconcile(self) -> Json:
        told = intake.reconcile(self.ports, None, "drops", self.now)
        for flow in told["start"]:
            self.start(flow)
        return told

    def sweep(self) -> None:
        """Every timer goes off."""
        self.reconcile()
        flows = [intake.sweep(self.ports), train.sweep(self.ports), deploy.sweep(self.ports), alerts.sweep(self.ports)]
        for flow in [each for found in flows for each in found]:
            self.start(flow)

    def succeed(self, run: str, *, better: bool, seconds: float = 5.0) -> None:
        gain = 0.05 if better else -0.05
        spec = train.record(self.ports, "demo", run).spec
        blocks = tuple(BlockScore(f"b{n}", None, 100, 0.5 + n * 0.001, 0.5 + n * 0.001 - gain) for n in range(10))
        against = "champion" if spec.champion else "baseline"
        champion = spec.champion.version if spec.champion else None
        evidence = Evidence("log_loss", True, against, champion, blocks, 900, 1000, 0, None, None)
        self.compute.succeed(run, model=f"model of {run}".encode(), evidence=to_json(evidence), seconds=seconds)

    # -------------------------------------------------------------------------------------------- the little host
    def start(self, flow: Json | None) -> None:
        if flow is None:
            return
        known = self.instances.get(flow["id"])
        if known is not None and known.alive:
            if flow.get("signal"):
                self.raise_event(flow["id"], flow["signal"])
            return
        self.started.append(flow["id"])
        self._launch(flow["flow"], flow["id"], flow["input"])

    def _launch(self, name: str, id_: str, value: Any, parent: tuple[Instance, Sub] | None = None) -> Instance:
        context = Context(id_, value, self)
        instance = Instance(id_, name, context, FLOWS[name](context), parent=parent)
        self.instances[id_] = instance
        self._soon(lambda: self._step(instance, None))
        return instance

    def raise_event(self, id_: str, name: str) -> None:
        instance = self.instances.get(id_)
        if instance is None or not instance.alive:
            return
        task = instance.waiting
        for each in task.tasks if isinstance(task, AnyOf) else [task]:
            if isinstance(each, Event) and each.name == name:
                self._settle(instance, task, each, True)
                return
        instance.events.append(name)

    def run(self, until: timedelta = timedelta(hours=12)) -> None:
        """Let time pass until nothing is left to do."""
        end = self.now + until
        while self._due and self._due[0][0] <= end:
            when, _, action = heapq.heappop(self._due)
            self.now = max(self.now, when)
            action()

    def _soon(self, action: Callable[[], None], when: datetime | None = None) -> None:
        heapq.heappush(self._due, (when or self.now, next(self._order), action))

    def _step(self, instance: Instance, value: Any) -> None:
        try:
            task = instance.code.send(value)
        except StopIteration as end:
            self._end(instance, end.value)
            return
        instance.waiting = task
        for each in task.tasks if isinstance(task, AnyOf) else [task]:
            self._begin(instance, task, each)

    def _begin(self, instance: Instance, outer: Task, task: Task) -> None:
        if isinstance(task, Activity):
            self._soon(lambda: self._settle(instance, outer, task, self._act(task)))
        elif isinstance(task, Timer):
            self._soon(lambda: None if task.cancelled else self._settle(instance, outer, task, None), task.until)
        elif isinstance(task, Sub):
            self._launch(task.name, task.id, task.value, (instance, task))
        elif isinstance(task, Event) and task.name in instance.events:
            instance.events.remove(task.name)
            self._soon(lambda: self._settle(instance, outer, task, True))

    def _settle(self, instance: Instance, outer: Task | None, task: Task, value: Any) -> None:
        if instance.waiting is not outer:
            return
        instance.waiting = None
        task.result, task.done = value, True
        self._soon(lambda: self._step(instance, task if isinstance(outer, AnyOf) else value))

    def _end(self, instance: Instance, result: Any) -> None:
        if instance.context.again is not None:
            again = Context(instance.id, instance.context.again, self)
            instance.context, instance.code = again, FLOWS[instance.name](again)
            self._soon(lambda: self._step(instance, None))
            return
        instance.result, instance.alive = result, False
        if instance.parent is not None:
            self._settle(instance.parent[0], instance.parent[1], instance.parent[1], result)

    def _act(self, task: Activity) -> Any:
        self.log.append(task.name)
        for _ in range(self.times):
            result = self._do(task.name, **task.value)
        return result

    def _do(self, name: str, **value: Any) -> Any:
        ports, now = self.ports, self.now
        pipeline = value.get("pipeline", "")
        match name:
            case "plan_intake":
                return intake.plan_intake(ports, pipeline, now)
            case "cut_batch":
                return intake.cut_batch(ports, pipeline, now)
            case "check_batch":
                return intake.check_batch(ports, pipeline, value["batch"], now)
            case "write_version":
                return intake.write_version(ports, pipeline, value["batch"], now)
            case "leave_intake":
                return intake.leave_intake(ports, pipeline, value["epoch"])
            case "wake_training":
                self.start(train.wake_training(ports, pipeline))
                return True
            case "plan_run":
                return train.plan_run(ports, pipeline, self.settings, now)
            case "submit_run":
                return train.submit_run(ports, pipeline, value["run"])
            case "check_run":
                return train.check_run(ports, pipeline, value["run"], now)
            case "judge_run":
                return train.judge_run(ports, pipeline, value["run"], now)
            case "conclude_run":
                return train.conclude_run(ports, pipeline, value["run"], value["outcome"], now)
            case "leave_training":
                return train.leave_training(ports, pipeline, value["epoch"])
            case "ask_person":
                return approvals.ask(ports, pipeline, value["run"], value["flow"], now)
            case "read_answer":
                return approvals.read_answer(ports, pipeline, value["run"], now)
            case "publish_deployment":
                why = {key: value[key] for key in ("cause", "rollback") if key in value}
                told = deploy.publish_deployment(
                    ports, pipeline, value["version"], value["run"], value["token"], self.settings, now, **why
                )
                self._replica_looks("demo")
                return told
            case "observe_deployment":
                self._replica_looks(value["endpoint"])
                return deploy.observe_deployment(ports, value["endpoint"], value["revision"], now)
            case "observe_canary":
                self._replica_looks("demo")
                return canary.observe_canary(ports, value["endpoint"], value["revision"], now)
            case "advance_deployment":
                told = canary.advance_deployment(ports, value["endpoint"], value["revision"], now)
                self._replica_looks("demo")
                return told
            case "confirm_deployment":
                return deploy.confirm_deployment(
                    ports, pipeline, value["version"], value["endpoint"], value["revision"], now
                )
            case "roll_back_deployment":
                told = deploy.roll_back_deployment(ports, value["endpoint"], value["revision"], value["reason"], now)
                self._replica_looks("demo")
                return told
            case "plan_response":
                return alerts.plan_response(ports, value["alert"], pipeline, self.settings, now)
            case "act_on_alert":
                done = alerts.act_on_alert(ports, value["alert"], pipeline, now)
                for flow in done["start"]:
                    self.start(flow)
                return done["detail"]
            case "conclude_response":
                for flow in alerts.conclude_response(ports, value["alert"], pipeline, value["detail"], now):
                    self.start(flow)
                return None
            case "note_trouble":
                return books.note_trouble(ports.ledger, pipeline, value["message"])
        raise AssertionError(f"no activity {name!r}")

    def _submitted(self, spec: RunSpec) -> None:
        if self.trainer is not None:
            self.trainer(self, spec.run)

    # -------------------------------------------------------------------------------------------- a replica
    def _replica_looks(self, endpoint: str) -> None:
        desired = self.serving.desired(endpoint)
        report = self.replica(desired) if desired is not None else None
        if report is not None:
            self.serving.report(report)

    def serves(self, desired: Desired) -> ReplicaState:
        return self.report(desired, desired.revision)

    def report(self, desired: Desired, revision: int, error: str | None = None) -> ReplicaState:
        versions = tuple(each.version for each in desired.deployments)
        return ReplicaState(
            "r1", desired.endpoint, revision, desired.revision, versions, True, 0, 0, 0, self.now, error=error
        )

    # -------------------------------------------------------------------------------------------- what there is
    def head(self) -> Json:
        return books.head(self.ports.ledger, "p.demo").value

    def champion(self) -> int | None:
        alias = self.ports.registry.alias("demo", "champion")
        return alias.version if alias else None

    def manifests(self) -> list[list[str]]:
        """The paths of the files of each dataset version."""
        found = []
        for version in range(1, self.head()["version"] + 1):
            batch = books.batch(
                self.ports.ledger, "p.demo", books.dataset_version(self.ports.ledger, "p.demo", version).batch
            )
            urls = [books.arrival(self.ports.ledger, "p.demo", each).url for each in batch.accepted]
            found.append([parse_url(url).path for url in urls])
        return found

    def runs(self) -> list[train.RunRecord]:
        return list(reversed(train.records(self.ports, "demo")))


def blob_created(url: str, etag: str, size: int, api: str = "") -> Json:
    """An event as Storage tells it. Without bytes, only the end of an upload in blocks says that the file is whole."""
    api = api or ("PutBlob" if size else "PutBlockList")
    return {
        "id": f"{api} of {etag}",
        "eventType": "Microsoft.Storage.BlobCreated",
        "data": {"api": api, "url": url, "eTag": etag, "contentLength": size},
    }


def bundle_of(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()
