"""Runs one sample of azure-servicebus in this process: `python -m tests.sdk.one_sample FILE`.

Samples take a token credential out of azure-identity and manage entities with both administration clients.
"""

from __future__ import annotations

import runpy
import sys

import azure.identity
import azure.identity.aio

from tests.sdk import aio_management, local
from tests.sdk.local import AsyncCredential, Credential, Endpoint


def main(sample: str) -> None:
    endpoint = Endpoint.from_environment()
    local.redirect(endpoint)
    aio_management.redirect(endpoint)
    setattr(azure.identity, "DefaultAzureCredential", Credential)  # noqa: B010
    setattr(azure.identity.aio, "DefaultAzureCredential", AsyncCredential)  # noqa: B010
    runpy.run_path(sample, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
