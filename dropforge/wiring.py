"""Names -> adapters: the one place that knows both. An adapter is loaded when it is chosen, not before."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from dropforge.domain.errors import BadInput
from dropforge.settings import Settings, settings

if TYPE_CHECKING:
    from dropforge.ports import Drops, Events, Ports


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
    if chosen.drops == "azure":
        from dropforge.adapters.azure.blobs import BlobDrops

        return BlobDrops(chosen.storage or "", chosen.drop_container)
    from dropforge.adapters.local.drops import LocalDrops

    return LocalDrops(chosen.state / "drops")


FAMILIES: dict[str, Callable[[Settings], Ports]] = {"local": _local}


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
            _built.append(build(settings()))
        return _built[0]
