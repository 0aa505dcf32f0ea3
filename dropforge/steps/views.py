"""What people and programs are shown, as values: the answers of the API take their schemas from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dropforge.domain.arrivals import Arrival
from dropforge.domain.causes import Cause
from dropforge.domain.datasets import DatasetVersion, Manifest
from dropforge.domain.endpoints import Deployment, ReplicaState
from dropforge.domain.models import ModelVersion
from dropforge.domain.runs import ChampionRef
from dropforge.ports import Problem


# ------------------------------------------------------------------------------------------------ pipelines
@dataclass(frozen=True)
class PipelineLine:
    """A pipeline on one line."""

    pipeline: str
    revision: int
    drop: str
    dataset_version: int | None
    live_run: str | None
    champion: int | None
    trouble: str | None
    paused: bool


@dataclass(frozen=True)
class Pipelines:
    """A page of pipelines, by name."""

    pipelines: tuple[PipelineLine, ...]
    next: str | None


@dataclass(frozen=True)
class PipelineDefinition:
    """A pipeline as it was last applied; the revision is its ETag."""

    pipeline: str
    revision: int
    applied_at: str
    # The folder of the drop container whose files belong to it.
    drop: str
    endpoint: str
    # The artifact that holds its folder.
    code: str
    code_sha256: str
    # Its pipeline.yaml.
    text: str


@dataclass(frozen=True)
class Applied:
    """What became of a folder that was sent."""

    pipeline: str
    revision: int


@dataclass(frozen=True)
class FileCounts:
    """Files that arrived, by state."""

    pending: int
    accepted: int
    quarantined: int
    superseded: int
    # Their bytes were in a dataset version already.
    unchanged: int


@dataclass(frozen=True)
class QuarantinedLine:
    """A file in quarantine, and the first rule it broke."""

    id: str
    url: str
    reason: str | None
    report: str | None


@dataclass(frozen=True)
class DatasetLine:
    """A dataset version on one line; `rows` came with it, `total_rows` are in the table."""

    version: int
    files: int
    rows: int
    total_rows: int
    created_at: str


@dataclass(frozen=True)
class RunLine:
    """A run on one line."""

    run: str
    dataset_version: int
    state: str
    reason: str | None
    seconds: float | None
    verdict: str | None
    summary: str | None
    decision: str | None
    decision_reason: str | None
    model_version: int | None
    outcome: str | None
    planned_at: str
    live_at: str | None


@dataclass(frozen=True)
class Endpoint:
    """What an endpoint should serve (deployments and their traffic in percent), and what its replicas say they do."""

    endpoint: str
    pipeline: str
    revision: int
    state: str
    reason: str | None
    deployments: tuple[Deployment, ...]
    replicas: tuple[ReplicaState, ...]


@dataclass(frozen=True)
class Question:
    """A question put to a person. `state`: open, answered, or expired (then the default stands as the answer)."""

    run: str
    pipeline: str
    question: str
    allowed: tuple[str, ...]
    # Who may answer; empty: whoever has the role.
    approvers: tuple[str, ...]
    asked_at: str
    expires_at: str
    # What nobody's answer means.
    default: str
    state: str
    answer: str | None
    by: str | None
    reason: str | None
    answered_at: str | None


@dataclass(frozen=True)
class Status:
    """How a pipeline stands."""

    pipeline: str
    revision: int
    drop: str
    files: FileCounts
    # The first of the files in quarantine.
    quarantined: tuple[QuarantinedLine, ...]
    # Number of the batch being worked on.
    batch: int | None
    dataset: DatasetLine | None
    live_run: str | None
    # What keeps a flow from going on, in one sentence; gone once it does.
    trouble: str | None
    # The newest ten.
    runs: tuple[RunLine, ...]
    champion: int | None
    endpoint: Endpoint | None
    questions: tuple[Question, ...]
    # Whether a flow of each kind is alive.
    busy: dict[str, bool]
    # Who holds it, and what storm control has to say; see docs/alerts.md.
    control: dict[str, Any]


# ------------------------------------------------------------------------------------------------ what it holds
@dataclass(frozen=True)
class Arrivals:
    """A page of files that arrived, in the order of their ids."""

    arrivals: tuple[Arrival, ...]
    next: str | None


@dataclass(frozen=True)
class QuarantineReport:
    """Why a file is in quarantine: every broken rule, with rows and values."""

    pipeline: str
    pipeline_revision: int
    url: str
    etag: str
    sha256: str | None
    rows: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Datasets:
    """A page of dataset versions, newest first."""

    datasets: tuple[DatasetVersion, ...]
    next: str | None


@dataclass(frozen=True)
class GoneLine:
    """A file that is no longer where it came from. The version keeps its rows, and the manifest its hash."""

    arrival: str
    url: str
    why: str
    gone_at: str


@dataclass(frozen=True)
class Dataset:
    """A dataset version, the manifest of the files that made it, and which of these are gone."""

    dataset: DatasetVersion
    manifest: Manifest
    gone: tuple[GoneLine, ...]


@dataclass(frozen=True)
class Runs:
    """A page of runs: those on the newest dataset version first."""

    runs: tuple[RunLine, ...]
    next: str | None


@dataclass(frozen=True)
class ModelLine:
    """A model version on one line."""

    version: int
    champion: bool
    run: str
    dataset_version: int
    verdict: str
    sha256: str
    created_at: str


@dataclass(frozen=True)
class Models:
    """A page of model versions, newest first."""

    models: tuple[ModelLine, ...]
    next: str | None


@dataclass(frozen=True)
class AliasLine:
    """A movable name on a model version, and where it pointed before (the last one last)."""

    alias: str
    version: int
    history: tuple[int, ...]


@dataclass(frozen=True)
class Aliases:
    """The aliases of a pipeline's model."""

    aliases: tuple[AliasLine, ...]


@dataclass(frozen=True)
class Endpoints:
    """A page of endpoints, by the name of their pipeline."""

    endpoints: tuple[Endpoint, ...]
    next: str | None


@dataclass(frozen=True)
class Questions:
    """A page of questions."""

    approvals: tuple[Question, ...]
    next: str | None


# ------------------------------------------------------------------------------------------------ commands
@dataclass(frozen=True)
class Accepted:
    """What came of a command. `repeated`: it was given before, and this is what was answered then."""

    id: str
    command: str
    pipeline: str
    state: str
    result: dict[str, Any]
    repeated: bool


@dataclass(frozen=True)
class Work:
    """What a command set going: a run or a deployment, and how that stands now."""

    kind: str
    id: str
    # Whether nothing more will happen to it.
    over: bool
    state: str
    reason: str | None = None


@dataclass(frozen=True)
class CommandView:
    """A command, what came of it, and how the work that it set going stands."""

    id: str
    command: str
    pipeline: str
    arguments: dict[str, Any]
    by: str
    cause: Cause
    asked_at: str
    # `working` until it is decided, then `done` or `refused`.
    state: str
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    work: Work | None


# ------------------------------------------------------------------------------------------------ why
@dataclass(frozen=True)
class CauseLine:
    """What made something happen, and when."""

    what: str
    at: str | None
    cause: Cause


@dataclass(frozen=True)
class MadeOf:
    """A dataset version behind a model, in short."""

    version: int
    files: int
    rows: int
    manifest: str


@dataclass(frozen=True)
class SourceLine:
    """A file of a dataset version, and the event that announced it."""

    arrival: str
    url: str
    sha256: str
    rows: int
    arrived_at: str
    event: str | None


@dataclass(frozen=True)
class Why:
    """From a model version back to everything behind it."""

    model: ModelVersion
    run: RunLine
    champion_then: ChampionRef | None
    dataset: DatasetVersion
    # The first files of that dataset version.
    files: tuple[SourceLine, ...]
    # The dataset versions whose rows it was trained on, oldest first.
    made_of: tuple[MadeOf, ...]
    # The events, commands and alerts behind it, oldest first.
    causes: tuple[CauseLine, ...] = field(default=())
    # The question that was put to a person about it, with the answer.
    approval: Question | None = None


# ------------------------------------------------------------------------------------------------ alerts and rules
@dataclass(frozen=True)
class Alerts:
    """A page of alerts, newest first."""

    alerts: tuple[dict[str, Any], ...]
    next: str | None


@dataclass(frozen=True)
class Misfits:
    """A page of what came in as an alert and is none, newest first."""

    misfits: tuple[dict[str, Any], ...]
    next: str | None


@dataclass(frozen=True)
class StorageEvents:
    """Storage events that brought no file, counted by kind; and the newest of those that make no sense."""

    counts: dict[str, int]
    misfits: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class DryRun:
    """What the rules would have done in the last so many days."""

    days: int
    pipelines: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Health:
    """The app answers, and so does its ledger."""

    status: str


@dataclass(frozen=True)
class ProblemDetails:
    """A refusal, as RFC 9457 says it; some say more, such as the ids they are about."""

    type: str
    title: str
    status: int
    detail: str
