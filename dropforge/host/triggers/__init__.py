"""The trigger types this host serves: one file each, one line each. Durable triggers are the durable engine's."""

from collections.abc import Callable, Mapping

from dropforge.host.triggers.event_grid import EventGridTrigger
from dropforge.host.triggers.http import HttpTrigger
from dropforge.host.triggers.service import Surroundings, TriggerService
from dropforge.host.triggers.service_bus import ServiceBusTrigger
from dropforge.host.triggers.timer import TimerTrigger

# HTTP comes last: its route takes every path that no other has taken.
SERVED: Mapping[str, Callable[[Surroundings], TriggerService]] = {
    "eventGridTrigger": EventGridTrigger,
    "serviceBusTrigger": ServiceBusTrigger,
    "timerTrigger": TimerTrigger,
    "httpTrigger": HttpTrigger,
}
DURABLE = frozenset({"orchestrationTrigger", "activityTrigger", "entityTrigger"})
