"""The drop store as a container of a storage account: Blob Storage and Data Lake alike, through the Blob endpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from azure.core import MatchConditions
from azure.core.exceptions import AzureError

from dropforge.adapters.azure.storage import (
    READER,
    SETTING,
    Place,
    account_name,
    code_of,
    endpoint,
    has_lease,
    is_folder,
    line_of,
    mapped,
    service,
    status_of,
)
from dropforge.adapters.local.atomic import whole_file
from dropforge.domain.blobs import BlobRef, checked_path, normal_etag, parse_url
from dropforge.domain.errors import BadInput, Conflict, DropforgeError, NotFound
from dropforge.ports import Drop

# The service's own limit.
PAGE = 5000
# An empty blob is what an upload looks like before its first byte (Data Lake and SFTP make the name first). One that
# stays so is a drop, and a bad one: its quarantine says what is wrong with it.
EMPTY_SETTLE = timedelta(seconds=60)

log = logging.getLogger(__name__)


class BlobDrops:
    """`Drops` over one container. Only block blobs are files: what is appended to for ever is never a finished one.

    Blobs are called `https://<account>.blob.core.windows.net/<container>/<path>` whichever endpoint they are reached
    through, so that what a file is called depends neither on private endpoints nor on the port of an emulator.
    """

    def __init__(
        self,
        storage: str,
        container: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        page: int = PAGE,
    ) -> None:
        """`storage`: a connection string, or the account's URL, which is then reached as the app's identity (or with the
        SAS in it). Raises `BadInput` that names the setting."""
        self._service = service(storage)
        self._endpoint = endpoint(self._service)
        self._account = account_name(self._service)
        self._container = container
        self._place = Place(self._account, container, READER, f"{SETTING} and DROPFORGE_DROP_CONTAINER")
        self._client = self._service.get_container_client(container)
        self._clock = clock
        self._page = page

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    def locate(self, url: str) -> BlobRef:
        # An emulator or a custom domain: the account does not stand in the host name.
        ref = self._below_endpoint(url) if url.startswith(self._endpoint + "/") else parse_url(url)
        if (ref.account, ref.container) != (self._account, self._container):
            raise NotFound(
                f"{url} is of container {ref.container!r} of account {ref.account!r}; this app reads container "
                f"{self._container!r} of account {self._account!r} and nothing else",
                url=url,
            )
        return ref

    def look(self, url: str) -> Drop | None:
        ref = self.locate(url)
        try:
            with self._errors(ref):
                found = self._client.get_blob_client(ref.path).get_blob_properties()
        except NotFound:
            return None
        return None if is_folder(found) else self._drop(ref, found)

    def list(self, container: str, prefix: str) -> Iterator[Drop]:
        self._check_container(container)
        return self._listed(prefix)

    def fetch(self, url: str, etag: str, to: Path) -> None:
        try:
            self._copy(self.locate(url), etag, to)
        except Conflict:
            # A blob that is not there fails the condition too.
            if self.look(url) is None:
                raise NotFound(f"{url} is gone", url=url) from None
            raise

    def _copy(self, ref: BlobRef, etag: str, to: Path) -> None:
        with self._errors(ref, etag):
            blob = self._client.get_blob_client(ref.path)
            # Every piece of it is asked for under this etag: the copy is of one write, however long it takes.
            content = blob.download_blob(etag=f'"{etag}"', match_condition=MatchConditions.IfNotModified)
            to.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(to, durable=False) as writer:
                content.readinto(writer)

    def put(self, container: str, path: str, source: Path) -> Drop:
        self._check_container(container)
        ref = BlobRef(self._account, self._container, path)
        if path.endswith("/") or path.startswith("/") or "\\" in path or parse_url(ref.url) != ref:
            raise BadInput(
                f"drop path {path!r} cannot be dropped; use a relative path such as 'flights/day.csv'", path=path
            )
        with source.open("rb") as reader, self._errors(ref):
            blob = self._client.get_blob_client(path)
            # In blocks when it is large: the name shows nothing until the last call puts them together.
            done = blob.upload_blob(reader, overwrite=True)
            size = reader.tell()
        return Drop(ref.url, normal_etag(done["etag"]), size, done["last_modified"])

    # -------------------------------------------------------------------------------------------- blobs
    def _listed(self, prefix: str) -> Iterator[Drop]:
        with self._errors():
            found = self._client.list_blobs(
                name_starts_with=prefix or None, include=["metadata", "copy"], results_per_page=self._page
            )
            for blob in found:
                ref = BlobRef(self._account, self._container, blob.name)
                if is_folder(blob) or not _is_sayable(ref):
                    continue
                drop = self._drop(ref, blob)
                if drop.finished:
                    yield drop

    def _drop(self, ref: BlobRef, blob: Any) -> Drop:
        """What the service says of a blob."""
        whole = (
            blob.blob_type == "BlockBlob"
            and blob.copy.status in (None, "success")
            and blob.blob_tier != "Archive"
            and (blob.size > 0 or self._clock() - blob.last_modified > EMPTY_SETTLE)
        )
        return Drop(ref.url, normal_etag(blob.etag), blob.size, blob.last_modified, whole)

    # -------------------------------------------------------------------------------------------- checks
    def _below_endpoint(self, url: str) -> BlobRef:
        try:
            place = unquote(urlsplit(url[len(self._endpoint) :]).path, errors="strict")
        except ValueError as error:
            raise BadInput(f"blob url {url[:200]!r} cannot be read: {error}", url=url) from error
        container, _, path = place.lstrip("/").partition("/")
        return BlobRef(self._account, container, checked_path(container, path, url))

    def _check_container(self, container: str) -> None:
        if container != self._container:
            raise NotFound(f"no container {container!r}; this app reads one: {self._container!r}")

    @contextmanager
    def _errors(self, ref: BlobRef | None = None, etag: str = "") -> Iterator[None]:
        """Azure's errors as ours, with what to do about them."""
        try:
            yield
        except AzureError as error:
            raise self._mapped(error, ref, etag) from error

    def _mapped(self, error: AzureError, ref: BlobRef | None, etag: str) -> DropforgeError:
        if ref is None or has_lease(error) or code_of(error) == "ContainerNotFound":
            return mapped(error, self._place, ref.path if ref else "")
        if code_of(error) == "BlobArchived":
            # It may not hold up the files beside it.
            return NotFound(f"{ref.url} is in the archive tier and cannot be read; rehydrate it", url=ref.url)
        status = status_of(error)
        if status == 404:
            return NotFound(f"{ref.url} is gone", url=ref.url)
        if status == 400:
            # An event that names what no blob can be called may not hold up the files beside it.
            return NotFound(f"{ref.url} is no name of a blob ({code_of(error) or line_of(error)})", url=ref.url)
        if status == 412:
            return Conflict(f"{ref.url} has been written again: etag {etag} is not there any more", url=ref.url)
        return mapped(error, self._place, ref.path)


def _is_sayable(ref: BlobRef) -> bool:
    """Whether the name can stand in a URL that leads back to it."""
    try:
        checked_path(ref.container, ref.path, ref.url)
    except BadInput:
        log.warning("blob %r is ignored: no URL leads to its name", ref.path)
        return False
    return not ref.path.endswith("/")
