"""Every setting, read once from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dropforge import telemetry
from dropforge.domain.errors import BadInput
from dropforge.domain.roles import Role
from dropforge.domain.shares import shares_of, words_of

_SHA256_PREFIX = re.compile(r"[0-9A-Fa-f]{16,64}")
_WORKSPACE = re.compile(
    r"/subscriptions/[0-9A-Fa-f-]{36}/resourceGroups/[^/]+/providers/Microsoft\.MachineLearningServices/workspaces/[^/]+",
    re.IGNORECASE,
)
_VOLUMES = re.compile(r"/Volumes/[A-Za-z0-9_-]+/[A-Za-z0-9_-]+")
_ROLES = tuple(role.value for role in Role)


@dataclass(frozen=True)
class AzureML:
    """The workspace that trains and serves. What is None must be named by whoever needs it."""

    # /subscriptions/<id>/resourceGroups/<name>/providers/Microsoft.MachineLearningServices/workspaces/<name>
    workspace: str
    # The cluster of pipelines that name none (`training.compute.cluster`).
    cluster: str | None = None
    # The image with `dropforge train-node` in it, unless a pipeline names another (`training.compute.image`).
    train_image: str | None = None
    # Client id of the managed identity that jobs run as.
    job_client_id: str | None = None
    # The managed online endpoint that serves; None: the replicas run elsewhere and only share the storage account.
    endpoint: str | None = None
    # How the endpoint asks who calls (`key` or `aad_token`), and whether it answers outside the private network. Both count
    # when it is made, and not when it is there already.
    endpoint_auth: str = "key"
    endpoint_public: bool = True
    # The image of the inference server; a new one is rolled out blue/green.
    serve_image: str | None = None
    serve_instance_type: str = "Standard_DS3_v2"
    serve_instances: int = 1
    # Of the requests that are copied to a new image for five minutes before it answers any.
    serve_mirror_percent: int = 0
    # Processes on each instance, which share its port and hold all models each; 0: one on each core or GPU.
    serve_workers: int = 0
    # Shares of the requests that replicas keep for monitoring (`dropforge.domain.shares`); None: of none.
    serve_log_requests: str | None = None
    # Resource id and client id of the managed identity that replicas read models with.
    serve_identity: str | None = None
    serve_client_id: str | None = None
    # The address of Application Insights, where that wants an identity: then it is no secret, and replicas are given it.
    insights: str | None = None


@dataclass(frozen=True)
class Databricks:
    """The workspace that trains where a pipeline says `target: databricks`."""

    # https://adb-….azuredatabricks.net
    host: str
    # The Unity Catalog schema folder whose volumes `artifacts`, `tables` and `runs` are those containers:
    # /Volumes/<catalog>/<schema>
    volumes: str
    # Where the wheel of this package lies for the jobs, a path in a volume or the workspace.
    wheel: str | None = None


@dataclass(frozen=True)
class Settings:
    """What the environment says. On Azure these are app settings; the embedded host sets them for one machine."""

    # Which family of adapters: see `wiring.FAMILIES`.
    adapters: str
    # Where local adapters keep their files.
    state: Path
    # The container (or local folder) that people drop files into.
    drop_container: str
    # Run events wake a waiting flow at once; this poll only catches the ones that never came.
    run_poll_seconds: float
    # How often a deployment looks at its replicas.
    deploy_poll_seconds: float
    # NCRONTAB of the sweep that wakes what a crash left asleep.
    sweep_schedule: str
    # Experiment tracking; handed to the training node.
    tracking_uri: str | None
    # Function keys by the beginning of their sha256 (hex), and the role that each gives.
    key_roles: tuple[tuple[str, Role], ...] = ()
    # The role that any other key gives; None: none.
    default_key_role: Role | None = Role.APPROVER
    # `key`: the host asks for a function key. `entra`: it does not, and App Service authentication says who asks.
    http_auth: str = "key"
    # Whether App Service authentication is on: only then can its headers be believed.
    app_service_auth: bool = False
    # How often what the platform tells may come back to it as new work before it is refused.
    max_hops: int = 5
    # Service Bus: a connection string, or else the namespace that is reached as the app's identity. The trigger of
    # `functions/commands.py` reads the same two.
    service_bus: str | None = field(default=None, repr=False)
    service_bus_namespace: str | None = None
    # Of a user-assigned managed identity.
    service_bus_client_id: str | None = None
    # NCRONTAB of the pass that lays the container's listing beside the ledger, and finds what events missed.
    reconcile_schedule: str = "0 */5 * * * *"
    # Where files are dropped: `local` (the folder) or `azure` (the container of a storage account).
    drops: str = "local"
    # The storage account of the drop container: a connection string, or its URL, reached as the app's identity.
    storage: str | None = field(default=None, repr=False)
    # What the events that the platform tells call it.
    events_source: str = "/dropforge/local"
    # Where events go besides the journal: an HTTP address, and an Event Grid topic; with a key each, or without.
    events_webhook: str | None = field(default=None, repr=False)
    events_webhook_key: str | None = field(default=None, repr=False)
    events_topic_endpoint: str | None = None
    events_topic_key: str | None = field(default=None, repr=False)
    # The account whose Table service holds the ledger, as in `storage`; None: the one of `storage`.
    ledger: str | None = field(default=None, repr=False)
    # Whether spans are told, and so whether a training command is told which trace it is part of.
    telemetry: bool = False
    azureml: AzureML | None = None
    databricks: Databricks | None = None

    @property
    def targets(self) -> tuple[str, ...] | None:
        """The `training.compute.target`s that runs can go to; None: any, where nothing is really trained."""
        if self.adapters == "azure":
            chosen = {"azureml": self.azureml, "databricks": self.databricks}
            return tuple(name for name, given in chosen.items() if given is not None)
        return ("local",) if self.adapters == "local" else None


def read(environment: Mapping[str, str]) -> Settings:
    """The settings, with defaults for one machine. Raises `BadInput` that names the variable."""
    return Settings(
        adapters=environment.get("DROPFORGE_ADAPTERS", "local"),
        state=Path(environment.get("DROPFORGE_STATE") or ".dropforge").absolute(),
        drop_container=environment.get("DROPFORGE_DROP_CONTAINER", "drops"),
        run_poll_seconds=_seconds(environment, "DROPFORGE_RUN_POLL_SECONDS", 30.0),
        deploy_poll_seconds=_seconds(environment, "DROPFORGE_DEPLOY_POLL_SECONDS", 0.2),
        sweep_schedule=environment.get("DROPFORGE_SWEEP_SCHEDULE", "0 * * * * *"),
        tracking_uri=environment.get("MLFLOW_TRACKING_URI") or None,
        key_roles=_key_roles(environment.get("DROPFORGE_KEY_ROLES", "")),
        default_key_role=_default_key_role(environment.get("DROPFORGE_DEFAULT_KEY_ROLE", "approver")),
        http_auth=_http_auth(environment.get("DROPFORGE_HTTP_AUTH", "key")),
        app_service_auth=environment.get("WEBSITE_AUTH_ENABLED", "").lower() == "true",
        max_hops=_hops(environment.get("DROPFORGE_MAX_HOPS", "5")),
        service_bus=_connection(environment, ""),
        service_bus_namespace=_connection(environment, "__fullyQualifiedNamespace"),
        service_bus_client_id=_connection(environment, "__clientId"),
        # Who sets only the sweep's wants lost files found as often.
        reconcile_schedule=environment.get("DROPFORGE_RECONCILE_SCHEDULE")
        or environment.get("DROPFORGE_SWEEP_SCHEDULE")
        or "0 */5 * * * *",
        drops=_drops(environment),
        storage=environment.get("DROPFORGE_STORAGE") or None,
        events_source=_events_source(environment),
        events_webhook=environment.get("DROPFORGE_EVENTS_WEBHOOK") or None,
        events_webhook_key=environment.get("DROPFORGE_EVENTS_WEBHOOK_KEY") or None,
        events_topic_endpoint=environment.get("DROPFORGE_EVENTS_TOPIC_ENDPOINT") or None,
        events_topic_key=environment.get("DROPFORGE_EVENTS_TOPIC_KEY") or None,
        ledger=environment.get("DROPFORGE_LEDGER") or None,
        telemetry=telemetry.configured(environment),
        azureml=_azureml(environment),
        databricks=_databricks(environment),
    )


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.01 <= value <= 3600:
        raise BadInput(f"setting {name} is {text!r}; it must be a number of seconds between 0.01 and 3600")
    return value


def _connection(environment: Mapping[str, str], part: str) -> str | None:
    """What the settings say of the connection SERVICE_BUS; Azure Functions knows it with a prefix as well."""
    return environment.get(f"AzureWebJobsSERVICE_BUS{part}") or environment.get(f"SERVICE_BUS{part}") or None


def _events_source(environment: Mapping[str, str]) -> str:
    """On Azure the app's name, which the platform puts into WEBSITE_SITE_NAME."""
    app = environment.get("WEBSITE_SITE_NAME") or "local"
    return environment.get("DROPFORGE_EVENTS_SOURCE") or f"/dropforge/{app}"


def _drops(environment: Mapping[str, str]) -> str:
    text = environment.get("DROPFORGE_DROPS", "local")
    if text not in ("local", "azure"):
        raise BadInput(f"setting DROPFORGE_DROPS is {text!r}; choose local or azure")
    if text == "azure" and not environment.get("DROPFORGE_STORAGE"):
        raise BadInput(
            "DROPFORGE_DROPS is 'azure', so DROPFORGE_STORAGE must name the storage account: its connection string, or its "
            "URL to reach it as the app's identity"
        )
    return text


def _azureml(environment: Mapping[str, str]) -> AzureML | None:
    workspace = environment.get("DROPFORGE_AML_WORKSPACE")
    if not workspace:
        return None
    if not _WORKSPACE.fullmatch(workspace):
        raise BadInput(
            f"setting DROPFORGE_AML_WORKSPACE is {workspace!r}; it must be the workspace's resource id: "
            "/subscriptions/<id>/resourceGroups/<name>/providers/Microsoft.MachineLearningServices/workspaces/<name>"
        )
    return AzureML(
        workspace=workspace,
        cluster=environment.get("DROPFORGE_AML_CLUSTER") or None,
        train_image=environment.get("DROPFORGE_TRAIN_IMAGE") or None,
        job_client_id=environment.get("DROPFORGE_AML_JOB_CLIENT_ID") or None,
        endpoint=environment.get("DROPFORGE_AML_ENDPOINT") or None,
        endpoint_auth=_endpoint_auth(environment.get("DROPFORGE_AML_ENDPOINT_AUTH", "key")),
        endpoint_public=environment.get("DROPFORGE_AML_ENDPOINT_PUBLIC", "true").lower() != "false",
        serve_image=environment.get("DROPFORGE_SERVE_IMAGE") or None,
        serve_instance_type=environment.get("DROPFORGE_SERVE_INSTANCE_TYPE") or AzureML.serve_instance_type,
        serve_instances=_instances(environment.get("DROPFORGE_SERVE_INSTANCES", "1")),
        serve_mirror_percent=_percent(environment.get("DROPFORGE_SERVE_MIRROR_PERCENT", "0")),
        serve_workers=_workers(environment.get("DROPFORGE_SERVE_WORKERS") or "0"),
        serve_log_requests=_log_requests(environment.get("DROPFORGE_SERVE_LOG_REQUESTS", "")),
        serve_identity=environment.get("DROPFORGE_SERVE_IDENTITY") or None,
        serve_client_id=environment.get("DROPFORGE_SERVE_CLIENT_ID") or None,
        insights=_insights(environment),
    )


def _databricks(environment: Mapping[str, str]) -> Databricks | None:
    host = environment.get("DROPFORGE_DATABRICKS_HOST")
    if not host:
        return None
    volumes = environment.get("DROPFORGE_DATABRICKS_VOLUMES", "")
    if not _VOLUMES.fullmatch(volumes):
        raise BadInput(
            f"setting DROPFORGE_DATABRICKS_VOLUMES is {volumes!r}; it must be /Volumes/<catalog>/<schema>, the schema "
            "with the volumes artifacts, tables and runs"
        )
    return Databricks(host, volumes, environment.get("DROPFORGE_DATABRICKS_WHEEL") or None)


def _instances(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 100:
        raise BadInput(f"setting DROPFORGE_SERVE_INSTANCES is {text!r}; it must be a whole number from 1 to 100")
    return int(text)


def _percent(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 <= int(text[:9]) <= 50:
        raise BadInput(f"setting DROPFORGE_SERVE_MIRROR_PERCENT is {text!r}; it must be a whole number from 0 to 50")
    return int(text)


def _insights(environment: Mapping[str, str]) -> str | None:
    by_identity = "Authorization=AAD" in environment.get("APPLICATIONINSIGHTS_AUTHENTICATION_STRING", "")
    return environment.get("APPLICATIONINSIGHTS_CONNECTION_STRING") or None if by_identity else None


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 3 or int(text) > 256:
        raise BadInput(f"setting DROPFORGE_SERVE_WORKERS is {text!r}; it must be a whole number from 0 to 256")
    return int(text)


def _log_requests(text: str) -> str | None:
    words = words_of(text)
    shares_of(words, "setting DROPFORGE_SERVE_LOG_REQUESTS")
    return ",".join(words) or None


def _endpoint_auth(text: str) -> str:
    if text not in ("key", "aad_token"):
        raise BadInput(f"setting DROPFORGE_AML_ENDPOINT_AUTH is {text!r}; choose key or aad_token")
    return text


def _hops(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 <= int(text[:9]) <= 100:
        raise BadInput(f"setting DROPFORGE_MAX_HOPS is {text!r}; it must be a whole number from 0 to 100")
    return int(text)


def _key_roles(text: str) -> tuple[tuple[str, Role], ...]:
    """`<beginning of the key's sha256>=<role>`, with commas between."""
    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        prefix, _, role = entry.partition("=")
        if not _SHA256_PREFIX.fullmatch(prefix) or role not in _ROLES:
            # The entry is not shown: it may be a key that was put where its hash belongs.
            raise BadInput(
                "an entry of setting DROPFORGE_KEY_ROLES makes no sense; each must be the first 16 or more hex digits of "
                f"a key's sha256, `=`, and one of {', '.join(_ROLES)}, with commas between"
            )
        found.append((prefix.lower(), Role(role)))
    return tuple(found)


def _default_key_role(text: str) -> Role | None:
    if text not in (*_ROLES, "none"):
        raise BadInput(f"setting DROPFORGE_DEFAULT_KEY_ROLE is {text!r}; choose one of {', '.join(_ROLES)}, none")
    return None if text == "none" else Role(text)


def _http_auth(text: str) -> str:
    if text not in ("key", "entra"):
        raise BadInput(f"setting DROPFORGE_HTTP_AUTH is {text!r}; choose key or entra")
    return text


@cache
def settings() -> Settings:
    """The settings of this process."""
    return read(os.environ)
