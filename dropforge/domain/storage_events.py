"""What Azure Storage tells through Event Grid, in either envelope, as one value; and which telling of a blob is newer.

Microsoft's pages: "Azure Blob Storage as an Event Grid source", "CloudEvents v1.0 schema with Azure Event Grid".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from dropforge.domain.blobs import normal_etag
from dropforge.domain.causes import Cause, follow
from dropforge.domain.errors import BadInput

_STORAGE = "Microsoft.Storage."
_SUBJECT = "/blobServices/default/containers/"
# A "created" event of these calls announces a name; its content is announced by an event of its own.
_NAME_ONLY = {"CreateFile", "SftpCreate", "CreatePathFile"}
# With no bytes these are what an upload looks like before its content: PutBlob opens one, Put Block List ends one.
_ENDS_AN_UPLOAD = {"FlushWithClose", "SftpCommit", "PutBlockList", "CopyBlob"}
# Storage tells these too; none of them changes what a file holds.
_IGNORED = {
    "BlobTierChanged",
    "DirectoryCreated",
    "AsyncOperationInitiated",
    "BlobInventoryPolicyCompleted",
    "LifecyclePolicyCompleted",
    "StorageTaskQueued",
    "StorageTaskCompleted",
    "StorageTaskAssignmentQueued",
    "StorageTaskAssignmentCompleted",
}
_MAX_TEXT = 4096


class StorageKind(Enum):
    CREATED = "created"
    DELETED = "deleted"
    RENAMED = "renamed"
    DIRECTORY_RENAMED = "directory_renamed"
    DIRECTORY_DELETED = "directory_deleted"
    # Of storage, and nothing to do for it.
    IGNORED = "ignored"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class StorageEvent:
    """One event. `url` is what it is about (after a rename: the new place), `source_url` the old place of a rename."""

    id: str
    kind: StorageKind
    type: str
    cause: Cause
    url: str = ""
    source_url: str = ""
    # Where the subject says it is: container and path; the URL is what counts.
    subject: tuple[str, str] | None = None
    api: str = ""
    etag: str = ""
    # None where the event does not say: renames, deletes.
    size_bytes: int | None = None
    sequencer: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether a created file is a finished upload, and not the name of one that has just begun."""
        if self.api in _NAME_ONLY:
            return False
        return self.size_bytes != 0 or self.api in _ENDS_AN_UPLOAD


def parse(told: object) -> StorageEvent:
    """The event in an envelope of either schema. Raises `BadInput` that says what is missing or wrong."""
    if not isinstance(told, dict):
        raise BadInput(f"a storage event is an object, found {type(told).__name__}")
    cloud = "specversion" in told
    type_ = _text(told, "type" if cloud else "eventType")
    id_ = _text(told, "id")
    cause = follow(id_, "storage", causation=_text(told, "causationid", "") or None, hops=told.get("hops"))
    kind = _kind(type_)
    if kind in (StorageKind.IGNORED, StorageKind.UNKNOWN):
        return StorageEvent(id_, kind, type_, cause)
    data = told.get("data")
    if not isinstance(data, dict):
        raise BadInput(f"{type_} {id_} has no data object, found {type(data).__name__}")
    renamed = kind in (StorageKind.RENAMED, StorageKind.DIRECTORY_RENAMED)
    return StorageEvent(
        id=id_,
        kind=kind,
        type=type_,
        cause=cause,
        url=_text(data, "destinationUrl" if renamed else "url"),
        source_url=_text(data, "sourceUrl") if renamed else "",
        subject=_place(told.get("subject")),
        api=_text(data, "api", ""),
        etag=_etag(data) if kind is StorageKind.CREATED else "",
        size_bytes=_size(data),
        sequencer=_sequencer(data),
    )


def is_newer(sequencer: str | None, than: str | None) -> bool | None:
    """Whether one event of a blob is newer than another one of the same blob; None when that cannot be told.

    Sequencers differ in length, and may differ in case: the shorter one is padded on the left, and they compare as text.
    """
    if sequencer is None or than is None:
        return None
    width = max(len(sequencer), len(than))
    one, other = sequencer.lower().rjust(width, "0"), than.lower().rjust(width, "0")
    return None if one == other else one > other


def newest(one: str | None, other: str | None) -> str | None:
    """The newer of two sequencers; the one there is when the other is missing."""
    if one is None or other is None:
        return one or other
    return one if is_newer(one, other) else other


def _kind(type_: str) -> StorageKind:
    name = type_.removeprefix(_STORAGE) if type_.startswith(_STORAGE) else ""
    kinds = {
        "BlobCreated": StorageKind.CREATED,
        "BlobDeleted": StorageKind.DELETED,
        "BlobRenamed": StorageKind.RENAMED,
        "DirectoryRenamed": StorageKind.DIRECTORY_RENAMED,
        "DirectoryDeleted": StorageKind.DIRECTORY_DELETED,
    }
    return kinds.get(name, StorageKind.IGNORED if name in _IGNORED else StorageKind.UNKNOWN)


def _text(of: dict[Any, Any], key: str, default: str | None = None) -> str:
    value = of.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or (not value and default is None):
        raise BadInput(f"a storage event needs {key!r} as text, found {_shown(value)}")
    if len(value) > _MAX_TEXT:
        raise BadInput(f"{key!r} of a storage event has {len(value)} characters; more than {_MAX_TEXT} make no sense")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{key!r} of a storage event is not Unicode text: {error.reason}") from error
    return value


def _place(subject: object) -> tuple[str, str] | None:
    """Container and path of `/blobServices/default/containers/<container>/blobs/<path>`; None for any other subject."""
    if not isinstance(subject, str) or not subject.startswith(_SUBJECT):
        return None
    container, found, path = subject.removeprefix(_SUBJECT).partition("/blobs/")
    return (container, path) if found else None


def _etag(data: dict[Any, Any]) -> str:
    etag = normal_etag(_text(data, "eTag"))
    if not etag:
        raise BadInput("a storage event needs 'eTag' as text, found only quotes")
    return etag


def _size(data: dict[Any, Any]) -> int | None:
    size = data.get("contentLength")
    if size is None:
        return None
    if isinstance(size, str) and size.isascii() and size.isdigit() and len(size) < 20:
        size = int(size)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise BadInput(f"'contentLength' of a storage event must be a whole number of bytes, found {_shown(size)}")
    return size


def _sequencer(data: dict[Any, Any]) -> str | None:
    text = _text(data, "sequencer", "")
    if len(text) > 200 or not text.isascii() or (text and not text.isalnum()):
        raise BadInput(f"'sequencer' of a storage event must be hex digits, found {_shown(text)}")
    return text or None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
