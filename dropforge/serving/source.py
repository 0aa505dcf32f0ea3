"""Where desired states come from and reports go to: the folders that `adapters.local.serving` lays out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dropforge.adapters.local.serving import REPLICA, read_desired, remove_report, write_report
from dropforge.domain.endpoints import Desired, ReplicaState
from dropforge.domain.errors import BadName, DropforgeError
from dropforge.domain.names import NAME

# A file this young is read again next time: a second write within one tick of the file system's clock may look the same.
YOUNG_NS = 100_000_000


class Source(Protocol):
    """What a replica needs from the store of desired states. Called on a worker thread, one call at a time."""

    def changes(self) -> dict[str, Desired | DropforgeError | None]:
        """What changed since the last call, by endpoint; the first call tells all. None: nothing is desired any more.
        An error: something is, but it cannot be read. Raises `OSError` when the store does not answer."""

    def report(self, state: ReplicaState) -> None:
        """Say what this replica serves."""

    def forget(self, endpoint: str) -> None:
        """This replica has nothing more to say about the endpoint."""


@dataclass
class _Seen:
    """The file of one endpoint when it was last read. `settled`: no later write can look like this one."""

    mark: tuple[int, int, int]
    settled: bool
    told: Desired | str


class Folder:
    """A state folder on this machine."""

    def __init__(self, root: Path, replica: str) -> None:
        self._root = root
        self._replica = replica
        self._seen: dict[str, _Seen] = {}

    def changes(self) -> dict[str, Desired | DropforgeError | None]:
        try:
            names = {path.stem for path in (self._root / "desired").iterdir() if path.suffix == ".json"}
        except FileNotFoundError:
            # No folder says nothing about what is desired: it may be a mount that went away.
            return {}
        changed: dict[str, Desired | DropforgeError | None] = {}
        # What was seen before is looked up by its name: a listing may miss a file that is being replaced.
        for endpoint in sorted(self._seen.keys() | {name for name in names if NAME.fullmatch(name)}):
            before = self._seen.get(endpoint)
            mark = self._mark(endpoint)
            if mark is None:
                if self._seen.pop(endpoint, None) is not None:
                    changed[endpoint] = None
                continue
            if before is not None and before.settled and before.mark == mark:
                continue
            found = self._read(endpoint)
            if found is None:
                continue
            told = str(found) if isinstance(found, DropforgeError) else found
            self._seen[endpoint] = _Seen(mark, time.time_ns() - mark[0] > YOUNG_NS, told)
            if before is None or before.mark != mark or before.told != told:
                changed[endpoint] = found
        return changed

    def report(self, state: ReplicaState) -> None:
        write_report(self._root, state)

    def forget(self, endpoint: str) -> None:
        remove_report(self._root, self._replica, endpoint)

    def _mark(self, endpoint: str) -> tuple[int, int, int] | None:
        try:
            status = (self._root / "desired" / f"{endpoint}.json").stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    def _read(self, endpoint: str) -> Desired | DropforgeError | None:
        try:
            return read_desired(self._root, endpoint)
        except DropforgeError as error:
            return error


def open_source(root: Path, replica: str) -> Source:
    """The store of desired states for one replica. Another kind of store is another branch here. Raises `BadName`."""
    if not REPLICA.fullmatch(replica):
        raise BadName(f"replica {replica!r} is not a name; wanted {REPLICA.pattern}", name=replica)
    return Folder(root, replica)
