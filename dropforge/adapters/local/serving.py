"""Serving as two folders of small files, shared with the inference servers on this machine.

    <root>/desired/<endpoint>.json               what the endpoint should serve (`Desired`)
    <root>/replicas/<replica>/<endpoint>.json    what one replica says it serves (`ReplicaState`)

A reader sees a whole file or none. The functions are what an inference server needs; the class is the port.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from dropforge.adapters.local.atomic import locked, make_folders, whole_file
from dropforge.adapters.replica_names import checked_replica
from dropforge.domain.endpoints import Desired, ReplicaState
from dropforge.domain.errors import BadInput, Unavailable
from dropforge.domain.names import checked_name
from dropforge.wire import from_json, to_json

ALIVE = timedelta(seconds=10)
# Reports of replicas that ended long ago are taken away, so that restarts do not pile up.
FORGET = timedelta(days=1)

T = TypeVar("T")


def read_desired(root: Path, endpoint: str) -> Desired | None:
    """What was published last for the endpoint, or None. Raises `Unavailable` for a file that cannot be read."""
    return _read(Desired, _desired_path(root, endpoint))


def list_desired(root: Path) -> list[Desired]:
    """What was published last for every endpoint, by name. Raises `Unavailable` when one of them cannot be read: an
    endpoint that is left out would look like one that was taken away."""
    paths = sorted((root / "desired").glob("[!.]*.json"))
    return [desired for path in paths if (desired := _read(Desired, path)) is not None]


def write_report(root: Path, state: ReplicaState) -> None:
    """Say what a replica serves, in place of what it said before. Not synced: a report is stale after seconds."""
    path = _report_path(root, state.replica, state.endpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=False) as writer:
        writer.write(to_json(state))


def remove_report(root: Path, replica: str, endpoint: str) -> None:
    """Take the report away, as a replica does that ends in good order; no effect when there is none."""
    _report_path(root, replica, endpoint).unlink(missing_ok=True)


class LocalServing:
    """`Serving` over the two folders. A replica is alive while its last report is younger than `alive`."""

    def __init__(
        self, root: Path, alive: timedelta = ALIVE, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._root = root
        self._alive = alive
        self._clock = clock
        make_folders(root / "desired")
        (root / "replicas").mkdir(parents=True, exist_ok=True)
        self._forget_the_dead()

    def publish(self, desired: Desired) -> None:
        path = _desired_path(self._root, desired.endpoint)
        with locked(path.with_name(f".{desired.endpoint}.lock")):
            published = read_desired(self._root, desired.endpoint)
            if published is None or desired.revision > published.revision:
                with whole_file(path) as writer:
                    writer.write(to_json(desired))

    def desired(self, endpoint: str) -> Desired | None:
        return read_desired(self._root, endpoint)

    def observe(self, endpoint: str) -> list[ReplicaState]:
        since = self._clock() - self._alive
        paths = sorted((self._root / "replicas").glob(f"*/{checked_name(endpoint, 'endpoint')}.json"))
        states: list[ReplicaState] = []
        for path in paths:
            # A power cut can leave an unsynced report empty; the replica, if it lives, writes the next one in seconds.
            with suppress(Unavailable):
                state = _read(ReplicaState, path)
                if state is not None and state.reported_at > since:
                    states.append(state)
        return states

    def _forget_the_dead(self) -> None:
        before = (self._clock() - FORGET).timestamp()
        for path in (self._root / "replicas").glob("*/*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()


def _desired_path(root: Path, endpoint: str) -> Path:
    return root / "desired" / f"{checked_name(endpoint, 'endpoint')}.json"


def _report_path(root: Path, replica: str, endpoint: str) -> Path:
    return root / "replicas" / checked_replica(replica) / f"{checked_name(endpoint, 'endpoint')}.json"


def _read(kind: type[T], path: Path) -> T | None:
    try:
        return from_json(kind, path.read_bytes())
    except FileNotFoundError:
        return None
    except BadInput as error:
        raise Unavailable(f"{path} cannot be read: {error}; publish again, or restore the file") from error
