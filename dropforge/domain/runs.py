"""Runs: what was asked of a training run, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from dropforge.domain.causes import Cause


class RunState(Enum):
    SUBMITTED = "submitted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})


@dataclass(frozen=True)
class ChampionRef:
    """A model version that a run measures: as a rule the one that answers now, which a challenger has to beat."""

    model: str
    version: int
    artifact: str
    sha256: str
    # The columns it was trained with, in order; empty: nobody knows, and the run's own are taken for them.
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationPlan:
    """How champion and challenger are compared; see `spec.Evaluation` for what each value means."""

    metric: str
    block: str
    holdout_blocks: int
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepPlan:
    """A search for the best parameters; see `spec.Sweep`. Trials are compared by `EvaluationPlan.metric` on the newest part
    of the training rows, never on the holdout, which stays unseen until the best one meets the champion."""

    trials: int
    parallel: int
    # `random`, `bayesian` or `grid`.
    sampler: str
    # By parameter: `{"choice": [...]}`, or `{"min": 1e-4, "max": 1e-1, "log": true, "int": false}`.
    space: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RunSpec:
    """Everything a training node needs, as names, URIs and versions. Equal specs are the same run."""

    run: str
    pipeline: str
    dataset: str
    dataset_version: int
    table_uri: str
    table_version: int
    code: str
    code_sha256: str
    command: tuple[str, ...]
    label: str | None
    event_time: str | None
    # Columns the model may see, in order; empty: every column but the label and the event time.
    features: tuple[str, ...]
    evaluation: EvaluationPlan
    seed: int
    timeout_seconds: int
    parameters: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    compute: dict[str, Any] = field(default_factory=dict)
    champion: ChampionRef | None = None
    tracking_uri: str | None = None
    # A model version that is measured against the champion; then nothing is trained, registered or promoted.
    challenger: ChampionRef | None = None
    sweep: SweepPlan | None = None


@dataclass(frozen=True)
class RunStatus:
    """What the compute says of a run. `reason` is one sentence for a person, set when the run did not succeed."""

    run: str
    state: RunState
    reason: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    # Where a person can watch it, if there is such a place.
    url: str | None = None


@dataclass(frozen=True)
class RunResult:
    """What a successful run left behind, as artifact names."""

    run: str
    model: str
    model_sha256: str
    evidence: str
    metrics: dict[str, float]
    # Hashes and versions of what ran: code, packages, Python, platform.
    environment: dict[str, Any]
    # Wall-clock seconds of the training process itself, from its first instruction to its last.
    seconds: float
    # Requests with the model's answers to them, for the server to ask it before it serves.
    golden: str | None = None
    # The columns that the model was trained with, in order; empty for a run from before they were told.
    features: tuple[str, ...] = ()


class RunOutcome(Enum):
    """What became of the run's model."""

    PROMOTED = "promoted"
    KEPT_CHAMPION = "kept_champion"
    WAITING_FOR_ANSWER = "waiting_for_answer"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    NO_MODEL = "no_model"
    # A model version was measured and nothing else: see `RunSpec.challenger`.
    EVALUATED = "evaluated"


@dataclass(frozen=True)
class RunRecord:
    """A run as the ledger keeps it: what was asked, how it went, what was decided and why. Times are aware UTC."""

    spec: RunSpec
    planned_at: datetime
    # When the batch behind the dataset version was due, and when its newest file arrived.
    due_at: datetime | None = None
    newest_at: datetime | None = None
    state: RunState = RunState.SUBMITTED
    reason: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    # Wall-clock seconds of the training process itself.
    seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    verdict: dict[str, Any] | None = None
    # One readable line each.
    verdict_summary: str | None = None
    decision: str | None = None
    decision_reason: str | None = None
    model_version: int | None = None
    outcome: RunOutcome | None = None
    live_at: datetime | None = None
    # Why it was run.
    cause: Cause | None = None
