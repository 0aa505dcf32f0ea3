"""The identity the app has in Azure: one credential for all that reach it, so that tokens are asked for once."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def credential(client_id: str | None = None) -> Any:
    """What azure-identity finds first: a service principal in the environment, a workload or managed identity, and on a
    laptop who is signed in with `az login` or `azd auth login`.

    `client_id`: of a user-assigned managed identity; None: the one in AZURE_CLIENT_ID, or else the system's. Safe from
    many threads; loaded on first use.
    """
    from azure.identity import DefaultAzureCredential

    # Not None: that would overrule AZURE_CLIENT_ID.
    chosen = {"managed_identity_client_id": client_id} if client_id else {}
    return DefaultAzureCredential(
        # Windows and editors alone have these; where nobody is signed in, each costs a wait before it says so.
        exclude_broker_credential=True,
        exclude_interactive_browser_credential=True,
        exclude_powershell_credential=True,
        exclude_shared_token_cache_credential=True,
        exclude_visual_studio_code_credential=True,
        **chosen,
    )
