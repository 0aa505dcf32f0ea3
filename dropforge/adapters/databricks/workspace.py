"""The way to Databricks: one client of databricks-sdk per workspace, its errors as ours with what to do about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from dropforge.adapters.azure.identity import credential
from dropforge.domain.errors import BadInput, Conflict, DropforgeError, NotFound, Unavailable

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.core import Config

SETTING = "DROPFORGE_DATABRICKS_HOST"
# Azure Databricks in Microsoft Entra, the same in every tenant.
_AUDIENCE = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d/.default"
# One of these says how the SDK is to sign in; otherwise the app's identity does.
CHOSEN = (
    *("DATABRICKS_TOKEN", "DATABRICKS_CLIENT_ID", "DATABRICKS_AUTH_TYPE", "DATABRICKS_CONFIG_PROFILE"),
    *("ARM_USE_MSI", "ARM_CLIENT_SECRET"),
)
# The SDK tries again what it may; whoever asked does so for longer.
_RETRY_SECONDS, _ANSWER_SECONDS = 20, 30
_SUBMIT_HELP = (
    "add the app's identity to the workspace with the entitlement Workspace access, and for job clusters give it CAN_USE on "
    "the policy in training.compute.policy, or the entitlement to create clusters"
)

_lock = Lock()
_clients: dict[tuple[str, ...], WorkspaceClient] = {}


def workspace_client(host: str) -> WorkspaceClient:
    """The client of the workspace, made on first use; any number of threads may use it. Call it, and all that it has,
    inside `asking`."""
    key = (host, *(os.environ.get(name, "") for name in CHOSEN))
    with _lock:
        if key not in _clients:
            _clients[key] = _made(host)
        return _clients[key]


def _made(host: str) -> WorkspaceClient:
    # 0.8 s and 80 MB: only for whoever really asks Databricks.
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.core import Config

    chosen = any(os.environ.get(name) for name in CHOSEN)
    config = Config(
        host=host,
        # The SDK's own way to a managed identity asks the machine, which a Function App has none of.
        credentials_strategy=None if chosen else _identity(),
        retry_timeout_seconds=_RETRY_SECONDS,
        http_timeout_seconds=_ANSWER_SECONDS,
        product="dropforge",
        product_version="0",
    )
    return WorkspaceClient(config=config)


def _identity() -> Any:
    from databricks.sdk.credentials_provider import CredentialsStrategy

    class Identity(CredentialsStrategy):  # type: ignore[misc, unused-ignore]
        """The app's identity, as it reaches everything else on Azure."""

        def auth_type(self) -> str:
            return "dropforge-identity"

        def __call__(self, cfg: Config) -> Callable[[], dict[str, str]]:
            # azure-identity keeps a token as long as it is good.
            return lambda: {"Authorization": f"Bearer {credential().get_token(_AUDIENCE).token}"}

    return Identity()


@contextmanager
def asking(host: str, what: str, **about: object) -> Iterator[None]:
    """Around every call of the SDK: its errors become ours. `what`: what is asked about, as errors name it (`the submission
    of run 'flights-7'`); `about` is kept with the error."""
    from azure.core.exceptions import AzureError
    from databricks.sdk.errors.base import DatabricksError
    from requests import RequestException

    try:
        yield
    except (DatabricksError, AzureError, RequestException, TimeoutError) as error:
        raise _mapped(error, host, what, **about) from error
    except ValueError as error:
        # Of the SDK's configuration: it does not show what is secret there.
        raise BadInput(
            f"Databricks workspace {host} cannot be asked about {what}: {line_of(error)}; correct {SETTING} and the "
            "DATABRICKS_… variables",
            **about,
        ) from error


def _mapped(error: Exception, host: str, what: str, **about: object) -> DropforgeError:
    """`NotFound` is of the thing itself; that the workspace lets nobody in is `Unavailable`: whoever mends that finds the
    work still waiting."""
    from azure.core.exceptions import ClientAuthenticationError
    from databricks.sdk import errors

    place = f"Databricks workspace {host}"
    # What the SDK gave up on after some tries is told by the last one.
    said = error.__cause__ if isinstance(error, TimeoutError) and isinstance(error.__cause__, Exception) else error
    code = str(getattr(said, "error_code", None) or "")
    if isinstance(said, ClientAuthenticationError):
        return Unavailable(
            f"{place} cannot be asked, because the app got no token: set AZURE_CLIENT_ID to its managed identity or sign in "
            "with `az login`; or set DATABRICKS_TOKEN"
        )
    if isinstance(said, errors.Unauthenticated):
        return Unavailable(
            f"{place} does not accept the app's token ({code or 401}): renew DATABRICKS_TOKEN, or without one add the app's "
            "identity (AZURE_CLIENT_ID) to the workspace as a service principal"
        )
    if isinstance(said, errors.PermissionDenied):
        return Unavailable(f"{place} does not allow {what} ({code or 403}: {line_of(said)}); {_SUBMIT_HELP}", **about)
    if isinstance(said, errors.NotFound):
        return NotFound(f"{place} knows nothing of {what}: {line_of(said)}", **about)
    if isinstance(said, errors.ResourceConflict):
        return Conflict(f"{place}: {what} is being changed by somebody else: {line_of(said)}", **about)
    if isinstance(said, errors.BadRequest):
        return BadInput(f"{place} refused {what} ({code or 400}): {line_of(said)}", **about)
    return Unavailable(
        f"{place} did not answer about {what}: {code or line_of(said)}; check that it can be reached, then try again",
        **about,
    )


def line_of(error: BaseException) -> str:
    """The first line of what the error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500].rstrip(".") if lines else type(error).__name__
