"""Where a file lies: a blob URL taken apart, and etags in one form."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from dropforge.domain.errors import BadInput


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
    """The blob a URL names. Raises `BadInput` for anything that is not `https://account.host/container/path`."""
    parts = urlsplit(url)
    container, _, path = unquote(parts.path).lstrip("/").partition("/")
    account = (parts.hostname or "").partition(".")[0]
    if parts.scheme not in ("https", "http") or not account or not container or not path:
        raise BadInput(f"blob url {url!r} is not https://<account>.<host>/<container>/<path>", url=url)
    segments = path.split("/")
    if ".." in segments or "." in segments or "" in segments[:-1] or any(ord(char) < 32 for char in path):
        raise BadInput(f"blob url {url!r} has a path that leaves its container or holds control characters", url=url)
    return BlobRef(account, container, path)


def normal_etag(etag: str) -> str:
    """The etag without the quotes that some samples carry inside the string."""
    return etag.strip().removeprefix("W/").strip('"')
