"""Names -> adapters: the one place that knows both. An adapter is loaded when it is chosen, not before."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from dropforge.domain.errors import BadInput
from dropforge.settings import Settings, settings

if TYPE_CHECKING:
    from dropforge.ports import Ports


def _local(chosen: Settings) -> Ports:
    from dropforge.adapters.delta import DeltaTables
    from dropforge.adapters.local.artifacts import LocalArtifacts
    from dropforge.adapters.local.compute import LocalCompute
    from dropforge.adapters.local.drops import LocalDrops
    from dropforge.adapters.local.journal import Journal
    from dropforge.adapters.local.ledger import SqliteLedger
    from dropforge.adapters.local.serving import LocalServing
    from dropforge.adapters.memory.replies import MemoryReplies
    from dropforge.adapters.registry import LedgerRegistry
    from dropforge.ports import Ports

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
        replies=MemoryReplies(),
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


_built: list[Ports] = []
_building = Lock()


def ports() -> Ports:
    """The ports of this process, built once, on first use, whichever thread comes first."""
    with _building:
        if not _built:
            _built.append(build(settings()))
        return _built[0]
