"""Where a file lies: a blob URL taken apart, and etags in one form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from dropforge.domain.errors import BadInput

# Azure's own limit for the name of a blob.
MAX_PATH = 1024
# The service stands somewhere behind the account: also in private endpoints and in DNS zones.
_SERVICES = {"blob", "dfs"}
_CONTROL = re.compile("[\x00-\x1f]")


@dataclass(frozen=True)
class BlobRef:
    """One blob, addressed the same way whichever host name the event used.

    Hierarchical accounts announce `account.dfs.…` URLs, flat ones `account.blob.…`; both name the same blob.
    """

    account: str
    container: str
    path: str

    @property
    def url(self) -> str:
        suffix = "blob.localhost" if self.account == "local" else "blob.core.windows.net"
        return f"https://{self.account}.{suffix}/{self.container}/{quote(self.path)}"


def parse_url(url: str) -> BlobRef:
    """The blob a URL names. Raises `BadInput` for anything that is not `https://account.blob|dfs.…/container/path`."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").split(".")
        place = unquote(parts.path, errors="strict")
    except ValueError as error:  # among them bytes that are no UTF-8
        raise BadInput(f"blob url {url[:200]!r} cannot be read: {error}", url=url) from error
    if parts.scheme not in ("https", "http") or not host[0] or _SERVICES.isdisjoint(host[1:]):
        raise BadInput(
            f"blob url {url[:200]!r} is not https://<account>.<blob or dfs>.<host>/<container>/<path>", url=url
        )
    container, _, path = place.lstrip("/").partition("/")
    return BlobRef(host[0], container, checked_path(container, path, url))


def checked_path(container: str, path: str, url: str) -> str:
    """The path itself, when a blob of that container can have it. Raises `BadInput` that shows the URL."""
    if not container or not path:
        raise BadInput(f"blob url {url[:200]!r} names no blob: wanted /<container>/<path> behind its host", url=url)
    segments = path.split("/")
    if ".." in segments or "." in segments or "" in segments[:-1] or _CONTROL.search(path):
        raise BadInput(f"blob url {url[:200]!r} has a path that leaves its container or holds control characters")
    if len(path) > MAX_PATH or (not path.isascii() and _has_surrogates(path)):
        raise BadInput(f"blob url {url[:200]!r} has a path of more than {MAX_PATH} characters or that is not UTF-8")
    return path


def _has_surrogates(path: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in path)


def normal_etag(etag: str) -> str:
    """The etag without the quotes that some samples carry inside the string."""
    return etag.strip().removeprefix("W/").strip('"')
