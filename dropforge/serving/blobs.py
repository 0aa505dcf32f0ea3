"""Desired states, reports and models in a storage account. Loaded only by a replica that serves from one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from dropforge.adapters.azure import places, storage
from dropforge.adapters.azure.serving import Published, ServingBlobs
from dropforge.domain.endpoints import Deployment, Desired, ReplicaState
from dropforge.domain.errors import BadInput, DropforgeError
from dropforge.serving.cache import Cache

# What a desired state that has not changed costs is one read of a blob per look, and a listing is ten times as dear: it
# only finds endpoints that are new.
POLL_SECONDS = 1.5
LIST_SECONDS = 15.0
# A write, as dear as a listing. A swap is reported at once.
REPORT_SECONDS = 10.0
# The deployment of a managed endpoint that this replica is an instance of; told in its reports.
DEPLOYMENT = "DROPFORGE_DEPLOYMENT"


class Blobs:
    """A `Source` over the serving container; models come from the artifacts of the same account and from nowhere else."""

    poll_seconds = POLL_SECONDS
    report_seconds = REPORT_SECONDS

    def __init__(
        self,
        blobs: ServingBlobs,
        replica: str,
        cache: Cache,
        deployment: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blobs = blobs
        self._replica = replica
        self._cache = cache
        self._detail = {"deployment": deployment} if deployment else {}
        self._clock = clock
        self._seen: dict[str, Published] = {}
        self._listed_at: float | None = None

    def changes(self) -> dict[str, Desired | DropforgeError | None]:
        now = self._clock()
        listing = self._listed_at is None or now - self._listed_at >= LIST_SECONDS
        listed = self._blobs.list_desired() if listing else dict.fromkeys(self._seen, "")
        changed: dict[str, Desired | DropforgeError | None] = {}
        # Taken over at the end only: what is told of by half is told again.
        seen = dict(self._seen)
        for endpoint in sorted(seen.keys() | listed.keys()):
            before = self._seen.get(endpoint)
            if before is not None and before.etag == listed.get(endpoint):
                continue
            found = self._blobs.read_desired(endpoint, before)
            if found is before:
                continue
            if found is None:
                del seen[endpoint]
                changed[endpoint] = None
            else:
                seen[endpoint] = found
                changed[endpoint] = found.desired
        self._seen = seen
        self._listed_at = now if listing else self._listed_at
        return changed

    def report(self, state: ReplicaState) -> None:
        self._blobs.write_report(replace(state, detail={**state.detail, **self._detail}))

    def forget(self, endpoint: str) -> None:
        self._blobs.remove_report(self._replica, endpoint)

    def keep(self, name: str, data: bytes) -> None:
        self._blobs.write_log(name, data)

    def fetch(self, deployment: Deployment, keep: Collection[str]) -> Path:
        return self._cache.file(deployment.sha256, lambda: self._blobs.open_model(deployment.uri), keep)

    def read(self, uri: str, limit_bytes: int) -> bytes:
        size, pieces = self._blobs.open_model(uri)
        if size > limit_bytes:
            raise BadInput(f"{uri} is larger than {limit_bytes} bytes")
        return b"".join(pieces)


def open_blobs(root: str, replica: str, cache: Cache, environment: Mapping[str, str]) -> Blobs:
    """`root`: the container's URL; empty: container `serving` of the account in DROPFORGE_STORAGE, which also tells how to
    reach the account; when it is not set, that is as this process's identity. Raises `BadInput`."""
    # As in the app, the SDK's requests are nobody's news.
    logging.getLogger("azure").setLevel(logging.WARNING)
    account, container = environment.get(storage.SETTING, ""), places.SERVING
    url = ""
    if root:
        parts = urlsplit(root)
        path, _, container = parts.path.strip("/").rpartition("/")
        url = f"{parts.scheme}://{parts.netloc}/{path}".rstrip("/")
        account = account or url + (f"?{parts.query}" if parts.query else "")
        if not container:
            raise BadInput(
                f"root {url!r} names no container; wanted https://<account>.blob.core.windows.net/{places.SERVING}"
            )
    blobs = ServingBlobs(account, container)
    if url and storage.endpoint(blobs.service) != url.replace(".dfs.", ".blob.", 1):
        raise BadInput(
            f"root {url!r} is of another storage account than {storage.SETTING}; "
            "leave one of them out, or name the same account in both"
        )
    return Blobs(blobs, replica, cache, environment.get(DEPLOYMENT) or None)
