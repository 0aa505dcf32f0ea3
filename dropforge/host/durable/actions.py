"""What an orchestrator asks for: the SDK's state JSON, decoded."""

from collections.abc import Iterator
from enum import IntEnum

import msgspec

HTTP_ACTIVITY = "BuiltIn::HttpActivity"


class ActionType(IntEnum):
    CALL_ACTIVITY = 0
    CALL_ACTIVITY_WITH_RETRY = 1
    CALL_CHILD = 2
    CALL_CHILD_WITH_RETRY = 3
    CONTINUE_AS_NEW = 4
    CREATE_TIMER = 5
    WAIT_FOR_EVENT = 6
    CALL_ENTITY = 7
    CALL_HTTP = 8
    SIGNAL_ENTITY = 9
    SCHEDULED_SIGNAL_ENTITY = 10
    WHEN_ANY = 11
    WHEN_ALL = 12


class RetryOptions(msgspec.Struct, rename="camel", frozen=True):
    first_retry_interval_in_milliseconds: int
    max_number_of_attempts: int


class Action(msgspec.Struct, rename="camel"):
    """One action; which fields are set depends on the type."""

    action_type: ActionType
    function_name: str = ""
    input: str | None = None
    instance_id: str | None = None
    version: str | None = None
    fire_at: str = ""
    is_canceled: bool = False
    external_event_name: str = ""
    operation: str = ""
    retry_options: RetryOptions | None = None
    http_request: msgspec.Raw = msgspec.Raw()
    compound_actions: list["Action"] = []

    @property
    def signature(self) -> str:
        """What the determinism check compares: empty for actions that leave no mark in the history."""
        kind = _SIGNED.get(self.action_type)
        if kind is None:
            return ""
        return f"{kind}:{self.target}"

    @property
    def target(self) -> str:
        match self.action_type:
            case ActionType.CALL_HTTP:
                return HTTP_ACTIVITY
            case ActionType.CREATE_TIMER:
                return ""
            case ActionType.CALL_ENTITY | ActionType.SIGNAL_ENTITY:
                return self.instance_id or ""
            case _:
                return self.function_name

    def leaves(self) -> Iterator["Action"]:
        """The actions without their compounds, in the order in which the SDK numbers them."""
        if self.action_type in _COMPOUND:
            for child in self.compound_actions:
                yield from child.leaves()
        else:
            yield self


_COMPOUND = (ActionType.WHEN_ANY, ActionType.WHEN_ALL)
# The actions that take the next sequential id. Waiting for an event and continuing as new take none.
_SIGNED = {
    ActionType.CALL_ACTIVITY: "activity",
    ActionType.CALL_ACTIVITY_WITH_RETRY: "activity",
    ActionType.CALL_HTTP: "activity",
    ActionType.CALL_CHILD: "sub-orchestration",
    ActionType.CALL_CHILD_WITH_RETRY: "sub-orchestration",
    ActionType.CREATE_TIMER: "timer",
    ActionType.CALL_ENTITY: "entity call",
    ActionType.SIGNAL_ENTITY: "entity signal",
}


class State(msgspec.Struct, rename="camel"):
    """The whole answer of an orchestrator: every action since the start, not only the new ones."""

    is_done: bool
    actions: list[list[Action]]
    schema_version: int = 0
    output: msgspec.Raw = msgspec.Raw()  # empty: the orchestrator returned None
    error: str | None = None
    custom_status: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(State)


def decode_state(text: str) -> State:
    """Raises msgspec.MsgspecError when the text is not JSON (NaN, for one) or not a state."""
    return _decoder.decode(text)
