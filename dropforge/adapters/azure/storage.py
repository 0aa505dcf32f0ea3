"""A storage account, as every adapter over it sees it: the way in, and its errors as ours with what to do about them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.storage.blob import BlobServiceClient, ContainerClient, ExponentialRetry

from dropforge.adapters.azure.identity import credential
from dropforge.domain.errors import BadInput, Conflict, DropforgeError, NotFound, Unavailable

SETTING = "DROPFORGE_STORAGE"
PIECE_BYTES = 4 * 1024 * 1024
READER = "Storage Blob Data Reader"
CONTRIBUTOR = "Storage Blob Data Contributor"
# Published by Microsoft, the same for everybody: Azurite's account and key.
_AZURITE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1;TableEndpoint=http://127.0.0.1:10002/devstoreaccount1"
)
_SIGNATURE = re.compile(r"\bsig=[^&\s\"']*")


@dataclass(frozen=True)
class Place:
    """A container or a table, as errors name it."""

    account: str
    name: str
    # What the app's identity needs there.
    role: str = CONTRIBUTOR
    # What to correct when it is the wrong one.
    settings: str = SETTING
    kind: str = "container"

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of storage account {self.account!r}"


def service(storage: str) -> BlobServiceClient:
    """The account's Blob service; any number of threads may use it, who made it closes it.

    `storage`: a connection string, or the account's URL, which is then reached as the app's identity (or with the SAS in
    it). Raises `BadInput` that names the setting.
    """
    # The client's own first pause is 15 s, half of what Event Grid waits for an answer. Whoever asked tries again anyway.
    options = {
        "retry_policy": ExponentialRetry(initial_backoff=0, increment_base=2, retry_total=2, random_jitter_range=1),
        "connection_timeout": 10,
        "read_timeout": 60,
        # In memory at once; the client's own first piece is 32 MiB, of which it has several copies.
        "max_single_get_size": PIECE_BYTES,
        "max_chunk_get_size": PIECE_BYTES,
    }
    text = connection(storage)
    hide_signatures()
    try:
        if is_url(text):
            url = text.replace(".dfs.", ".blob.", 1)
            return BlobServiceClient(url, credential=None if urlsplit(url).query else credential(), **options)
        return BlobServiceClient.from_connection_string(text, **options)
    except ValueError as error:
        raise unusable(error) from error


def connection(storage: str) -> str:
    """The setting, with the emulator's short name spelled out."""
    return _AZURITE if storage.replace(" ", "").rstrip(";").lower() == "usedevelopmentstorage=true" else storage


def hide_signatures() -> None:
    """Keep SAS out of the log that the HTTP library below the SDK writes at DEBUG, with every URL whole."""
    # A filter that is there already is not added again.
    logging.getLogger("urllib3.connectionpool").addFilter(_unsigned)


def is_url(storage: str) -> bool:
    return storage.startswith(("https://", "http://"))


def unusable(error: ValueError, setting: str = SETTING) -> BadInput:
    """The error for a setting that names no account."""
    # The value is not shown: it may hold a key.
    return BadInput(
        f"setting {setting} cannot be used: {error}; it must be a storage account's connection string or its URL "
        "(https://<account>.blob.core.windows.net)"
    )


def endpoint(service: BlobServiceClient) -> str:
    """Where the account is reached, with no slash at the end and nothing secret in it."""
    return str(service.primary_endpoint).partition("?")[0].rstrip("/")


def is_emulator(url: str) -> bool:
    """Whether that endpoint is an emulator's: they put the account first in the path."""
    return urlsplit(url).path.strip("/") != ""


def account_name(service: BlobServiceClient) -> str:
    """What the account is called."""
    named = getattr(service.credential, "account_name", None)
    if named:
        return str(named)
    parts = urlsplit(endpoint(service))
    return parts.path.strip("/") or (parts.hostname or "").partition(".")[0]


def is_folder(blob: Any) -> bool:
    """Whether it is a folder of a Data Lake, which are listed as empty blobs with a mark."""
    marks = {str(key).lower(): str(value).lower() for key, value in (blob.metadata or {}).items()}
    return marks.get("hdi_isfolder") == "true"


def make_container(client: ContainerClient, place: Place) -> None:
    """Make the container where there is none. Raises `Unavailable` that says what to do when it may not be made."""
    try:
        client.create_container()
    except AzureError as error:
        if code_of(error) == "ContainerAlreadyExists":
            return
        if status_of(error) in (401, 403):
            raise Unavailable(
                f"there is no {place}, and the app's identity may not make it ({code_of(error)}); create it, or give the "
                f"identity the role {place.role} for the account, or correct {place.settings}"
            ) from error
        raise mapped(error, place) from error


@contextmanager
def errors(place: Place, blob: str = "") -> Iterator[None]:
    """Azure's errors as ours, with what to do about them. `blob`: what was read or written; empty: the container."""
    try:
        yield
    except AzureError as error:
        raise mapped(error, place, blob) from error


def mapped(error: AzureError, place: Place, blob: str = "") -> DropforgeError:
    """`NotFound` and `Conflict` (somebody else wrote it) are of the blob; that there is no container, or no right to it,
    is `Unavailable`: whoever mends that finds the work still waiting."""
    status, code = status_of(error), code_of(error)
    what = f"{blob!r} in {place}" if blob else str(place)
    about = {"blob": blob} if blob else {}
    if code in ("ContainerNotFound", "TableNotFound") or (status == 404 and not blob):
        # Never "the blob is not there": all of them would be given up for a slip in a setting.
        return Unavailable(f"there is no {place}; create it, or correct {place.settings}")
    if status in (401, 403) or isinstance(error, ClientAuthenticationError):
        return Unavailable(_no_right(error, str(place), place.role, place.settings))
    if status == 404:
        return NotFound(f"there is no {what}", **about)
    if has_lease(error):
        # Not somebody else's write: who reads again and decides again would do so for ever.
        return Unavailable(
            f"{what} has a lease ({code}), so nobody but its holder may write there; break the lease (`az storage blob lease "
            "break`), then try again",
            **about,
        )
    if is_taken(error):
        return Conflict(f"{what} was written by somebody else first; read again and decide again", **about)
    if code == "BlobArchived":
        # It is there: what counts on it waits until somebody has done that.
        return Unavailable(f"{what} is in the archive tier and cannot be read; rehydrate it", **about)
    if refused_for_good(status):
        return BadInput(
            f"{place} refused {repr(blob) if blob else 'what was asked'}: {code or line_of(error)}", **about
        )
    return unanswered(error, str(place))


def _no_right(error: AzureError, place: str, role: str, settings: str) -> str:
    if status_of(error) is None:
        # No token: nobody asked the account anything yet.
        return (
            f"{place} cannot be asked, because the app has no identity in Azure: set AZURE_CLIENT_ID to its managed "
            f"identity or sign in with `az login`, or correct {settings}; its role is {role}"
        )
    found = code_of(error) or status_of(error)
    return f"{place} may not be used ({found}); give the app's identity the role {role} there, or correct {settings}"


def has_lease(error: AzureError) -> bool:
    """Whether somebody's lease on the blob is in the way."""
    return code_of(error).startswith("Lease")


def is_taken(error: AzureError) -> bool:
    """Whether what was to be put where there is nothing found such a blob: only what is there can have a lease."""
    return status_of(error) == 412 or code_of(error) == "BlobAlreadyExists"


def refused_for_good(status: int | None) -> bool:
    """Whether asking again gets the same answer."""
    return status is not None and 400 <= status < 500 and status not in (408, 409, 429)


def unanswered(error: AzureError, place: str) -> Unavailable:
    found = code_of(error) or line_of(error)
    return Unavailable(f"{place} did not answer: {found}; check that it can be reached, then try again")


def status_of(error: AzureError) -> int | None:
    """The HTTP status; None when nobody answered."""
    return error.status_code if isinstance(error, HttpResponseError) else None


def code_of(error: AzureError) -> str:
    """The service's own word for it (`BlobNotFound`), or nothing."""
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))


def line_of(error: AzureError) -> str:
    """The first line of what the error says (the lines below it repeat the whole answer), without signatures: a URL that
    was not reached is shown with the SAS in it."""
    return _SIGNATURE.sub("sig=…", str(error).strip().partition("\n")[0])


class _Unsigned(logging.Filter):
    """Takes signatures out of what is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _SIGNATURE.sub("sig=…", record.getMessage()), ()
        return True


_unsigned = _Unsigned()
