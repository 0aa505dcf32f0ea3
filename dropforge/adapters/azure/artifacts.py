"""Artifacts in a container of a storage account: `models/flights/ab12/model.onnx` is the blob of that name."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from azure.core import MatchConditions
from azure.core.exceptions import AzureError
from azure.storage.blob import BlobBlock, BlobClient

from dropforge.adapters.artifact_names import checked_artifact
from dropforge.adapters.azure import places
from dropforge.adapters.azure.storage import (
    Place,
    account_name,
    code_of,
    endpoint,
    is_emulator,
    is_folder,
    is_taken,
    make_container,
    mapped,
    service,
)
from dropforge.adapters.local.atomic import whole_file
from dropforge.domain.errors import Conflict, DropforgeError, NotFound

# What is longer goes up in pieces of this size; no more than one of them is in memory.
BLOCK_BYTES = 8 * 1024 * 1024
# Where a blob says what its bytes are.
SHA256 = "sha256"
_T = TypeVar("_T")


class BlobArtifacts:
    """`Artifacts` over one container, which is made on first use if the app's identity may.

    A blob appears with its last piece, and never replaces another; so it is whole, and the first one's, for ever.
    """

    def __init__(self, storage: str, container: str = places.ARTIFACTS) -> None:
        """`storage`: a connection string, or the account's URL, which is then reached as the app's identity (or with the
        SAS in it). Raises `BadInput` that names the setting."""
        self._service = service(storage)
        self._client = self._service.get_container_client(container)
        self._place = Place(account_name(self._service), container)
        self._url = f"{_reader_url(endpoint(self._service), self._place.account)}/{container}"

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    def put(self, name: str, source: bytes | Path) -> str:
        blob = self._blob(name)
        with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as reader:
            first = reader.read(BLOCK_BYTES)
            if len(first) < BLOCK_BYTES:
                sha256 = hashlib.sha256(first).hexdigest()
                return self._put_once(blob, sha256, partial(blob.upload_blob, first, metadata={SHA256: sha256}))
            # Nobody sends half a gigabyte to hear that it is there.
            del first
            reader.seek(0)
            if self._asked(name, blob.exists):
                return self._same(blob, _sha256_of(reader))
            return self._put_pieces(blob, reader)

    def read(self, name: str) -> bytes:
        blob = self._blob(name)
        return bytes(self._asked(name, lambda: blob.download_blob().readall()))

    def fetch(self, name: str, to: Path) -> str:
        content = self._asked(name, self._blob(name).download_blob)
        to.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(to, durable=False) as writer:
            return self._copied(name, content, writer.write)

    def uri(self, name: str) -> str:
        return f"{self._url}/{checked_artifact(name)}"

    def list(self, prefix: str) -> Iterator[str]:
        found = self._asked("", lambda: list(self._client.list_blobs(prefix or None, include=["metadata"])))
        # A Data Lake lists folder by folder, which is another order.
        return iter(sorted(each.name for each in found if not is_folder(each)))

    # ------------------------------------------------------------------------------------------------ putting
    def _put_pieces(self, blob: BlobClient, reader: BinaryIO) -> str:
        digest = hashlib.sha256()
        # Of this upload alone: another one of the same name has pieces of its own.
        upload = uuid.uuid4().hex
        blocks: list[BlobBlock] = []
        while piece := reader.read(BLOCK_BYTES):
            digest.update(piece)
            blocks.append(BlobBlock(f"{upload}{len(blocks):08}"))
            self._asked(blob.blob_name, partial(blob.stage_block, blocks[-1].id, piece, len(piece)))
        sha256 = digest.hexdigest()
        put = partial(
            blob.commit_block_list, blocks, metadata={SHA256: sha256}, match_condition=MatchConditions.IfMissing
        )
        return self._put_once(blob, sha256, put)

    def _put_once(self, blob: BlobClient, sha256: str, put: Callable[[], Any]) -> str:
        """Put if absent; where there is one, it has to be the same."""
        try:
            self._contained(put)
        except AzureError as error:
            # The other: it took away the pieces of the one who came second.
            if not (is_taken(error) or code_of(error) == "InvalidBlockList"):
                raise self._mapped(error, blob.blob_name) from error
            # Perhaps by this put itself, whose first answer got lost.
            return self._same(blob, sha256)
        return sha256

    def _same(self, blob: BlobClient, sha256: str) -> str:
        """The hash, when the bytes that are there have it."""
        name = str(blob.blob_name)
        content = self._asked(name, blob.download_blob)
        found = (content.properties.metadata or {}).get(SHA256, sha256)
        if found == sha256:
            # What it is called may be wrong: somebody may have written it past this adapter.
            found = self._copied(name, content, lambda chunk: None)
        if found != sha256:
            raise Conflict(
                f"artifact {name!r} holds other bytes (sha256 {found}, wanted {sha256}); "
                "artifacts never change: choose another name",
                name=name,
            )
        return sha256

    # ------------------------------------------------------------------------------------------------ asking
    def _blob(self, name: str) -> BlobClient:
        return self._client.get_blob_client(checked_artifact(name))

    def _copied(self, name: str, content: Any, write: Callable[[bytes], object]) -> str:
        """The hash of what is downloaded, chunk by chunk."""
        digest = hashlib.sha256()
        try:
            for chunk in content.chunks():
                digest.update(chunk)
                write(chunk)
        except AzureError as error:
            raise self._mapped(error, name) from error
        return digest.hexdigest()

    def _asked(self, name: str, ask: Callable[[], _T]) -> _T:
        try:
            return self._contained(ask)
        except AzureError as error:
            raise self._mapped(error, name) from error

    def _contained(self, ask: Callable[[], _T]) -> _T:
        """Ask, and once more when the container had to be made first."""
        try:
            return ask()
        except AzureError as error:
            if code_of(error) != "ContainerNotFound":
                raise
        make_container(self._client, self._place)
        return ask()

    def _mapped(self, error: AzureError, name: str) -> DropforgeError:
        found = mapped(error, self._place, name)
        return NotFound(f"no artifact {name!r}", name=name) if isinstance(found, NotFound) else found


def _sha256_of(reader: BinaryIO) -> str:
    # Typed for files on disk only.
    return hashlib.file_digest(reader, "sha256").hexdigest()  # type: ignore[arg-type]


def _reader_url(reached: str, account: str) -> str:
    """Where readers outside find the account: an emulator where it is reached; an account of Azure under its own name, also
    from behind a private endpoint or a custom domain."""
    if is_emulator(reached) or (urlsplit(reached).hostname or "").startswith(f"{account}.blob."):
        return reached
    return f"https://{account}.blob.core.windows.net"
