"""The way to Azure ML: one client of azure-ai-ml per workspace, its errors as ours with what to do about them."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

from dropforge.adapters.azure.identity import credential
from dropforge.domain.errors import BadInput, Conflict, DropforgeError, NotFound, Refused, Unavailable

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

SETTING = "DROPFORGE_AML_WORKSPACE"
ROLE = "AzureML Data Scientist"
# The SDK reads the cloud from the one and, unless it is set, from the other; and then sets the one.
_CLOUD, _METADATA_URL = "AZUREML_CURRENT_CLOUD", "ARM_CLOUD_METADATA_URL"
_QUOTA = re.compile(r"quota|out ?of ?capacity|core limit", re.IGNORECASE)
_TAKEN = re.compile(r"already exists", re.IGNORECASE)
# What a 404 says when it is not the thing that is missing, but where it should be.
_NO_PLACE = frozenset({"ResourceGroupNotFound", "SubscriptionNotFound", "ParentResourceNotFound"})
_NO_WORKSPACE = re.compile(
    r"workspaces/[^'/ ]+' under resource group|workspace .{0,80}(not found|does not exist)", re.I
)


class QuotaExceeded(Refused):
    """The subscription or the region has no room for what was asked. Asking again at once gets the same answer."""


QUOTA_HELP = (
    "request more quota for that VM family (Azure portal, Quotas), choose a smaller VM or fewer instances, or a cluster or "
    "workspace in another region"
)

_lock = RLock()
_clients: dict[tuple[str, str | None, str | None], MLClient] = {}
_calls = 0
_cloud_outside: str | None = None


def ml_client(workspace: str) -> MLClient:
    """The client of the workspace with that resource id, made on first use; any number of threads may use it.

    Call it, and all that it has, inside `asking`.
    """
    with _lock:
        key = (workspace, _cloud_outside if _calls else os.environ.get(_CLOUD), os.environ.get(_METADATA_URL))
        if key not in _clients:
            with _contained():
                _clients[key] = _made(workspace)
        return _clients[key]


def parts(workspace: str) -> tuple[str, str, str]:
    """Subscription, resource group and name of a workspace."""
    words = workspace.strip("/").split("/")
    return words[1], words[3], words[7]


def _made(workspace: str) -> MLClient:
    # One to two seconds and 100 MB: only for whoever really asks Azure ML. What it says of its own dependencies while it
    # is loaded is not for us to mend.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from azure.ai.ml import MLClient
        from azure.ai.ml._azure_environments import _get_base_url_from_metadata

    _quiet()
    subscription, group, name = parts(workspace)
    # The client's own patience is five minutes for a connection, longer than whoever asks has. They ask again anyway.
    patience = {"connection_timeout": 10, "read_timeout": 60, "retry_backoff_max": 10}
    made = MLClient(credential(), subscription, group, name, show_progress=False, enable_telemetry=False, **patience)
    metadata_url = os.environ.get(_METADATA_URL)
    # When the cloud's description cannot be read the SDK takes the public cloud without a word.
    if metadata_url and _get_base_url_from_metadata() not in metadata_url:
        raise Unavailable(f"{_METADATA_URL} did not describe a cloud; check that it can be reached, then try again")
    return made


def _quiet() -> None:
    """What the SDK has to say goes where our log goes, and only when it matters; it brings handlers of its own."""
    for name in [name for name in logging.Logger.manager.loggerDict if name.startswith("azure.ai.ml")]:
        logger = logging.getLogger(name)
        if any(isinstance(handler, logging.StreamHandler) for handler in logger.handlers):
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.ERROR)


@contextmanager
def _contained() -> Iterator[None]:
    """The SDK writes the name of its cloud into the environment, of which there is one for all threads: the first who
    comes in remembers what was there, the last who leaves puts it back."""
    global _calls, _cloud_outside
    with _lock:
        if _calls == 0:
            _cloud_outside = os.environ.get(_CLOUD)
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _calls == 0:
                if _cloud_outside is None:
                    os.environ.pop(_CLOUD, None)
                else:
                    os.environ[_CLOUD] = _cloud_outside


@contextmanager
def asking(workspace: str, what: str, **about: object) -> Iterator[None]:
    """Around every call of the SDK: its errors become ours. `what`: what is asked about, as errors name it
    (`job 'flights-7-3fa2c1'`); `about` is kept with the error."""
    try:
        with _contained():
            yield
    except AzureError as error:
        if _status(error) == 401:
            _forget(workspace)
        raise mapped(error, workspace, what, **about) from error


def _forget(workspace: str) -> None:
    """Each client keeps its token: the next one asks for a new one."""
    with _lock:
        for key in [key for key in _clients if key[0] == workspace]:
            del _clients[key]


def mapped(error: AzureError, workspace: str, what: str, **about: object) -> DropforgeError:
    """`NotFound` and `Conflict` (it is there already, or being changed) are of the thing itself; that there is no
    workspace, or no right to it, is `Unavailable`: whoever mends that finds the work still waiting."""
    place = f"Azure ML workspace {parts(workspace)[2]!r}"
    status, code, said = _status(error), code_of(error), message_of(error)
    if isinstance(error, ClientAuthenticationError) and status is None:
        # No token: nobody asked the workspace anything yet.
        return Unavailable(
            f"{place} cannot be asked, because the app got no token: set AZURE_CLIENT_ID to its managed identity or sign in "
            f"with `az login`; its role on the workspace is {ROLE}"
        )
    if status is None:
        return _without_status(error, place, what, said, **about)
    if status == 401:
        return Unavailable(
            f"{place} does not accept the app's token ({code or status}): it has expired or is of another tenant. The next "
            "try asks for a new one; if that does not help, check the identity in AZURE_CLIENT_ID and the clock, or sign in "
            "again"
        )
    if status == 403:
        identity = os.environ.get("AZURE_CLIENT_ID")
        return Unavailable(
            f"{place} does not let the app's identity{f' {identity}' if identity else ''} use {what} ({code or status}); "
            f"give it the role {ROLE} on the workspace, or correct {SETTING}"
        )
    if status == 404 and (code in _NO_PLACE or _NO_WORKSPACE.search(said)):
        # Never "the job is gone": runs would be given up for a slip in a setting.
        return Unavailable(f"there is no {place}; create it, or correct {SETTING}")
    if status == 404:
        return NotFound(f"there is no {what} in {place}", **about)
    if status in (408, 429) or status >= 500:
        return Unavailable(f"{place} did not answer about {what} ({code or status}); try again", **about)
    if _QUOTA.search(code) or _QUOTA.search(said):
        return QuotaExceeded(f"{place} has no quota for {what}: {said}; {QUOTA_HELP}", **about)
    if status in (409, 412) or _TAKEN.search(said):
        return Conflict(f"{what} in {place} is there already or being changed: {said}", **about)
    return BadInput(f"{place} refused {what}: {said}", **about)


def _without_status(error: AzureError, place: str, what: str, said: str, **about: object) -> DropforgeError:
    # Who has not loaded the SDK has none of its errors.
    theirs = sys.modules.get("azure.ai.ml.exceptions")
    if theirs is not None and isinstance(error, theirs.MlException):
        return BadInput(f"{what} cannot be asked of {place}: {said}", **about)
    return Unavailable(f"{place} did not answer about {what}: {said}; check that it can be reached, then try again")


def _status(error: AzureError) -> int | None:
    return error.status_code if isinstance(error, HttpResponseError) else None


def code_of(error: AzureError) -> str:
    """The service's innermost word for it (`QuotaExceeded`), or nothing."""
    found: Any = getattr(error, "error", None)
    code = str(getattr(found, "code", None) or "")
    inner = getattr(found, "innererror", None) or {}
    while isinstance(inner, dict) and inner:
        code = str(inner.get("code") or code)
        inner = inner.get("innererror") or inner.get("innerError")
    return code


def message_of(error: AzureError) -> str:
    """What the error says, in one line: those below repeat the whole answer."""
    found = getattr(getattr(error, "error", None), "message", None) or str(error)
    lines = [line.strip() for line in str(found).splitlines() if line.strip()]
    return lines[0][:500].rstrip(".") if lines else type(error).__name__
