"""`pipeline.yaml` as values: every key with its type, its default and what it means."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.config import JsonDict

from dropforge.domain.alerts import AlertAction, Until
from dropforge.domain.gate import Action, FirstRule
from dropforge.domain.names import NAME
from dropforge.spec.values import (
    Block,
    Column,
    ColumnName,
    Command,
    DimensionName,
    DropPrefix,
    Duration,
    Flag,
    Glob,
    Name,
    Number,
    Parameter,
    Pattern,
    Percents,
    Scalar,
    Scalars,
    Size,
    Text,
    Variable,
    Whole,
    Word,
    careful_action,
)

ColumnType: TypeAlias = Literal["string", "int", "float", "bool", "timestamp", "date"]
COLUMN_TYPES: tuple[str, ...] = get_args(ColumnType)
Severity: TypeAlias = Literal["Sev0", "Sev1", "Sev2", "Sev3", "Sev4"]


def _without_default(schema: JsonDict) -> None:
    schema.pop("default", None)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnSpec(_Section):
    """One column and what its values must be."""

    name: ColumnName = Field(description="The column's name in the file.")
    type: ColumnType | None = Field(
        default=None, description="What the values are; without it, what the first file holds."
    )
    nullable: Flag = Field(default=True, description="Whether a value may be missing.")
    min: Number | None = Field(default=None, description="The smallest value allowed; for int and float.")
    max: Number | None = Field(default=None, description="The largest value allowed; for int and float.")
    allowed: Scalars | None = Field(
        default=None, description="The only values allowed; for string, int, float and bool."
    )
    pattern: Pattern | None = Field(
        default=None, description="A regular expression that must match the whole value; for string."
    )
    unique: Flag = Field(default=False, description="Whether no value may occur twice in a file.")


class Dataset(_Section):
    """Where files are dropped, and what they must look like."""

    drop: DropPrefix = Field(
        # PipelineSpec, which knows the name, fills it in.
        default="",
        description="The folder of the drop container `drops` whose files belong to this pipeline. "
        "Default: the pipeline's name and a `/`.",
        json_schema_extra=_without_default,
    )
    format: Literal["csv", "parquet", "jsonl"] = Field(description="The format of every dropped file.")
    columns: tuple[ColumnSpec, ...] = Field(
        default=(), description="The columns and their rules. Without any, the first accepted file decides."
    )
    extra_columns: Literal["keep", "drop", "refuse"] = Field(
        default="keep",
        description="What happens to columns of a file that are not declared: keep them, drop them, "
        "or refuse the file.",
    )
    label: Column | None = Field(
        default=None, description="The column to predict. Default: the last column of the first accepted file."
    )
    event_time: Column | None = Field(
        default=None,
        description="The column that says when a row happened; timestamp or date. Default: when its file arrived.",
    )
    min_rows: Whole = Field(default=1, ge=1, description="A file with fewer rows is refused.")
    max_bytes: Size = Field(
        default=2 * 1024**3,
        description="A larger file is refused.",
    )


class Batching(_Section):
    """Which files become one dataset version together."""

    quiet_period: Duration = Field(
        default=timedelta(seconds=10), description="A batch is cut once no file has arrived for this long."
    )
    max_wait: Duration = Field(
        default=timedelta(minutes=15), description="A batch is cut this long after its first file, quiet or not."
    )
    max_files: Whole = Field(default=500, ge=1, le=1000, description="A batch is cut when it holds so many files.")


class Compute(_Section):
    """Where training runs. Keys that are not listed here reach the compute as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    target: Literal["local", "azureml", "databricks"] = Field(
        default="local", description="A process on this machine, Azure ML, or Databricks."
    )
    timeout: Duration = Field(default=timedelta(hours=1), description="A run that takes longer is cancelled.")


class Axis(_Section):
    """What a sweep tries for one parameter: `choice`, or numbers from `min` to `max`."""

    choice: Scalars | None = Field(default=None, description="The values to try.")
    min: Number | None = Field(default=None, description="The smallest number to try.")
    max: Number | None = Field(default=None, description="The largest number to try.")
    log: Flag = Field(
        default=False,
        description="Whether numbers are spread by their order of magnitude: as many between 0.001 and 0.01 as between "
        "0.01 and 0.1.",
    )
    int: Flag = Field(default=False, description="Whether only whole numbers are tried.")


class Sweep(_Section):
    """A search for the parameters to train with, in every run. Trials are compared by `evaluation.metric` on the newest
    part of the training rows; see [the training node](training-node.md)."""

    parameters: dict[Parameter, Axis] = Field(min_length=1, description="What to try, by the parameter's name.")
    trials: Whole = Field(default=20, ge=1, le=1000, description="How many sets of parameters are tried, at most.")
    parallel: Whole = Field(default=1, ge=1, le=100, description="How many of them at once.")
    sampler: Literal["random", "bayesian", "grid"] = Field(
        default="random",
        description="How they are chosen: at random, in the light of those before (`bayesian`), or every combination in "
        "turn (`grid`; every parameter needs a `choice`).",
    )


class Training(_Section):
    """How a model is made."""

    command: Command = Field(
        description="What makes the model, run in the pipeline's folder: a command line or a list of words. "
        "A first word `python` is the Python that the node itself runs on."
    )
    parameters: dict[Parameter, Scalar] = Field(
        default_factory=dict,
        description="Text, numbers, true or false by name, handed to the command "
        "(`DROPFORGE_PARAM_<NAME>`, and all of them as JSON in `DROPFORGE_PARAMETERS`).",
    )
    environment: dict[Variable, Word] = Field(
        default_factory=dict, description="More environment variables for the command; values are text."
    )
    features: tuple[Column, ...] = Field(
        default=(),
        description="The columns the model may see, in this order. Default: all but the label and the event time.",
    )
    seed: Whole = Field(default=0, ge=0, le=2**32 - 1, description="The seed of every random choice.")
    min_rows: Whole = Field(
        default=1, ge=1, description="Nothing is trained before a dataset version has this many rows in all."
    )
    sweep: Sweep | None = Field(
        default=None, description="A search for the parameters to train with, in every run. Default: none."
    )
    compute: Compute = Field(default_factory=Compute)


class Evaluation(_Section):
    """How champion and challenger are compared."""

    metric: Literal["auto", "log_loss", "brier", "error_rate", "auc", "mae", "mse"] = Field(
        default="auto",
        description="What is compared. `log_loss`, `brier`, `error_rate` and `auc` judge classes, `mae` and `mse` "
        "numbers; `auto` is log_loss for classes and mae for numbers.",
    )
    block: Block = Field(
        default="day",
        description="The unit that is held out, compared and resampled as a whole: hour, day, week or month of the "
        'event time (UTC), or `"rows:N"`, N consecutive rows in time order. Choose one as long as rows resemble '
        "each other.",
    )
    holdout_blocks: Whole = Field(
        default=7,
        ge=1,
        le=10_000,
        description="The newest so many blocks are kept from training and judge both models.",
    )
    slices: tuple[Column, ...] = Field(
        default=(), description="Columns; every value of one with enough rows gets a verdict of its own."
    )
    confidence: Number = Field(
        default=0.9, ge=0.5, le=0.999, description="How sure a verdict is: the confidence of its interval."
    )


class Gate(_Section):
    """What becomes of a challenger once its verdict is known."""

    min_improvement: Number = Field(
        default=0.0, ge=0, description="*Better* means better by more than this, in units of the metric."
    )
    better: Action = Field(default=Action.PROMOTE, description="What a better challenger gets.")
    cannot_tell: Action = Field(default=Action.KEEP, description="What happens when nobody can tell.")
    worse: Annotated[
        Action, AfterValidator(careful_action), WithJsonSchema({"type": "string", "enum": ["ask", "keep"]})
    ] = Field(default=Action.KEEP, description="What a worse challenger gets; never promoted by itself.")
    slice_worse: Action = Field(
        default=Action.KEEP,
        description="What happens at most when a slice got worse; the more careful of this and the above counts.",
    )
    first: FirstRule = Field(
        default=FirstRule.PROMOTE,
        description="What the first model gets, judged against a constant baseline: promoted if it is better, "
        "always promoted, or a person is asked.",
    )
    ask_timeout: Duration = Field(
        default=timedelta(hours=24), description="A question that nobody answers for this long gets `ask_default`."
    )
    ask_default: Literal["reject", "approve"] = Field(
        default="reject", description="What nobody's answer means: the model is not promoted, or it is."
    )
    approvers: tuple[Word, ...] = Field(
        default=(),
        description="The names of those who may answer. Entra vouches for a name; the holder of a function key only "
        "claims one. Default: whoever has the role approver.",
    )


class Canary(_Section):
    """How a promoted model gets the traffic in steps, and loses it again when it fails or is slow."""

    steps: Percents = Field(
        description="The percents of the traffic that it is given one after the other, before it gets all, as in "
        "`[5, 25]`."
    )
    bake: Duration = Field(
        default=timedelta(minutes=2),
        description="How long it is watched at each step; up to three times as long while it has had too few requests.",
    )
    min_requests: Whole = Field(
        default=100, ge=1, description="It is judged by at least so many requests at each step, if they come at all."
    )
    max_failed: Number = Field(
        default=0.01,
        ge=0,
        le=1,
        description="The share of its requests that it may fail beyond the share that the champion fails.",
    )
    max_latency_ratio: Number = Field(
        default=1.5,
        ge=1,
        description="How many times as long as the champion it may take, by the 95th percentile.",
    )
    mirror: Whole = Field(
        default=0,
        ge=0,
        le=100,
        description="The percent of the champion's requests that it is given copies of. Above 0, the first step is "
        "one with copies alone.",
    )


class Deployment(_Section):
    """Where the champion answers."""

    endpoint: Name = Field(
        # PipelineSpec, which knows the name, fills it in.
        default="",
        description="The endpoint that serves the champion. Default: the pipeline's name.",
        json_schema_extra=_without_default,
    )
    enabled: Flag = Field(default=True, description="Whether a promoted model is served at all.")
    timeout: Duration = Field(
        default=timedelta(seconds=60), description="How long the replicas have to serve a promoted model."
    )
    canary: Canary | None = Field(
        default=None, description="The steps in which a promoted model gets the traffic. Default: all at once."
    )


class Budget(_Section):
    """How much a pipeline may spend in any 24 hours, and when it must stop, whatever arrives."""

    runs_per_day: Whole = Field(default=100, ge=1, description="Training runs that may start in any 24 hours.")
    training_minutes_per_day: Whole = Field(
        default=1440, ge=1, description="Minutes of training and evaluation in any 24 hours."
    )
    cool_down: Duration | None = Field(
        default=None, description="The least time between the starts of two training runs. Default: none."
    )
    max_failures: Whole = Field(
        default=3,
        ge=1,
        description="After so many training runs in a row without a usable model nothing is trained until a person "
        "lets the pipeline go on (`resume`). A run that was cancelled does not count.",
    )


class AlertRule(_Section):
    """What to do about an Azure Monitor alert. The first rule that fits acts; see [alerts](alerts.md)."""

    rule: Glob = Field(
        description="The name of the alert rule; `*` stands for any text, `?` for any character. Case does not count."
    )
    severity: tuple[Severity, ...] = Field(default=(), description="Only alerts of these severities. Default: any.")
    dimensions: dict[DimensionName, Glob] = Field(
        default_factory=dict,
        description="Only alerts that fired for these dimensions; values as in `rule`, and each must fit.",
    )
    action: AlertAction = Field(
        description="Train on the newest data, put the champion before this one back, hold the pipeline, or only tell "
        "others."
    )
    until: Until | None = Field(
        default=None,
        description="What ends a pause: the alert's own Resolved, or a person alone. For `pause`. Default: `resumed`.",
    )


class PipelineSpec(_Section):
    """A pipeline: from dropped files to a model that answers."""

    name: Name = Field(
        description="The pipeline's name: 1 to 40 lower-case letters, digits and hyphens, starting with a letter."
    )
    description: Text = Field(default="", description="What it is for, for people.")
    # What a section is for stands above its class.
    dataset: Dataset
    batching: Batching = Field(default_factory=Batching)
    training: Training
    evaluation: Evaluation = Field(default_factory=Evaluation)
    gate: Gate = Field(default_factory=Gate)
    deployment: Deployment = Field(default_factory=Deployment)
    budget: Budget = Field(default_factory=Budget)
    alerts: tuple[AlertRule, ...] = Field(
        default=(), description="What to do about Azure Monitor alerts; the first rule that fits an alert acts."
    )

    @model_validator(mode="before")
    @classmethod
    def _named_after_the_pipeline(cls, data: Any) -> Any:
        name = data.get("name") if isinstance(data, dict) else None
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return data
        filled = dict(data)
        for section, key, value in (("dataset", "drop", f"{name}/"), ("deployment", "endpoint", name)):
            # `deployment` may be left out altogether, `dataset` may not.
            found = filled.get(section, {} if section == "deployment" else None)
            if isinstance(found, dict):
                filled[section] = {key: value, **found}
            elif isinstance(found, BaseModel) and not getattr(found, key):
                filled[section] = found.model_copy(update={key: value})
        return filled
