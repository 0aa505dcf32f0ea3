"""Names -> adapters: the one place that knows both. An adapter is loaded when it is chosen, not before."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from dropforge import telemetry
from dropforge.domain.errors import BadInput
from dropforge.settings import Settings, settings

if TYPE_CHECKING:
    from dropforge.ports import Artifacts, Compute, Drops, Events, Ports, Registry, Serving


def _local(chosen: Settings) -> Ports:
    from dropforge.adapters.delta import DeltaTables
    from dropforge.adapters.local.artifacts import LocalArtifacts
    from dropforge.adapters.local.compute import LocalCompute
    from dropforge.adapters.local.journal import Journal
    from dropforge.adapters.local.ledger import SqliteLedger
    from dropforge.adapters.local.serving import LocalServing
    from dropforge.adapters.registry import LedgerRegistry
    from dropforge.adapters.service_bus import ServiceBusReplies
    from dropforge.ports import Ports

    state = chosen.state
    ledger = SqliteLedger(state / "ledger.db")
    artifacts = LocalArtifacts(state / "artifacts")
    return Ports(
        ledger=ledger,
        drops=drops(chosen),
        artifacts=artifacts,
        tables=DeltaTables(str(state / "tables")),
        compute=LocalCompute(state / "runs", artifacts),
        registry=LedgerRegistry(ledger, artifacts),
        serving=LocalServing(state / "serving"),
        events={"journal": Journal(state / "journal", chosen.events_source), **_listeners(chosen)},
        replies=ServiceBusReplies(chosen.service_bus, chosen.service_bus_namespace, chosen.service_bus_client_id),
    )


def _azure(chosen: Settings) -> Ports:
    from dropforge.adapters.azure.artifacts import BlobArtifacts
    from dropforge.adapters.azure.ledger import TableLedger
    from dropforge.adapters.azure.tables import delta_tables
    from dropforge.adapters.registry import LedgerRegistry
    from dropforge.adapters.service_bus import ServiceBusReplies
    from dropforge.ports import Ports

    if not chosen.storage:
        raise BadInput("DROPFORGE_ADAPTERS is 'azure', so DROPFORGE_STORAGE must name the storage account")
    ledger = TableLedger(chosen.ledger or chosen.storage)
    artifacts = BlobArtifacts(chosen.storage)
    return Ports(
        ledger=ledger,
        drops=drops(chosen),
        artifacts=artifacts,
        tables=delta_tables(chosen.storage),
        compute=_computes(chosen, artifacts),
        registry=_registry(chosen, LedgerRegistry(ledger, artifacts), artifacts),
        serving=_serving(chosen),
        events=_listeners(chosen),
        replies=ServiceBusReplies(chosen.service_bus, chosen.service_bus_namespace, chosen.service_bus_client_id),
    )


def _computes(chosen: Settings, artifacts: Artifacts) -> Compute:
    """Where runs go, by the `target` of their pipeline."""
    from dropforge.adapters.azure.computes import Computes
    from dropforge.adapters.azure.run_files import RunFiles

    assert chosen.storage is not None
    files = RunFiles(chosen.storage, artifacts)
    targets: dict[str, Compute] = {}
    if chosen.azureml is not None:
        from dropforge.adapters.azure.aml_compute import AzureMLCompute

        targets["azureml"] = AzureMLCompute(chosen.azureml, files)
    if chosen.databricks is not None:
        from dropforge.adapters.databricks.compute import DatabricksCompute

        targets["databricks"] = DatabricksCompute(chosen.databricks, files)
    return Computes(files, targets)


def _registry(chosen: Settings, registry: Registry, artifacts: Artifacts) -> Registry:
    """The ledger's registry, mirrored in Azure ML where there is a workspace."""
    if chosen.azureml is None:
        return registry
    from dropforge.adapters.azure.aml_registry import MirroredRegistry

    return MirroredRegistry(registry, chosen.azureml, artifacts)


def _serving(chosen: Settings) -> Serving:
    """Desired states and reports as blobs; and, where an endpoint is named, the managed endpoint that reads them."""
    from dropforge.adapters.azure.serving import BlobServing

    assert chosen.storage is not None
    serving = BlobServing(chosen.storage)
    if chosen.azureml is None or chosen.azureml.endpoint is None:
        return serving
    from dropforge.adapters.azure.aml_endpoint import ManagedEndpointServing

    return ManagedEndpointServing(serving, chosen.azureml, chosen.storage)


def _listeners(chosen: Settings) -> dict[str, Events]:
    """The places outside that are told what happens."""
    found: dict[str, Events] = {}
    if chosen.events_webhook is not None:
        from dropforge.adapters.webhook import Webhook

        found["webhook"] = Webhook(chosen.events_webhook, chosen.events_webhook_key, chosen.events_source)
    if chosen.events_topic_endpoint is not None:
        from dropforge.adapters.event_grid import EventGridTopic

        found["topic"] = EventGridTopic(chosen.events_topic_endpoint, chosen.events_topic_key, chosen.events_source)
    return found


def drops(chosen: Settings) -> Drops:
    """Where files are dropped: of every family, because a laptop may work on what lies in Azure."""
    if "azure" in (chosen.drops, chosen.adapters):
        from dropforge.adapters.azure.blobs import BlobDrops

        return BlobDrops(chosen.storage or "", chosen.drop_container)
    from dropforge.adapters.local.drops import LocalDrops

    return LocalDrops(chosen.state / "drops")


FAMILIES: dict[str, Callable[[Settings], Ports]] = {"local": _local, "azure": _azure}


def build(chosen: Settings) -> Ports:
    """The ports of a family of adapters. Raises `BadInput` that lists the families."""
    try:
        family = FAMILIES[chosen.adapters]
    except KeyError:
        raise BadInput(
            f"unknown adapters {chosen.adapters!r} in DROPFORGE_ADAPTERS; choose one of {sorted(FAMILIES)}"
        ) from None
    return family(chosen)


_built: list[Ports] = []
_building = Lock()


def ports() -> Ports:
    """The ports of this process, built once, on first use, whichever thread comes first."""
    with _building:
        if not _built:
            telemetry.start("dropforge")
            _built.append(build(settings()))
        return _built[0]
