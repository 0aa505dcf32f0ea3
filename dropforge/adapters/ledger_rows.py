"""What every ledger holds to: how keys, values and commits must look, checked the same way in each adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dropforge.domain.errors import BadInput, Conflict
from dropforge.ports import Delete, Insert, Json, Write

MAX_KEY = 500
# A key of Table storage: 1 KiB of UTF-16. See `azure/table_keys.py` for what it spells with two characters.
MAX_SPELLED = 512
SPELLED_WITH_TWO = frozenset(" !\"#$%&'*+./>?[\\")
MAX_VALUE_BYTES = 256 * 1024
MAX_WRITES = 100
# A transaction of Table storage is 4 MiB as it goes over the wire.
MAX_COMMIT_BYTES = 2 * 1024 * 1024


def checked_key(value: str, what: str) -> str:
    """The key or partition itself, when it is 1 to 500 printable ASCII characters; otherwise `BadInput`."""
    if not 1 <= len(value) <= MAX_KEY or not _is_printable(value):
        raise BadInput(f"ledger {what} {value!r} is not 1 to {MAX_KEY} printable ASCII characters; choose another")
    if len(value) > MAX_SPELLED // 2 and (size := len(value) + sum(map(value.count, SPELLED_WITH_TWO))) > MAX_SPELLED:
        raise BadInput(
            f"ledger {what} {value!r} is as long as {size} characters, more than {MAX_SPELLED}, with those of "
            f"{''.join(sorted(SPELLED_WITH_TWO))!r} counted twice; choose a shorter one"
        )
    return value


def checked_scan(partition: str, prefix: str, after: str, limit: int) -> None:
    """Raise `BadInput` for a scan no ledger can answer."""
    checked_key(partition, "partition")
    for what, text in (("prefix", prefix), ("after", after)):
        if len(text) > MAX_KEY or not _is_printable(text):
            raise BadInput(f"ledger scan {what} {text!r} is not at most {MAX_KEY} printable ASCII characters")
    if limit < 1:
        raise BadInput(f"ledger scan limit {limit} is less than 1; say how many rows are wanted")


def checked_writes(partition: str, writes: Sequence[Write]) -> list[tuple[Write, str]]:
    """Each write with its value as JSON text (empty for a delete). Raises `BadInput` before anything is written."""
    checked_key(partition, "partition")
    if len(writes) > MAX_WRITES:
        raise BadInput(f"a ledger commit holds at most {MAX_WRITES} writes, found {len(writes)}; split it")
    keys = {checked_key(write.key, "key") for write in writes}
    if len(keys) < len(writes):
        raise BadInput(f"a ledger commit to {partition!r} writes one key twice; say once what the row should be")
    checked = [(write, "" if isinstance(write, Delete) else _encoded(write.key, write.value)) for write in writes]
    size = sum(len(text) if text.isascii() else len(text.encode()) for _, text in checked)
    if size > MAX_COMMIT_BYTES:
        raise BadInput(
            f"a ledger commit holds at most {MAX_COMMIT_BYTES} bytes of JSON, found {size} in {len(writes)} writes; split it"
        )
    return checked


def conflict(partition: str, write: Write) -> Conflict:
    """The error for a write that found something else than it expects."""
    if isinstance(write, Insert):
        found = "there is such a row already"
    else:
        found = f"the row is gone or no longer has etag {write.etag}"
    name = type(write).__name__.lower()
    return Conflict(
        f"{name} of {write.key!r} in {partition!r}: {found}; read again and decide again",
        key=write.key,
        partition=partition,
    )


def _is_printable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _encoded(key: str, value: Json) -> str:
    try:
        # Not-a-number has no JSON; a lone surrogate has no UTF-8.
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"the value of ledger row {key!r} is not JSON: {error}", key=key) from error
    if not isinstance(value, dict):
        raise BadInput(f"the value of ledger row {key!r} is not an object but {type(value).__name__}", key=key)
    if size > MAX_VALUE_BYTES:
        raise BadInput(
            f"the value of ledger row {key!r} is {size} bytes of JSON, more than {MAX_VALUE_BYTES}; "
            "put the bytes among the artifacts and their name in the row",
            key=key,
        )
    return text
