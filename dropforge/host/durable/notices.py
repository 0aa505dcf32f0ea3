"""Things Azure would do without a word (hang, lose, retry for ever), said aloud and kept for whoever asks."""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

DTS_LIMIT = 1_048_576  # bytes: Durable Task Scheduler refuses a larger input, output, event, status or entity state
BLOB_LIMIT = 45 * 1024  # bytes: Azure Storage moves a larger payload to a blob, which costs a round trip each


class Code(StrEnum):
    EVENT_NAME_CASE = "event-name-case"
    EVENT_LOST = "event-lost"
    EVENT_UNHEARD = "event-unheard"
    EVENT_REUSED = "event-reused"
    NOT_A_TASK = "not-a-task"
    NOTHING_OPEN = "nothing-open"
    STATUS_DROPPED = "status-dropped"
    WAITS_FOR_TIMER = "waits-for-timer"
    WAITS_FOR_TASK = "waits-for-task"
    NOT_JSON = "not-json"
    TOO_LARGE = "too-large"
    LARGE = "large"
    UNKNOWN_NAME = "unknown-name"
    NON_DETERMINISTIC = "non-deterministic"
    CHILDREN_LEFT = "children-left"
    SLOW_EPISODE = "slow-episode"
    NOT_PURGED = "not-purged"
    ENTITY_FAILED = "entity-failed"


_QUIET = {
    Code.LARGE: logging.INFO,
    Code.WAITS_FOR_TASK: logging.INFO,
    # The instance fails with these words, which is logged as its end.
    Code.NOT_A_TASK: logging.DEBUG,
    Code.NOT_JSON: logging.DEBUG,
    Code.UNKNOWN_NAME: logging.DEBUG,
    Code.NON_DETERMINISTIC: logging.DEBUG,
}


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing worth knowing about one instance; `subject` tells apart what may be said once each."""

    code: Code
    instance_id: str
    message: str
    subject: str = ""

    @property
    def level(self) -> int:
        return _QUIET.get(self.code, logging.WARNING)


class NoticeBoard:
    """The last notices, each said once: the same code about the same subject of an instance is not repeated."""

    def __init__(self, log: logging.Logger, size: int = 1_000) -> None:
        self.log = log
        self._size = size
        self._kept: deque[Notice] = deque(maxlen=size)
        self._said: dict[tuple[str, str, str], None] = {}

    def post(self, notice: Notice, function: str = "") -> None:
        key = (notice.code, notice.instance_id, notice.subject)
        if key in self._said:
            return
        self._said[key] = None
        if len(self._said) > self._size:
            del self._said[next(iter(self._said))]
        self._kept.append(notice)
        extra = {"instance_id": notice.instance_id, "function": function, "notice": notice.code.value}
        self.log.log(notice.level, notice.message, extra=extra)

    def __iter__(self) -> Iterator[Notice]:
        return iter(tuple(self._kept))

    def __len__(self) -> int:
        return len(self._kept)


def size_notice(instance_id: str, what: str, text: str | None) -> Notice | None:
    """A notice about a payload that Azure treats differently because of its size, or None."""
    if text is None or len(text) <= BLOB_LIMIT // 4:  # a character is at most four bytes: most payloads end here
        return None
    size = len(text.encode())
    if size > DTS_LIMIT:
        advice = (
            f"{what} has {size:,} bytes; the Durable Task Scheduler refuses more than {DTS_LIMIT:,}: pass a reference"
        )
        return Notice(Code.TOO_LARGE, instance_id, advice, what)
    if size > BLOB_LIMIT:
        advice = f"{what} has {size:,} bytes; above {BLOB_LIMIT:,} Azure Storage keeps it in a blob: pass a reference"
        return Notice(Code.LARGE, instance_id, advice, what)
    return None
