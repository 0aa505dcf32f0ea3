"""The HTTP client of the platform's API: what the CLI, the demo and the tests speak through. Standard library only."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import stat
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dropforge.bundle import entry_of
from dropforge.domain.errors import BadInput, DropforgeError, NotFound, Unavailable
from dropforge.domain.names import is_unicode

# Below `/api/` instead of `/api/v1/`.
UNVERSIONED = ("health", "openapi.json")
# Never part of a pipeline's folder: what tools leave behind, and what would make every bundle another.
SKIPPED = {"__pycache__", ".git", ".venv", ".ipynb_checkpoints", "node_modules"}


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nobody: the API does not redirect, and who did would be sent key and token."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


class Answered(DropforgeError):
    """The API refused; `status` is its HTTP status, the message its `detail`."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail, status=status)
        self.status = status


@dataclass(frozen=True)
class Connection:
    """Where a host listens, and the key that opens it."""

    url: str
    key: str = field(repr=False)
    # On this machine: the host's state folder, with the drop folder in it.
    state: Path | None = None
    # Gives a token of Entra, where that says who asks.
    token: Callable[[], str] | None = field(default=None, repr=False)


def connect(state: Path | None = None) -> Connection:
    """The host to speak to: `DROPFORGE_URL`, with `DROPFORGE_KEY` or as who is signed in to Entra for the application that
    `DROPFORGE_AUDIENCE` names; or the one that runs on the state folder.

    Without a folder, `.dropforge` is looked for here and in the folders above. Raises `Unavailable` that says what to do.
    """
    url = os.environ.get("DROPFORGE_URL")
    if url:
        audience = os.environ.get("DROPFORGE_AUDIENCE")
        place = _checked_url(url)
        token = _signed_in(place, audience) if audience else None
        return Connection(place, _checked_key(os.environ.get("DROPFORGE_KEY", "")), token=token)
    folder = state or find_state()
    file = folder / "connection.json"
    try:
        told = json.loads(file.read_text())
        return Connection(told["url"].rstrip("/"), told["function_key"], folder)
    except (FileNotFoundError, NotADirectoryError):
        raise Unavailable(
            f"no host is running on {folder}; start one with `dropforge up` (or set DROPFORGE_URL)"
        ) from None
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}; it is for whoever started the host") from None
    except (ValueError, TypeError, LookupError):
        raise BadInput(f"{file} is not what a host writes; start the host again: it writes another") from None


def _checked_url(text: str) -> str:
    try:
        place = urllib.parse.urlsplit(text)
        fits = bool(place.scheme in ("http", "https") and place.hostname) and (place.port is None or place.port > 0)
    except ValueError:
        fits = False
    if fits and text.isascii() and not re.search(r"[@?#\s]", text):
        return text.rstrip("/")
    # What stands before an @ or behind a ? may be a secret.
    shown = text.partition("?")[0].rpartition("@")[2]
    raise BadInput(
        f"DROPFORGE_URL is {shown!r}; it must be http://HOST[:PORT] or https://HOST, without a user, a key or a query"
    )


def _checked_key(text: str) -> str:
    # A key that is read from a file comes with the end of its line.
    key = text.strip()
    if key.isascii() and key.isprintable():
        return key
    raise BadInput(
        "DROPFORGE_KEY holds signs that no key has (a line break, or letters that are not ASCII); copy it again"
    )


def _signed_in(url: str, audience: str) -> Callable[[], str]:
    """What gives a token for the application `audience` (`api://<client id>`) as who is signed in here."""
    place = urllib.parse.urlsplit(url)
    if place.scheme != "https" and place.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise BadInput(f"DROPFORGE_URL is {url}: a token is sent over https alone")

    def token() -> str:
        try:
            from azure.core.exceptions import ClientAuthenticationError

            from dropforge.adapters.azure.identity import credential
        except ImportError:
            raise BadInput("DROPFORGE_AUDIENCE needs azure-identity: pip install 'dropforge[host,azure]'") from None
        try:
            return str(credential().get_token(f"{audience.rstrip('/')}/.default").token)
        except ClientAuthenticationError as error:
            said = (str(error).splitlines() or ["no reason given"])[0]
            raise Answered(401, f"nobody is signed in for {audience}: {said} (`az login` signs in)") from error

    return token


def find_state() -> Path:
    """The state folder: `DROPFORGE_STATE`, or the nearest `.dropforge` here or above."""
    if named := os.environ.get("DROPFORGE_STATE"):
        return Path(named).absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".dropforge").is_dir():
            return folder / ".dropforge"
    return here / ".dropforge"


class Client:
    """One method per way of asking; raises `Answered` when the API refuses and `Unavailable` when nobody answers.

    Paths are below `/api/v1/`; but for `health` and `openapi.json`, which have no version.
    """

    def __init__(self, connection: Connection, timeout_seconds: float = 30.0) -> None:
        self.connection = connection
        self._timeout = timeout_seconds

    def get(self, path: str, **query: str | int | None) -> Any:
        """The JSON that a GET answers."""
        return self._json("GET", with_query(path, query))

    def each(self, path: str, name: str, **query: str | int | None) -> Iterator[Any]:
        """What a list holds, page after page; `name` is what the list calls its items."""
        token: str | None = None
        while True:
            page = self.get(path, token=token, **query)
            yield from page[name]
            token = page["next"]
            if token is None:
                return

    def post(self, path: str, key: str | None = None, /, **body: object) -> Any:
        """The JSON that a POST of the body answers. `key` names the request: sent again, it has no second effect."""
        data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        headers = {"content-type": "application/json", "idempotency-key": key or str(uuid.uuid4())}
        try:
            return self._json("POST", path, data, headers)
        except Unavailable:
            # The answer may be all that was lost; under its key the request can be sent once more.
            return self._json("POST", path, data, headers)

    def apply(self, name: str, folder: Path) -> Any:
        """Make the pipeline what the folder says."""
        return self._json("PUT", f"pipelines/{name}", bundle(folder), {"content-type": "application/zip"})

    def _json(self, *request: Any) -> Any:
        body = self.request(*request)
        try:
            return json.loads(body)
        except ValueError:
            begin = body[:80].decode(errors="replace")
            raise BadInput(
                f"what {self.connection.url} answers is no JSON ({begin!r}); is it a Dropforge app?"
            ) from None

    def request(
        self, method: str, path: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """The bytes of the answer."""
        # A name that is none is for the app to refuse; it has to get there.
        path = urllib.parse.quote(path, safe="/?&=+%:@~", errors="surrogateescape")
        place = f"{self.connection.url}/api/{path if path in UNVERSIONED else f'v1/{path}'}"
        sent = {"x-functions-key": self.connection.key} if self.connection.key else {}
        if self.connection.token is not None:
            sent["authorization"] = f"Bearer {self.connection.token()}"
        sent |= headers or {}
        request = urllib.request.Request(place, data, sent, method=method)  # noqa: S310
        try:
            with _OPENER.open(request, timeout=self._timeout) as answer:
                body: bytes = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise Answered(error.code, _detail(error)) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Unavailable(f"{self.connection.url} does not answer ({reason}); is the host running?") from None
        return body


def with_query(path: str, query: Mapping[str, str | int | None]) -> str:
    """The path with what is given of the query behind it."""
    given = {key: str(value) for key, value in query.items() if value is not None}
    return f"{path}?{urllib.parse.urlencode(given)}" if given else path


def _detail(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if isinstance(told, dict) and "detail" in told:
        return str(told["detail"])
    if error.code in (301, 302, 303, 307, 308):
        place = urllib.parse.urlsplit(error.headers.get("location", "")).hostname or "elsewhere"
        return (
            f"the app sends to {place} to sign in (HTTP {error.code}); set DROPFORGE_AUDIENCE to api://<its client id>"
        )
    if error.code == 401:
        return "the key is missing or wrong (HTTP 401); set DROPFORGE_KEY, or use the state folder of the host"
    return f"HTTP {error.code} {text.strip()[:500]}"


def bundle(folder: Path) -> bytes:
    """A pipeline's folder as a zip. Raises `NotFound` when it has no `pipeline.yaml`."""
    if not (folder / "pipeline.yaml").is_file():
        raise NotFound(f"{folder} has no pipeline.yaml; `dropforge init` makes such a folder")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            if not path.is_file() or any(part in SKIPPED or part.startswith(".") for part in parts):
                continue
            if path.suffix in (".pyc", ".onnx"):
                continue
            name, executable = "/".join(parts), bool(path.stat().st_mode & stat.S_IXUSR)
            if not is_unicode(name):
                raise BadInput(f"{folder} holds {name!r}, a name that is not UTF-8; give the file another")
            archive.writestr(entry_of(name, executable=executable), path.read_bytes())
    return buffer.getvalue()


def drop_file(state: Path, prefix: str, source: Path, name: str | None = None) -> tuple[Path, bool]:
    """Put a file into the drop folder of a host on this machine, visible only when it is whole.

    Returns where it lies, and whether it was written: a file of that name with equal bytes is left as it is.
    """
    if not source.is_file():
        raise BadInput(f"{source} is not a file")
    target = state / "drops" / prefix / (name or source.name)
    if (
        target.is_file()
        and target.stat().st_size == source.stat().st_size
        and target.read_bytes() == source.read_bytes()
    ):
        return target, False
    target.parent.mkdir(parents=True, exist_ok=True)
    # A hidden name is never announced; the rename makes the whole file appear at once. Not longer than a name can be, however
    # long the file's own is.
    hidden = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with source.open("rb") as read, hidden.open("wb") as write:
            while piece := read.read(1 << 20):
                write.write(piece)
            write.flush()
            os.fsync(write.fileno())
        hidden.replace(target)
    finally:
        hidden.unlink(missing_ok=True)
    return target, True
