"""One run of an orchestrator, and what an episode of it leads to."""

import json
from dataclasses import dataclass, field

from dropforge.host.durable.book import Book, Final
from dropforge.host.durable.messages import Message, Parent
from dropforge.host.durable.notices import Notice

_SCHEMA = '"upperSchemaVersion":1,"upperSchemaVersionNew":2,"defaultHttpAsyncRequestSleepTimeMillseconds":30000'
_SLICES = ',"longRunningTimerIntervalDuration":"3.00:00:00","maximumShortTimerDuration":"6.00:00:00"'


@dataclass(slots=True)
class Execution:
    """One run of an orchestrator from its input to its end or to `continue_as_new`."""

    instance_id: str
    execution_id: str
    name: str
    version: str
    input: str | None  # JSON text
    parent: Parent | None
    history: list[str] = field(default_factory=list)  # the events of an episode as one JSON text, comma-separated
    book: Book = field(default_factory=Book)
    characters: int = 1_000  # how much memory it takes, roughly

    def append(self, events: str) -> None:
        self.history.append(events)
        self.characters += len(events)

    def context(self, events: list[str], *, slice_long_timers: bool = True) -> str:
        """The JSON the SDK gets: the whole history, ending in the open episode `events`."""
        parent = json.dumps(self.parent.instance_id) if self.parent else "null"
        return (
            f'{{"history":[{",".join([*self.history, *events])}],"input":{self.input or "null"},'
            f'"instanceId":{json.dumps(self.instance_id)},"isReplaying":{"true" if self.history else "false"},'
            f'"parentInstanceId":{parent},{_SCHEMA}{_SLICES if slice_long_timers else ""}}}'
        )


@dataclass(frozen=True, slots=True)
class ActivityOrder:
    instance_id: str
    execution_id: str
    task_id: int
    name: str
    input: str | None


@dataclass(frozen=True, slots=True)
class ChildOrder:
    parent: Parent
    name: str
    instance_id: str
    version: str
    input: str | None


@dataclass(frozen=True, slots=True)
class Operation:
    """A request to an entity, as the text of its request message."""

    entity_id: str
    text: str


@dataclass(slots=True)
class Outcome:
    """What an episode leads to; all of it is stored in one transaction."""

    events: str = ""
    activities: list[ActivityOrder] = field(default_factory=list)
    timers: list[tuple[int, int]] = field(default_factory=list)  # (task id, due)
    cancelled: list[tuple[int, int]] = field(default_factory=list)
    children: list[ChildOrder] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    custom_status: str | None = None  # None: as before
    carried: list[Message] | None = None  # set: continued as new, these come first
    finished: Final | None = None
    abandoned: bool = False  # finished with tasks or timers still open: they are dropped
    notices: list[Notice] = field(default_factory=list)
