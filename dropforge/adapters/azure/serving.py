"""Serving as blobs of one container, shared with the inference servers wherever they run.

    desired/<endpoint>.json               what the endpoint should serve (`Desired`)
    replicas/<replica>/<endpoint>.json    what one replica says it serves (`ReplicaState`)
    logs/<endpoint>/date=/hour=/...       requests and answers, where a replica is told to log some

A blob appears whole or not at all. `ServingBlobs` is what an inference server needs; `BlobServing` is the port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError

from dropforge.adapters.azure import places, storage
from dropforge.adapters.replica_names import checked_replica
from dropforge.domain.blobs import BlobRef, checked_path, normal_etag, parse_url
from dropforge.domain.endpoints import Desired, ReplicaState
from dropforge.domain.errors import BadInput, Conflict, NotFound, Unavailable
from dropforge.domain.names import NAME, checked_name
from dropforge.wire import from_json, to_json

# Three reports of `dropforge.serving.blobs` may be lost.
ALIVE = timedelta(seconds=35)
# Reports of replicas that ended long ago are neither read nor kept: every restart of a container leaves some.
FORGET = timedelta(hours=1)
_DESIRED, _REPLICAS, _JSON = "desired/", "replicas/", ".json"


@dataclass(frozen=True)
class Published:
    """What was published for an endpoint, and the etag of that write. `desired` is the error of a blob that cannot be
    read."""

    desired: Desired | Unavailable
    etag: str


class ServingBlobs:
    """The container, as a replica sees it. Any number of threads may use it."""

    def __init__(self, account: str, container: str = places.SERVING) -> None:
        """`account`: a connection string, or the account's URL. Raises `BadInput` that names the setting."""
        self.service = storage.service(account)
        self.place = storage.Place(storage.account_name(self.service), container)
        self._client = self.service.get_container_client(container)

    def close(self) -> None:
        """Close the connections."""
        self.service.close()

    def read_desired(self, endpoint: str, before: Published | None = None) -> Published | None:
        """What was published last for the endpoint, or None; `before` itself when that has not been written again, which
        costs one small answer without a body."""
        blob = _desired_name(endpoint)
        asked = _condition(MatchConditions.IfModified, before.etag) if before is not None else {}
        with suppress(NotFound), storage.errors(self.place, blob):
            try:
                found = self._client.get_blob_client(blob).download_blob(**asked)
            except HttpResponseError as error:
                if error.status_code == 304:
                    return before
                raise
            return Published(self._parsed(blob, found.readall()), normal_etag(found.properties.etag))
        return None

    def list_desired(self) -> dict[str, str]:
        """The etag of what was published, by endpoint."""
        with storage.errors(self.place):
            return {
                name: normal_etag(blob.etag)
                for blob in self._client.list_blobs(name_starts_with=_DESIRED)
                if NAME.fullmatch(name := blob.name.removeprefix(_DESIRED).removesuffix(_JSON))
            }

    def write_desired(self, desired: Desired, over: str | None) -> None:
        """Publish, if the blob still has the etag `over` (None: if there is none). Raises `Conflict` otherwise."""
        condition = _condition(MatchConditions.IfNotModified, over) if over is not None else {}
        self._write(_desired_name(desired.endpoint), desired, {"overwrite": over is not None, **condition})

    def write_report(self, state: ReplicaState) -> None:
        """Say what a replica serves, in place of what it said before."""
        self._write(_report_name(state.replica, state.endpoint), state, {"overwrite": True})

    def remove_report(self, replica: str, endpoint: str) -> None:
        """Take the report away, as a replica does that ends in good order; no effect when there is none."""
        self._remove(_report_name(replica, endpoint))

    def reports(self, endpoint: str, since: datetime) -> list[ReplicaState]:
        """The reports about the endpoint written after `since`, by replica; what is older is taken away."""
        last = f"/{checked_name(endpoint, 'endpoint')}{_JSON}"
        with storage.errors(self.place):
            listed = list(self._client.list_blobs(name_starts_with=_REPLICAS))
        # A Data Lake lists folders too. They stay as old as they were made, and only an empty one can be taken away.
        in_use = {blob.name.rpartition("/")[0] for blob in listed}
        states: list[ReplicaState] = []
        for blob in listed:
            if blob.name in in_use:
                continue
            if blob.last_modified < since:
                self._remove(blob.name)
            elif blob.name.endswith(last) and (state := self._report(blob.name)) is not None:
                states.append(state)
        return states

    def write_log(self, name: str, data: bytes) -> None:
        """Put a file of a log down. One of that name is it already: names are used once, and a write that was told to have
        failed may have been done."""
        try:
            self._client.get_blob_client(name).upload_blob(data, overwrite=False)
        except AzureError as error:
            if not storage.is_taken(error):
                raise storage.mapped(error, self.place, name) from error

    def open_model(self, uri: str) -> tuple[int, Iterator[bytes]]:
        """Size and pieces of the model at a URI, read as this process's identity: of this account's artifacts only.
        Raises `BadInput` for any other URI, `NotFound` and `Unavailable`, the last also between two pieces."""
        blob = self._artifact(uri)
        place = storage.Place(self.place.account, places.ARTIFACTS, storage.READER)
        with storage.errors(place, blob):
            found = self.service.get_blob_client(places.ARTIFACTS, blob).download_blob()

        def pieces() -> Iterator[bytes]:
            with storage.errors(place, blob):
                yield from found.chunks()

        return found.size, pieces()

    def _artifact(self, uri: str) -> str:
        """The name of an artifact, by either of the names that its account has: the public one, and the one it is reached
        by."""
        here = storage.endpoint(self.service) + "/"
        if uri.startswith(here):
            container, _, path = unquote(urlsplit(uri.removeprefix(here)).path).partition("/")
            ref = BlobRef(self.place.account, container, checked_path(container, path, uri))
        else:
            ref = parse_url(uri)
        if (ref.account, ref.container) != (self.place.account, places.ARTIFACTS):
            raise BadInput(
                f"cannot fetch {uri!r}: this server takes models from container {places.ARTIFACTS!r} of storage account "
                f"{self.place.account!r} and from nowhere else",
                uri=uri,
            )
        return ref.path

    def _report(self, blob: str) -> ReplicaState | None:
        # The replica may have ended since the listing. What cannot be read is written anew in seconds, if it lives.
        with suppress(NotFound, BadInput), storage.errors(self.place, blob):
            return from_json(ReplicaState, self._client.get_blob_client(blob).download_blob().readall())
        return None

    def _write(self, blob: str, value: object, condition: dict[str, Any]) -> None:
        with storage.errors(self.place, blob):
            self._client.get_blob_client(blob).upload_blob(to_json(value), **condition)

    def _remove(self, blob: str) -> None:
        with suppress(NotFound), storage.errors(self.place, blob):
            self._client.get_blob_client(blob).delete_blob()

    def _parsed(self, blob: str, text: bytes) -> Desired | Unavailable:
        try:
            return from_json(Desired, text)
        except BadInput as error:
            return Unavailable(f"{blob} in {self.place} cannot be read: {error}; publish again, or restore the blob")


class BlobServing:
    """`Serving` over the container. A replica is alive while its last report is younger than `alive`."""

    def __init__(
        self,
        account: str,
        container: str = places.SERVING,
        alive: timedelta = ALIVE,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._blobs = ServingBlobs(account, container)
        self._alive = alive
        self._clock = clock

    def close(self) -> None:
        """Close the connections."""
        self._blobs.close()

    def publish(self, desired: Desired) -> None:
        while True:
            published = self._blobs.read_desired(desired.endpoint)
            if published is not None and desired.revision <= _readable(published).revision:
                return
            # Somebody may have published meanwhile: look again, his may be the newer one.
            with suppress(Conflict):
                self._blobs.write_desired(desired, published.etag if published is not None else None)
                return

    def desired(self, endpoint: str) -> Desired | None:
        published = self._blobs.read_desired(endpoint)
        return _readable(published) if published is not None else None

    def observe(self, endpoint: str) -> list[ReplicaState]:
        now = self._clock()
        found = self._blobs.reports(endpoint, now - FORGET)
        return [state for state in found if state.reported_at > now - self._alive]


def _condition(condition: MatchConditions, etag: str) -> dict[str, Any]:
    # Listings tell etags without quotes, answers with them; conditions want them.
    return {"etag": f'"{etag}"', "match_condition": condition}


def _readable(published: Published) -> Desired:
    if isinstance(published.desired, Unavailable):
        raise published.desired
    return published.desired


def _desired_name(endpoint: str) -> str:
    return f"{_DESIRED}{checked_name(endpoint, 'endpoint')}{_JSON}"


def _report_name(replica: str, endpoint: str) -> str:
    return f"{_REPLICAS}{checked_replica(replica)}/{checked_name(endpoint, 'endpoint')}{_JSON}"
