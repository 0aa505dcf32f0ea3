"""A run as a Databricks one-time run: what `training.compute` may say, and the request that is made of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from dropforge.adapters.azure.places import ARTIFACTS, RUNS, TABLES
from dropforge.adapters.azure.run_files import OUTPUT, SPEC, table_path
from dropforge.domain.errors import BadInput
from dropforge.domain.runs import RunSpec
from dropforge.settings import Databricks

PACKAGE = "dropforge"
# A function of the package itself: the job calls `dropforge.run_node()`.
ENTRY_POINT = "run_node"
TASK = "node"
# Until machines are there and packages installed, besides the run's own time limit, which the node keeps itself.
_SETUP_SECONDS = 45 * 60
# Python 3.12, as both runtimes below; supported until August 2028.
_ENVIRONMENT = "4"
_RUNTIME, _GPU_RUNTIME = "16.4.x-scala2.12", "16.4.x-gpu-ml-scala2.12"
_GPU = re.compile(r"Standard_N[CDGV]", re.IGNORECASE)
# In the order the documentation explains them. `timeout` and `target` are the pipeline's own.
_SERVERLESS = ("environment_version",)
_CLUSTER = ("node_type", "workers", "spot", "spark_version", "policy")
KEYS = ("target", "timeout", "packages", *_SERVERLESS, *_CLUSTER)
_MOST_WORKERS = 1000
_TOKEN_LENGTH = 64


@dataclass(frozen=True)
class Wanted:
    """What a run wants of Databricks, checked."""

    wheel: str
    packages: tuple[str, ...]
    # Of a job cluster; without a policy and a node type the run is serverless.
    node_type: str | None
    policy: str | None
    workers: int
    spot: bool
    spark_version: str | None
    environment_version: str

    @property
    def serverless(self) -> bool:
        return self.node_type is None and self.policy is None


def wanted(spec: RunSpec, settings: Databricks) -> Wanted:
    """What the run's `training.compute` and the settings say. Raises `BadInput` for what can never run."""
    found = spec.compute
    unknown = sorted(set(found) - set(KEYS))
    if unknown:
        raise _bad(spec, ", ".join(unknown), f"Databricks knows {', '.join(KEYS)}")
    node_type, policy = _text(spec, found, "node_type"), _text(spec, found, "policy")
    serverless = node_type is None and policy is None
    for key in _CLUSTER if serverless else _SERVERLESS:
        if found.get(key) is not None:
            raise _bad(
                spec,
                key,
                "it is of a job cluster, which needs a node_type or a policy"
                if serverless
                else "it is of serverless compute, which has no node_type and no policy",
            )
    if settings.wheel is None:
        raise BadInput(
            "DROPFORGE_DATABRICKS_WHEEL must name the wheel that jobs install, a path below /Volumes or /Workspace",
            run=spec.run,
        )
    spark_version = _text(spec, found, "spark_version")
    gpu = node_type is not None and _GPU.match(node_type) is not None
    if gpu and spark_version is not None and "gpu" not in spark_version:
        raise _bad(
            spec,
            "spark_version",
            f"{spark_version} has no GPU libraries, and {node_type} has GPUs; wanted {_GPU_RUNTIME}",
        )
    # A policy may fix it.
    default = None if policy is not None else _GPU_RUNTIME if gpu else _RUNTIME
    version = _text(spec, found, "environment_version") or _ENVIRONMENT
    if not version.isascii() or not version.isdigit() or int(version) < 2:
        raise _bad(spec, "environment_version", f"found {version!r}, wanted '2' or newer (Python 3.11 or newer)")
    return Wanted(
        wheel=settings.wheel,
        packages=tuple((_text(spec, found, "packages") or "").split()),
        node_type=node_type,
        policy=policy,
        workers=_count(spec, found, "workers"),
        spot=_flag(spec, found, "spot"),
        spark_version=spark_version or default,
        environment_version=version,
    )


# ------------------------------------------------------------------------------------------------ the request
def token(settings: Databricks, run: str, attempt: int) -> str:
    """What makes a submission safe to repeat: the same run and attempt of the same installation is the same token."""
    name = run if attempt == 1 else f"{run}_{attempt}"
    # Two installations may share a workspace, and their pipelines a name.
    whole = f"{name}-{hashlib.sha256(settings.volumes.encode()).hexdigest()[:8]}"
    return whole if len(whole) <= _TOKEN_LENGTH else hashlib.sha256(whole.encode()).hexdigest()


def request(spec: RunSpec, settings: Databricks, attempt: int) -> dict[str, Any]:
    """The arguments of the SDK's `jobs.submit`. Raises `BadInput` for what can never run."""
    from databricks.sdk.service.jobs import PythonWheelTask, QueueSettings, SubmitTask

    asked = wanted(spec, settings)
    task = SubmitTask(
        task_key=TASK,
        description=f"Pipeline {spec.pipeline}, dataset {spec.dataset}, version {spec.dataset_version}"[:1000],
        python_wheel_task=PythonWheelTask(PACKAGE, ENTRY_POINT, parameters=arguments(spec, settings)),
        # Attempts are ours: each is counted, and finds the checkpoints of the one before.
        max_retries=0,
    )
    found: dict[str, Any] = {
        "run_name": f"dropforge {spec.run}" + (f" (attempt {attempt})" if attempt > 1 else ""),
        "idempotency_token": token(settings, spec.run, attempt),
        "timeout_seconds": spec.timeout_seconds + _SETUP_SECONDS,
        "queue": QueueSettings(enabled=True),
        "tasks": [task],
    }
    if asked.serverless:
        task.environment_key = TASK
        task.disable_auto_optimization = True
        return {**found, "environments": [_environment(spec, asked)]}
    task.new_cluster = _cluster(spec, asked)
    task.libraries = _libraries(spec, asked)
    return found


def arguments(spec: RunSpec, settings: Databricks) -> list[str]:
    """What `dropforge train-node` is told: where its files lie on the volumes."""

    def place(container: str, path: str) -> str:
        return f"{settings.volumes}/{container}/{path}"

    found = ["--run", place(RUNS, f"{spec.run}/{SPEC}"), "--code", place(ARTIFACTS, spec.code)]
    found += ["--table", place(TABLES, table_path(spec, "Databricks"))]
    for role, model in (("champion", spec.champion), ("challenger", spec.challenger)):
        if model is not None:
            found += [f"--{role}", place(ARTIFACTS, model.artifact)]
    return [*found, "--output", place(RUNS, f"{spec.run}/{OUTPUT}")]


def _extras(spec: RunSpec) -> list[str]:
    return ["train", *(["tracking"] if spec.tracking_uri else []), *(["sweep"] if spec.sweep is not None else [])]


def _environment(spec: RunSpec, asked: Wanted) -> Any:
    from databricks.sdk.service.compute import Environment
    from databricks.sdk.service.jobs import JobEnvironment

    # Lines of a pip requirements file.
    needed = [f"{asked.wheel}[{','.join(_extras(spec))}]", *asked.packages]
    return JobEnvironment(TASK, Environment(environment_version=asked.environment_version, dependencies=needed))


def _libraries(spec: RunSpec, asked: Wanted) -> list[Any]:
    """A cluster takes a wheel by its path alone, so what its extras need is named one by one."""
    from databricks.sdk.service.compute import Library, PythonPyPiLibrary

    needed = [*_requirements(_extras(spec)), *asked.packages]
    return [Library(whl=asked.wheel), *(Library(pypi=PythonPyPiLibrary(each)) for each in needed)]


def _requirements(extras: list[str]) -> list[str]:
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise BadInput(
            "what a job cluster must install is read from the installed package dropforge, and it is not installed here; "
            "install its wheel, or leave out training.compute.node_type"
        ) from error
    found = []
    for line in lines:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        wants = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        # An extra that is made of others is spelled out by those.
        if wants and wants[1] in extras and not requirement.startswith(PACKAGE):
            found.append(requirement.replace(" ", ""))
    return list(dict.fromkeys(found))


def _cluster(spec: RunSpec, asked: Wanted) -> Any:
    from databricks.sdk.service.compute import AzureAttributes, AzureAvailability, ClusterSpec, DataSecurityMode

    single = asked.workers == 0
    tags = {
        "dropforge-run": spec.run,
        "dropforge-pipeline": spec.pipeline,
        "dropforge-dataset-version": str(spec.dataset_version),
    }
    availability = AzureAvailability.SPOT_WITH_FALLBACK_AZURE if asked.spot else AzureAvailability.ON_DEMAND_AZURE
    return ClusterSpec(
        spark_version=asked.spark_version,
        node_type_id=asked.node_type,
        policy_id=asked.policy,
        apply_policy_default_values=True if asked.policy is not None else None,
        num_workers=asked.workers,
        # With workers, the driver is kept: a worker that is taken away is replaced.
        azure_attributes=AzureAttributes(availability=availability, first_on_demand=0 if asked.spot and single else 1),
        # Volumes are shown to a cluster that belongs to one identity, or shares by Unity Catalog's rules.
        data_security_mode=DataSecurityMode.SINGLE_USER,
        spark_conf={"spark.databricks.cluster.profile": "singleNode", "spark.master": "local[*]"} if single else None,
        custom_tags={**tags, "ResourceClass": "SingleNode"} if single else tags,
    )


# ------------------------------------------------------------------------------------------------ values
def _text(spec: RunSpec, found: Mapping[str, Any], key: str) -> str | None:
    value = found.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise _bad(spec, key, f"found {value!r}, wanted text")
    return value


def _count(spec: RunSpec, found: Mapping[str, Any], key: str) -> int:
    value = found.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_WORKERS:
        raise _bad(spec, key, f"found {value!r}, wanted a whole number from 0 (a single machine) to {_MOST_WORKERS}")
    return value


def _flag(spec: RunSpec, found: Mapping[str, Any], key: str) -> bool:
    value = found.get(key, False)
    if not isinstance(value, bool):
        raise _bad(spec, key, f"found {value!r}, wanted true or false")
    return value


def _bad(spec: RunSpec, key: str, message: str) -> BadInput:
    return BadInput(f"training.compute cannot be used by Databricks: {key}: {message}", run=spec.run, key=key)
