"""The bookkeeping of one execution: what is open, which ids are taken, what was asked for so far.

Written whole with every episode. It is a function of the history (a rewind rebuilds it by delivering the recorded
messages again), kept so that an episode does not have to work it out anew.
"""

import msgspec


class Open(msgspec.Struct, array_like=True):
    """A task or timer that is not finished.

    `kind` is activity, child, timer or entity. `action` is its place among the numbered actions. `attempt` counts from
    1 where the action has a retry policy and is 0 elsewhere; a `timer` with an attempt is the pause after that attempt.
    `due` is when a timer fires. `request` is the id under which an entity answers.
    """

    kind: str
    action: int
    attempt: int = 0
    due: int = 0
    request: str = ""


class Wait(msgspec.Struct, array_like=True):
    """A wait for an external event, numbered in the order in which the orchestrator asked."""

    number: int
    name: str


class Buffered(msgspec.Struct, array_like=True):
    """An external event nobody has waited for yet, as the text of its history event."""

    name: str
    text: str


class Final(msgspec.Struct, array_like=True):
    """How the code ended, kept until no task or timer is open. `output` is JSON text."""

    status: str
    output: str | None


class Book(msgspec.Struct, omit_defaults=True):
    next_id: int = 0
    at: int = 0  # time of the last episode: never goes back within an instance
    signatures: list[str] = []
    ids: list[int] = []  # by numbered action: the id of its first attempt
    open: dict[int, Open] = {}
    waits_seen: int = 0
    waiting: list[Wait] = []  # newest last: like the SDK, the host serves the newest first
    buffered: list[Buffered] = []
    blocked: bool = False  # the orchestrator went past a wait that the host sees unfulfilled
    has_custom_status: bool = False
    final: Final | None = None

    def retries_open(self) -> bool:
        return any(task.attempt for task in self.open.values())

    def gate_open(self) -> list[tuple[int, Open]]:
        """The tasks and timers that keep a finished orchestrator from being completed."""
        return [(task_id, task) for task_id, task in self.open.items() if task.kind != "entity"]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Book)


def encode(book: Book) -> bytes:
    return _encoder.encode(book)


def decode(data: bytes | str) -> Book:
    return _decoder.decode(data)
