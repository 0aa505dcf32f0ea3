"""What the durable engine needs from the host: someone who runs the user's functions."""

from typing import Protocol


class Invoker(Protocol):
    """Runs the functions of the user's app; the engine decides when.

    The three sets hold *durable* names, which may differ from the Python names (`orchestration=`, `activity=`,
    `entity_name=`). Orchestrator and activity names are matched exactly, entity names without regard to case.
    """

    @property
    def orchestrators(self) -> frozenset[str]: ...

    @property
    def activities(self) -> frozenset[str]: ...

    @property
    def entities(self) -> frozenset[str]: ...

    def orchestrate(self, name: str, context_json: str) -> str:
        """Replays the orchestrator over the history in `context_json` and returns its state as JSON.

        Called in the engine's thread, one call at a time; must not block. A failed orchestrator raises what the SDK
        raises: a message that ends in `$OutOfProcData$:` and the state.
        """
        ...

    def operate(self, name: str, context_json: str) -> str:
        """Applies the batch of operations in `context_json` to one entity and returns state and results as JSON.

        `name` is lower-cased, as in entity instance ids. Called in the engine's thread, one call at a time.
        """
        ...

    async def act(self, name: str, input_json: str | None, *, instance_id: str, task_id: int) -> str | None:
        """Runs an activity, JSON text in and out, on the host's event loop; raises the user's exception.

        May be called again for the same instance and task after a crash: activities run at least once.
        """
        ...
