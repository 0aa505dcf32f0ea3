"""A run as an Azure ML job: what `training.compute` may say, and the command or sweep job that is made of it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from dropforge.adapters.azure.places import ARTIFACTS, DATASTORES, RUNS, TABLES
from dropforge.adapters.azure.run_files import OUTPUT, SPEC, table_path
from dropforge.domain.errors import BadInput
from dropforge.domain.runs import RunSpec, SweepPlan
from dropforge.settings import AzureML
from dropforge.spec.values import Duration
from dropforge.wire import to_json

if TYPE_CHECKING:
    from azure.ai.ml.entities import Command, Environment
    from azure.ai.ml.entities._builders import Sweep

# What trials are compared by, as the training node reports it; higher is better, whatever the pipeline's metric.
OBJECTIVE = "dropforge_validation_score"
SERVERLESS = "serverless"
# In the order the documentation explains them. `timeout` and `target` are the pipeline's own.
KEYS = (
    *("target", "timeout", "cluster", "instance_type", "instance_count", "tier", "queue_timeout"),
    *("image", "environment", "shm_size", "distribution", "processes"),
)
_ENVIRONMENT = re.compile(r"azureml:[^:@/]+[:@][^:@/]+|azureml://registries/.+|/subscriptions/.+/environments/.+")
_SHM_SIZE = re.compile(r"[1-9]\d*[bkmg]", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z0-9._:/@+-]+")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Wanted:
    """What a run wants of Azure ML, checked."""

    # None: serverless compute.
    cluster: str | None
    instance_type: str | None
    instance_count: int
    spot: bool
    # Within it the job must have got a node; None: it may wait for ever.
    queue_timeout: timedelta | None
    image: str | None
    environment: str | None
    shm_size: str | None
    # `pytorch`, `mpi` or None: one process.
    distribution: str | None
    processes: int

    def __str__(self) -> str:
        """What it waits for while it is queued."""
        size = f" of {self.instance_type}" if self.instance_type else ""
        where = f"cluster {self.cluster!r}" if self.cluster else f"{'spot ' if self.spot else ''}serverless compute"
        return f"{self.instance_count} node{'s' if self.instance_count > 1 else ''}{size} of {where}"


def wanted(spec: RunSpec, settings: AzureML) -> Wanted:
    """What the run's `training.compute` and the settings say. Raises `BadInput` for what can never run."""
    found = dict(spec.compute)
    unknown = sorted(set(found) - set(KEYS))
    if unknown:
        raise _bad(spec, ", ".join(unknown), f"Azure ML knows {', '.join(KEYS)}")
    cluster = _text(spec, found, "cluster") or settings.cluster
    serverless = cluster == SERVERLESS
    if cluster is None:
        raise _bad(
            spec, "cluster", "name one, set DROPFORGE_AML_CLUSTER, or write `cluster: serverless` with an instance_type"
        )
    environment, image = _text(spec, found, "environment"), _text(spec, found, "image")
    if environment is not None and image is not None:
        raise _bad(spec, "image", "give an image or a named environment, not both")
    if environment is not None and not _ENVIRONMENT.fullmatch(environment):
        raise _bad(spec, "environment", f"found {environment!r}, wanted azureml:<name>:<version>")
    if environment is None and image is None:
        image = settings.train_image
        if image is None:
            raise _bad(spec, "image", "name one with `dropforge train-node` in it, or set DROPFORGE_TRAIN_IMAGE")
    shm_size = _text(spec, found, "shm_size")
    if shm_size is not None and not _SHM_SIZE.fullmatch(shm_size):
        raise _bad(spec, "shm_size", f"found {shm_size!r}, wanted a size such as 2g or 512m")
    distribution = _choice(spec, found, "distribution", ("pytorch", "mpi"))
    if distribution is None and "processes" in found:
        raise _bad(spec, "processes", "it is processes per node of a distribution; add `distribution: pytorch` or mpi")
    if spec.sweep is not None:
        _check_sweep(spec, spec.sweep)
    return Wanted(
        cluster=None if serverless else cluster,
        instance_type=_text(spec, found, "instance_type"),
        instance_count=_count(spec, found, "instance_count"),
        spot=_spot(spec, found, serverless),
        queue_timeout=_duration(spec, found, "queue_timeout"),
        image=image,
        environment=environment,
        shm_size=shm_size,
        distribution=distribution,
        processes=_count(spec, found, "processes"),
    )


def _spot(spec: RunSpec, found: Mapping[str, Any], serverless: bool) -> bool:
    tier = _choice(spec, found, "tier", ("spot", "dedicated"))
    if tier is not None and not serverless:
        raise _bad(
            spec,
            "tier",
            "whether the nodes of a cluster are low priority is settled when the cluster is made; name such a cluster in "
            "compute.cluster, or write `cluster: serverless` with an instance_type",
        )
    return tier == "spot"


def _check_sweep(spec: RunSpec, sweep: SweepPlan) -> None:
    for name, each in sweep.space.items():
        if not _PARAMETER.fullmatch(name):
            raise _bad_sweep(spec, name, "Azure ML takes letters, digits and '_' in the name of a parameter")
        bad = [value for value in each.get("choice", []) if isinstance(value, str) and not _WORD.fullmatch(value)]
        if bad:
            raise _bad_sweep(
                spec,
                name,
                f"found {bad[0]!r}; a choice is put on a command line as it is, so use letters, digits and ._:/@+-",
            )
        if sweep.sampler == "grid" and "choice" not in each:
            raise _bad_sweep(
                spec, name, "a grid needs a choice of values; give one, or choose sampler random or bayesian"
            )
        if sweep.sampler == "bayesian" and each.get("log"):
            raise _bad_sweep(
                spec, name, "Azure ML's bayesian sampler knows no logarithmic range; choose sampler random, or drop log"
            )


# ------------------------------------------------------------------------------------------------ the job
def datastore(container: str, path: str) -> str:
    """A path in one of our containers, as Azure ML names it."""
    return f"azureml://datastores/{DATASTORES[container]}/paths/{path}"


def job_of(spec: RunSpec, settings: AzureML, asked: Wanted, name: str) -> Command | Sweep:
    """The job under that name. Nothing of it is uploaded: all it reads and writes is named by where it lies."""
    from azure.ai.ml import Output, command

    inputs = _inputs(spec)
    words = [f"--{each} ${{{{inputs.{each}}}}}" for each in inputs]
    folder = OUTPUT
    if spec.sweep is not None:
        words += [f"--parameter {each}=${{{{search_space.{each}}}}}" for each in sorted(spec.sweep.space)]
        # Azure ML puts the trial's own name there.
        folder = trial_folder("${{name}}")
    output = datastore(RUNS, f"{spec.run}/{folder}/")
    job = command(
        name=name,
        display_name=spec.run,
        experiment_name=spec.pipeline,
        tags=tags_of(spec),
        # Otherwise the SDK asks git for the state of whatever folder the app runs in, and writes that down.
        properties={"mlflow.source.git.commit": spec.code_sha256},
        command=" ".join(["dropforge train-node", *words, "--output ${{outputs.output}}"]),
        inputs=inputs,
        outputs={"output": Output(type="uri_folder", mode="rw_mount", path=output)},
        environment=_environment(asked),
        environment_variables=_variables(spec),
        compute=asked.cluster,
        identity=_identity(settings),
        distribution=_distribution(asked),
        # Not said when it is 1: the SDK repeats a trial's resources on its sweep, where newer versions of the API have none.
        instance_count=asked.instance_count if asked.instance_count > 1 else None,
        instance_type=asked.instance_type,
        shm_size=asked.shm_size,
        timeout=spec.timeout_seconds,
        job_tier=None if asked.cluster else ("Spot" if asked.spot else "Standard"),
    )
    return job if spec.sweep is None else _sweep(spec, spec.sweep, job)


def trial_folder(trial: str) -> str:
    """Where a trial of a sweep leaves its output, below the run's own folder."""
    return f"trials/{trial}"


def tags_of(spec: RunSpec) -> dict[str, str]:
    """The lineage of a run, as it can be searched for in the studio."""
    tags = {
        "dropforge.run": spec.run,
        "dropforge.pipeline": spec.pipeline,
        "dropforge.dataset": spec.dataset,
        "dropforge.dataset_version": str(spec.dataset_version),
        "dropforge.code_sha256": spec.code_sha256,
        "dropforge.seed": str(spec.seed),
        "dropforge.spec_sha256": hashlib.sha256(to_json(spec)).hexdigest(),
    }
    for role, model in (("champion", spec.champion), ("challenger", spec.challenger)):
        if model is not None:
            tags[f"dropforge.{role}_version"] = str(model.version)
    return tags


def _inputs(spec: RunSpec) -> dict[str, Any]:
    from azure.ai.ml import Input

    files = {"run": datastore(RUNS, f"{spec.run}/{SPEC}"), "code": datastore(ARTIFACTS, spec.code)}
    for role, model in (("champion", spec.champion), ("challenger", spec.challenger)):
        if model is not None:
            files[role] = datastore(ARTIFACTS, model.artifact)
    inputs = {name: Input(type="uri_file", mode="ro_mount", path=path) for name, path in files.items()}
    table = datastore(TABLES, f"{table_path(spec, 'Azure ML')}/")
    return {**inputs, "table": Input(type="uri_folder", mode="ro_mount", path=table)}


def _environment(asked: Wanted) -> str | Environment:
    from azure.ai.ml.entities import Environment

    return asked.environment if asked.environment is not None else Environment(image=asked.image)


def _variables(spec: RunSpec) -> dict[str, str]:
    variables = dict(spec.environment)
    # A sweep reads its objective from Azure ML's own tracking, which every job there has without a word.
    if spec.tracking_uri is not None and spec.sweep is None:
        variables["MLFLOW_TRACKING_URI"] = spec.tracking_uri
    return variables


def _identity(settings: AzureML) -> Any:
    from azure.ai.ml.entities import ManagedIdentityConfiguration

    # Without one the job runs as the cluster's own.
    return ManagedIdentityConfiguration(client_id=settings.job_client_id) if settings.job_client_id else None


def _distribution(asked: Wanted) -> Any:
    from azure.ai.ml import MpiDistribution, PyTorchDistribution

    if asked.distribution is None:
        return None
    kind = PyTorchDistribution if asked.distribution == "pytorch" else MpiDistribution
    return kind(process_count_per_instance=asked.processes)


def _sweep(spec: RunSpec, plan: SweepPlan, job: Command) -> Sweep:
    swept = job.sweep(
        primary_metric=OBJECTIVE,
        goal="maximize",
        sampling_algorithm=plan.sampler,
        search_space={name: _range(each) for name, each in plan.space.items()},
        max_total_trials=plan.trials,
        max_concurrent_trials=min(plan.parallel, plan.trials),
        # `training.compute.timeout` is the run's, as everywhere: all trials together.
        timeout=spec.timeout_seconds,
        trial_timeout=spec.timeout_seconds,
    )
    swept.name, swept.display_name, swept.experiment_name = job.name, job.display_name, job.experiment_name
    # The SDK writes it small, which only the service forgives.
    swept.objective.goal = "Maximize"
    swept.tags, swept.properties, swept.identity = job.tags, job.properties, job.identity
    return swept


def _range(each: dict[str, Any]) -> Any:
    from azure.ai.ml.sweep import Choice, LogUniform, QLogUniform, QUniform, Uniform

    if "choice" in each:
        return Choice(list(each["choice"]))
    low, high = float(each["min"]), float(each["max"])
    if each.get("log"):
        # Given as exponents of e.
        low, high = math.log(low), math.log(high)
        return QLogUniform(low, high, 1) if each.get("int") else LogUniform(low, high)
    return QUniform(low, high, 1) if each.get("int") else Uniform(low, high)


# ------------------------------------------------------------------------------------------------ values
def _text(spec: RunSpec, found: Mapping[str, Any], key: str) -> str | None:
    value = found.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise _bad(spec, key, f"found {value!r}, wanted text")
    return value


def _choice(spec: RunSpec, found: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str | None:
    value = found.get(key)
    if value is not None and value not in choices:
        raise _bad(spec, key, f"found {value!r}; choose one of {', '.join(choices)}")
    return value


def _count(spec: RunSpec, found: Mapping[str, Any], key: str) -> int:
    value = found.get(key, 1)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1000:
        raise _bad(spec, key, f"found {value!r}, wanted a whole number from 1 to 1000")
    return value


def _duration(spec: RunSpec, found: Mapping[str, Any], key: str) -> timedelta | None:
    if found.get(key) is None:
        return None
    try:
        value: timedelta = TypeAdapter(Duration).validate_python(found[key])
    except ValidationError as error:
        raise _bad(spec, key, f"found {found[key]!r}, wanted a duration such as 30m or 2h") from error
    return value


def _bad(spec: RunSpec, key: str, message: str) -> BadInput:
    return BadInput(f"training.compute cannot be used by Azure ML: {key}: {message}", run=spec.run, key=key)


def _bad_sweep(spec: RunSpec, name: str, message: str) -> BadInput:
    return BadInput(f"the sweep cannot be run by Azure ML: parameter {name!r}: {message}", run=spec.run, parameter=name)
