"""The data of jobs: datastore paths of a storage account, as folders and files of this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.azure.places import WORKSPACE
from tests.azure.resources import OWN_CONTAINERS, Store

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient, ContainerClient

_DATASTORE = re.compile(
    r"azureml://(?:subscriptions/[^/]+/resource[gG]roups/[^/]+/(?:providers/Microsoft\.MachineLearningServices/)?workspaces/[^/]+/)?"
    r"datastores/(?P<datastore>[^/]+)/paths/(?P<path>.*)"
)
_JOB_OUTPUT = re.compile(r"azureml://jobs/(?P<job>[^/]+)/outputs/(?P<output>[^/]+)(?:/paths/(?P<path>.*))?")
_HTTPS = re.compile(
    r"(?:https|wasbs|abfss)://(?P<account>[^./]+)\.(?:blob|dfs)\.[^/]+/(?P<container>[^/]+)/(?P<path>.*)"
)
# A file that was written to this lately may be written to still.
_QUIET_SECONDS = 0.05


class DataError(Exception):
    """What a job is told when its data is not there: code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Place:
    container: str
    path: str


class Mounts:
    def __init__(self, store: Store, connection: str | None, output_of: Callable[[str, str], str | None]) -> None:
        self._store = store
        self._connection = connection
        self._output_of = output_of
        self._service: BlobServiceClient | None = None

    def close(self) -> None:
        if self._service is not None:
            self._service.close()

    def place(self, uri: str) -> Place:
        """Where this lies. Raises `DataError`."""
        if uri.startswith(("/subscriptions/", "azureml:/subscriptions/")):
            return self.place(self._asset(uri.removeprefix("azureml:")))
        if found := _DATASTORE.fullmatch(uri):
            datastore = self._store.get(f"{WORKSPACE}/datastores/{found['datastore']}")
            if datastore is None:
                raise DataError("UserError", f"Datastore {found['datastore']} does not exist.")
            return Place(datastore["properties"]["containerName"], found["path"].strip("/"))
        if found := _JOB_OUTPUT.fullmatch(uri):
            written = self._output_of(found["job"], found["output"])
            if written is None:
                raise DataError("UserError", f"Job {found['job']} has no output {found['output']}.")
            place = self.place(written)
            return Place(place.container, f"{place.path}/{found['path'] or ''}".strip("/"))
        if found := _HTTPS.fullmatch(uri):
            return Place(found["container"], found["path"].strip("/"))
        raise DataError("UserError", f"{uri} is not a URI that a job can read.")

    def _asset(self, identity: str) -> str:
        asset = self._store.get(identity)
        if asset is None:
            raise DataError("UserError", f"The asset {identity} does not exist.")
        given = asset["properties"]
        return str(given.get("dataUri") or given.get("modelUri") or given.get("codeUri"))

    def container(self, name: str) -> ContainerClient:
        from azure.storage.blob import BlobServiceClient

        if self._connection is None:
            raise DataError(
                "UserError", "this control plane was started without a storage account: its jobs have no data"
            )
        if self._service is None:
            self._service = BlobServiceClient.from_connection_string(self._connection, retry_total=2)
        found = self._service.get_container_client(name)
        if name in OWN_CONTAINERS and not found.exists():
            found.create_container()
        return found

    def fetch(self, uri: str, kind: str, target: Path) -> Path:
        """What is there, below `target`: the file, or the folder. Raises `DataError` where nothing is."""
        place = self.place(uri)
        container = self.container(place.container)
        if kind == "uri_file":
            target.mkdir(parents=True, exist_ok=True)
            found = [place.path] if _is_file(container, place.path) else []
            start = place.path.rsplit("/", 1)[0] + "/" if "/" in place.path else ""
        elif kind in ("uri_folder", "custom_model") and not _is_file(container, place.path):
            start = f"{place.path}/" if place.path else ""
            found = [name for name in _names(container, start) if not name.endswith("/")]
        else:
            raise DataError("UserError", f"This control plane does not know how a {kind} of {uri} is mounted.")
        if not found:
            raise DataError(
                "ScriptExecution.StreamAccess.NotFound",
                f"The requested stream was not found. Please make sure the request uri is correct: {uri}.",
            )
        for name in found:
            local = target / name.removeprefix(start)
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(container.download_blob(name).readall())
            local.chmod(0o444)
        return target / found[0].removeprefix(start) if kind == "uri_file" else target


def _is_file(container: ContainerClient, name: str) -> bool:
    return bool(name) and bool(container.get_blob_client(name).exists())


def _names(container: ContainerClient, start: str) -> list[str]:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return list(container.list_blob_names(name_starts_with=start))
    except ResourceNotFoundError:
        return []


@dataclass
class Output:
    """A folder that is mounted for reading and writing: what is there is seen, what is closed is stored."""

    container: ContainerClient
    path: str
    folder: Path
    _stored: dict[str, tuple[int, int]] = field(default_factory=dict)

    def pull(self) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        for name in _names(self.container, f"{self.path}/"):
            local = self.folder / name.removeprefix(f"{self.path}/")
            local.parent.mkdir(parents=True, exist_ok=True)
            with suppress(ResourceNotFoundError):
                local.write_bytes(self.container.download_blob(name).readall())
            self._stored[local.relative_to(self.folder).as_posix()] = _version(local)

    def push(self, *, closed_only: bool) -> None:
        """Stores what changed, and deletes what is gone."""
        from azure.core.exceptions import ResourceNotFoundError

        there: set[str] = set()
        for local in sorted(self.folder.rglob("*")):
            name = local.relative_to(self.folder).as_posix()
            try:
                if not local.is_file():
                    continue
                there.add(name)
                version = _version(local)
                recent = time.time() - version[0] / 1e9 < _QUIET_SECONDS
                if self._stored.get(name) == version or (closed_only and recent):
                    continue
                self.container.upload_blob(f"{self.path}/{name}", local.read_bytes(), overwrite=True)
            except FileNotFoundError:
                # Renamed or removed since it was listed.
                there.discard(name)
                continue
            self._stored[name] = version
        for name in set(self._stored) - there:
            del self._stored[name]
            with suppress(ResourceNotFoundError):
                self.container.delete_blob(f"{self.path}/{name}")


def _version(local: Path) -> tuple[int, int]:
    found = local.stat()
    return found.st_mtime_ns, found.st_size


def literal(given: dict[str, Any]) -> bool:
    return str(given.get("jobInputType", "literal")) == "literal"
