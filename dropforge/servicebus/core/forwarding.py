"""From one entity on to the next."""

from __future__ import annotations

from dropforge.servicebus.core.hub import Hub
from dropforge.servicebus.errors import BrokerError, not_found
from dropforge.servicebus.message import Message

# https://learn.microsoft.com/azure/service-bus-messaging/service-bus-auto-forwarding
MAX_HOPS = 4
TOO_MANY_HOPS = (
    "MaxTransferHopCountExceeded",
    "The maximum number of allowed hops when forwarding between queues has been exceeded. This value is set to 4.",
)


def forward(hub: Hub, message: Message, target: str, hops: int) -> tuple[str, str] | None:
    """Move a message that is in no queue to the target. Returns None, or the reason and description why it cannot go
    there; the message is unchanged then."""
    if hops >= MAX_HOPS:
        return TOO_MANY_HOPS
    try:
        entity = hub.find(target)
        if entity is None:
            raise not_found(target)
        entity.transfer(message, hops + 1)
    except BrokerError as error:
        return error.condition, error.description
    return None
