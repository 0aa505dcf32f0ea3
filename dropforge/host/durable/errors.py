"""What the durable engine refuses, as one hierarchy.

DurableError
├── UnknownOrchestrator        no orchestrator of that name
├── UnknownEntity              no entity of that name
├── BadInstanceId              the id breaks the rules of Durable Functions
├── BadPayload                 the payload is not JSON
├── BadQuery                   a filter or a continuation token that makes no sense
├── InstanceExists             a live instance has that id
├── InstanceNotFound           no instance has that id
├── InstanceFinished           the instance is completed, failed or terminated
├── NotRewindable              only a failed instance can be rewound
└── EngineStopped              the engine is not running (any more)
"""

from collections.abc import Iterable


class DurableError(Exception):
    """Base of everything the engine refuses."""


def _choices(names: Iterable[str]) -> str:
    known = sorted(names)
    return f"choose one of {known}" if known else "the app has none"


class UnknownOrchestrator(DurableError):
    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"The function '{name}' is not an orchestrator of this app; {_choices(known)}.")
        self.name = name


class UnknownEntity(DurableError):
    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"The function '{name}' is not an entity of this app; {_choices(known)}.")
        self.name = name


class BadInstanceId(DurableError):
    def __init__(self, instance_id: str, rule: str) -> None:
        super().__init__(f"Instance id {instance_id!r} is not allowed: {rule}.")
        self.instance_id = instance_id


class BadPayload(DurableError):
    def __init__(self, what: str, found: str) -> None:
        super().__init__(f"{what} must be JSON (or plain text where that is meant); found {found}.")


class BadQuery(DurableError):
    """A filter that cannot be applied."""


class InstanceExists(DurableError):
    def __init__(self, instance_id: str, status: str) -> None:
        super().__init__(
            f"An Orchestration instance with the id '{instance_id}' already exists and is {status}; "
            "wait until it is finished, terminate it, or start another id."
        )
        self.instance_id = instance_id
        self.status = status


class InstanceNotFound(DurableError):
    def __init__(self, instance_id: str) -> None:
        super().__init__(f"No instance with id '{instance_id}' found.")
        self.instance_id = instance_id


class InstanceFinished(DurableError):
    def __init__(self, instance_id: str, status: str) -> None:
        super().__init__(f"Instance '{instance_id}' is gone: it is already {status}.")
        self.instance_id = instance_id
        self.status = status


class NotRewindable(DurableError):
    def __init__(self, instance_id: str, why: str) -> None:
        super().__init__(f"Instance '{instance_id}' cannot be rewound: {why}.")
        self.instance_id = instance_id


class EngineStopped(DurableError):
    def __init__(self, why: str) -> None:
        super().__init__(f"The durable engine is not running: {why}.")
