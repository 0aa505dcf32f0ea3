"""Where desired states and models come from and reports go to: the folders that `adapters.local.serving` lays out, or a
container of a storage account (`dropforge.serving.blobs`)."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dropforge.adapters.local.atomic import whole_file
from dropforge.adapters.local.serving import read_desired, remove_report, write_report
from dropforge.adapters.replica_names import checked_replica
from dropforge.domain.endpoints import Deployment, Desired, ReplicaState
from dropforge.domain.errors import BadInput, DropforgeError, Unavailable
from dropforge.domain.names import NAME
from dropforge.serving.cache import Cache
from dropforge.serving.models import fetch_file

# Of a file that could not be read. None that can has it, so it is looked at again.
NO_MARK = (0, 0, 0)
# A file this young is read again next time: a second write within one tick of the file system's clock may look the same.
YOUNG_NS = 100_000_000


class Source(Protocol):
    """What a replica needs from the store of desired states. Called on worker threads: `fetch` on one of its own, the
    others one call at a time."""

    # Between looks, unless the server is told otherwise; and between reports of what has not changed.
    poll_seconds: float
    report_seconds: float

    def changes(self) -> dict[str, Desired | DropforgeError | None]:
        """What changed since the last call, by endpoint; the first call tells all. None: nothing is desired any more.
        An error: something is, but it cannot be read. Raises `OSError` when the store does not answer."""

    def report(self, state: ReplicaState) -> None:
        """Say what this replica serves."""

    def forget(self, endpoint: str) -> None:
        """This replica has nothing more to say about the endpoint."""

    def keep(self, name: str, data: bytes) -> None:
        """Put a file of a log (`logs/...`) down, whole; once more, nothing changes. Raises `OSError` and `Unavailable`."""

    def fetch(self, deployment: Deployment, keep: Collection[str]) -> Path:
        """The file that holds the deployment's model; those with the sha256 in `keep` serve, and stay. Raises `NotFound`,
        `Unavailable`, or `BadInput` for what nobody here fetches."""

    def read(self, uri: str, limit_bytes: int) -> bytes:
        """A small file from where models come from. Raises as `fetch`, and `BadInput` for one above the limit."""


@dataclass
class _Seen:
    """The file of one endpoint when it was last read. `settled`: no later write can look like this one."""

    mark: tuple[int, int, int]
    settled: bool
    told: Desired | str


class Folder:
    """A state folder on this machine."""

    poll_seconds = 0.1
    report_seconds = 1.0

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
        # Taken over at the end only: what is told of by half is told again.
        seen = dict(self._seen)
        # What was seen before is looked up by its name: a listing may miss a file that is being replaced.
        for endpoint in sorted(seen.keys() | {name for name in names if NAME.fullmatch(name)}):
            before = self._seen.get(endpoint)
            try:
                mark = self._mark(endpoint)
                if mark is None:
                    if seen.pop(endpoint, None) is not None:
                        changed[endpoint] = None
                    continue
                if before is not None and before.settled and before.mark == mark:
                    continue
                found = self._read(endpoint)
            except OSError as error:
                # Of one file, which may be better at the next look; the others converge.
                path = self._root / "desired" / f"{endpoint}.json"
                mark, found = NO_MARK, Unavailable(f"{path} cannot be read: {error.strerror or error}")
            if found is None:
                continue
            told = str(found) if isinstance(found, DropforgeError) else found
            seen[endpoint] = _Seen(mark, time.time_ns() - mark[0] > YOUNG_NS, told)
            if before is None or before.mark != mark or before.told != told:
                changed[endpoint] = found
        self._seen = seen
        return changed

    def report(self, state: ReplicaState) -> None:
        write_report(self._root, state)

    def forget(self, endpoint: str) -> None:
        remove_report(self._root, self._replica, endpoint)

    def keep(self, name: str, data: bytes) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, durable=False) as writer:
            writer.write(data)

    def fetch(self, deployment: Deployment, keep: Collection[str]) -> Path:
        return fetch_file(deployment.uri)

    def read(self, uri: str, limit_bytes: int) -> bytes:
        path = fetch_file(uri)
        try:
            if path.stat().st_size > limit_bytes:
                raise BadInput(f"{path} is larger than {limit_bytes} bytes")
            return path.read_bytes()
        except OSError as error:
            raise Unavailable(f"cannot read {path}: {error.strerror or error}") from error

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


def open_source(root: str | Path, replica: str, environment: Mapping[str, str] = os.environ) -> Source:
    """The store of desired states for one replica: a folder, or a container of a storage account by its URL
    (`https://<account>.blob.core.windows.net/serving`) or, for an empty `root`, by DROPFORGE_STORAGE. Raises `BadName` and
    `BadInput`."""
    checked_replica(replica)
    place = str(root)
    if place and not place.startswith(("https://", "http://")):
        return Folder(Path(place), replica)
    cache = Cache(_cache_folder(environment), _cache_bytes(environment))
    # Only here: who serves from a folder loads no Azure SDK.
    from dropforge.serving.blobs import open_blobs

    return open_blobs(place, replica, cache, environment)


def _cache_folder(environment: Mapping[str, str]) -> Path:
    named = environment.get("DROPFORGE_SERVE_CACHE")
    return Path(named or Path(tempfile.gettempdir()) / f"dropforge-models-{os.getuid()}")


def _cache_bytes(environment: Mapping[str, str]) -> int:
    text = environment.get("DROPFORGE_SERVE_CACHE_MB", "4096")
    if not text.isascii() or not text.isdigit() or not text[:9] == text:
        raise BadInput(f"setting DROPFORGE_SERVE_CACHE_MB is {text!r}; it must be a whole number of megabytes")
    return int(text) * 2**20
