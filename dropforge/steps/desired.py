"""What the ledger wants of an endpoint, told to its replicas."""

from __future__ import annotations

from datetime import datetime

from dropforge.domain.endpoints import Deployment, Desired
from dropforge.domain.errors import NotFound
from dropforge.ports import Json, Ports
from dropforge.steps import books, tracing
from dropforge.wire import from_builtins

SUPERSEDED = "a newer deployment of this endpoint was asked for"
# The span from the desired state to the replicas that serve it; theirs lie under it.
SWAP = "swap model"


def tell_replicas(ports: Ports, endpoint: str) -> Json:
    """Publish what the endpoint's head wants; returns the head. Raises `NotFound`."""
    row = books.endpoint_head(ports.ledger, endpoint)
    if row is None:
        raise NotFound(f"no endpoint {endpoint!r}", endpoint=endpoint)
    desired = Desired(
        endpoint=endpoint,
        revision=row.value["revision"],
        deployments=tuple(from_builtins(Deployment, each) for each in row.value["deployments"]),
        written_at=datetime.fromisoformat(row.value["written_at"]),
        # One from before it was looked at wants whatever it wanted then.
        signature=row.value.get("signature", "any"),
        trace=tracing.of_endpoint(row.value).parent(SWAP, f"{endpoint}/{row.value['revision']}"),
    )
    ports.serving.publish(desired)
    return row.value
