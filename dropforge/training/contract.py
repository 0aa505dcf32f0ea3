"""What a training node is given, and what it leaves behind: the files both sides of a run agree on."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from dropforge.domain.errors import RunFailed
from dropforge.domain.runs import RunSpec, RunState

# Names inside `NodeSpec.output_dir`.
MODEL = "model.onnx"
METRICS = "metrics.json"
EVIDENCE = "evidence.json"
GOLDEN = "golden.json"
RESULT = "result.json"
# Of a run that searched for parameters: what was tried.
SWEEP = "sweep.json"
# Of a run on a mounted folder: what was printed, and what survives a restart.
LOG = "log.txt"
CHECKPOINTS = "checkpoints"

# What a sweep compares its trials by; higher is better, whatever the metric.
VALIDATION_SCORE = "dropforge_validation_score"


class ExitCode(IntEnum):
    """How the node ended. Anything else is a fault of the node or of the machine."""

    FINE = 0
    COMMAND_FAILED = 10
    NO_MODEL = 11
    MODEL_UNUSABLE = 12
    DATA_UNUSABLE = 13
    SPEC_WRONG = 14
    # 128 + SIGTERM, as a shell reports it.
    CANCELLED = 143


class NodeFailed(RunFailed):
    """The run ends without a usable model; `exit_code` says in which way, the message is the reason for a person."""

    def __init__(self, exit_code: ExitCode, message: str, **about: object) -> None:
        super().__init__(message, **about)
        self.exit_code = exit_code


@dataclass(frozen=True)
class NodeSpec:
    """`spec.json`: the run, and where its files lie on this node. Paths are absolute."""

    run: RunSpec
    # The user's pipeline folder: the working directory of the command.
    code_dir: str
    # The champion's ONNX file, when `run.champion` is set.
    champion_model: str | None
    output_dir: str
    work_dir: str
    # The ONNX file that is measured, when `run.challenger` is set; then no command is run.
    challenger_model: str | None = None
    # What the command finds again when the run is started again; None: a place that does not outlive the node.
    checkpoints_dir: str | None = None
    # Among the processes of one run: the first alone scores and reports, the others only run the command.
    rank: int = 0
    # The parameters of the one trial of the sweep that this is; None: the node makes all trials itself.
    trial: dict[str, Any] | None = None
    # From SIGTERM to SIGKILL for the command.
    grace_seconds: float = 5.0


@dataclass(frozen=True)
class NodeResult:
    """`result.json`: written once, as the last thing the node does."""

    run: str
    state: RunState
    exit_code: int
    # One sentence for a person; None when the run succeeded.
    reason: str | None
    # Wall-clock seconds of the whole process, and of the user's command within them.
    seconds: float
    command_seconds: float
    model_sha256: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    # The columns that the model was trained with, in order.
    features: tuple[str, ...] = ()
