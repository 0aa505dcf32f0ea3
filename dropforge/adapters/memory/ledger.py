"""The ledger in memory: for tests and rehearsals."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from dropforge.adapters.ledger_rows import checked_key, checked_scan, checked_writes, conflict
from dropforge.ports import Delete, Insert, Row, Write


@dataclass
class _Partition:
    keys: list[str] = field(default_factory=list)
    # Values stay JSON text: nobody can change a row through the object they wrote or read.
    rows: dict[str, tuple[str, str]] = field(default_factory=dict)


class MemoryLedger:
    """`Ledger` that lives as long as the object; threads of one process may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._partitions: dict[str, _Partition] = {}
        self._writes = 0

    def get(self, partition: str, key: str) -> Row | None:
        checked_key(partition, "partition")
        checked_key(key, "key")
        with self._lock:
            found = self._of(partition).rows.get(key)
        return None if found is None else Row(key, json.loads(found[0]), found[1])

    def scan(self, partition: str, prefix: str = "", after: str = "", limit: int = 1000) -> list[Row]:
        checked_scan(partition, prefix, after, limit)
        with self._lock:
            part = self._of(partition)
            first = max(bisect_left(part.keys, prefix), bisect_right(part.keys, after))
            # "\x7f" sorts after every character a key may hold.
            end = bisect_left(part.keys, f"{prefix}\x7f")
            found = [(key, *part.rows[key]) for key in part.keys[first : min(end, first + limit)]]
        return [Row(key, json.loads(text), etag) for key, text, etag in found]

    def count(self, partition: str, prefix: str, limit: int) -> int:
        checked_scan(partition, prefix, "", limit)
        with self._lock:
            keys = self._of(partition).keys
            return min(limit, bisect_left(keys, f"{prefix}\x7f") - bisect_left(keys, prefix))

    def commit(self, partition: str, writes: Sequence[Write]) -> None:
        checked = checked_writes(partition, writes)
        with self._lock:
            part = self._partitions.setdefault(partition, _Partition())
            for write, _ in checked:
                found = part.rows.get(write.key)
                etag = found[1] if found else None
                if isinstance(write, Insert):
                    refused = found is not None
                else:
                    refused = write.etag != etag and not (isinstance(write, Delete) and write.etag is None)
                if refused:
                    raise conflict(partition, write)
            for write, text in checked:
                if isinstance(write, Delete):
                    if part.rows.pop(write.key, None):
                        part.keys.remove(write.key)
                    continue
                if write.key not in part.rows:
                    insort(part.keys, write.key)
                self._writes += 1
                part.rows[write.key] = (text, f"{self._writes:x}")

    def _of(self, partition: str) -> _Partition:
        return self._partitions.get(partition) or _Partition()
