"""Names -> adapters: the one place that knows both. An adapter is loaded when it is chosen, not before."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from dropforge.domain.errors import BadInput
from dropforge.ports import Ports
from dropforge.settings import Settings, settings


def _local(chosen: Settings) -> Ports:
    from dropforge.adapters.delta import DeltaTables
    from dropforge.adapters.local.artifacts import LocalArtifacts
    from dropforge.adapters.local.compute import LocalCompute
    from dropforge.adapters.local.drops import LocalDrops
    from dropforge.adapters.local.journal import Journal
    from dropforge.adapters.local.ledger import SqliteLedger
    from dropforge.adapters.local.serving import LocalServing
    from dropforge.adapters.registry import LedgerRegistry

    state = chosen.state
    ledger = SqliteLedger(state / "ledger.db")
    artifacts = LocalArtifacts(state / "artifacts")
    return Ports(
        ledger=ledger,
        drops=LocalDrops(state / "drops"),
        artifacts=artifacts,
        tables=DeltaTables(str(state / "tables")),
        compute=LocalCompute(state / "runs", artifacts),
        registry=LedgerRegistry(ledger, artifacts),
        serving=LocalServing(state / "serving"),
        events=Journal(state / "journal"),
    )


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


@cache
def ports() -> Ports:
    """The ports of this process, built on first use."""
    return build(settings())
