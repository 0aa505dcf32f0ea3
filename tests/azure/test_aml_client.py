"""The client of Azure ML: what its errors ask for, and that it leaves the process as it found it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError

from dropforge.adapters.azure import identity
from dropforge.adapters.azure.aml_client import QuotaExceeded, asking, mapped, ml_client
from dropforge.adapters.azure.aml_endings import ending
from dropforge.domain.errors import BadInput, Conflict, DropforgeError, NotFound, Unavailable
from tests.azure.aml_bench import SDK_WARNINGS
from tests.azure.control_plane import ControlPlane, control_plane, used

pytestmark = SDK_WARNINGS
WORKSPACE = "/subscriptions/0/resourceGroups/rg/providers/Microsoft.MachineLearningServices/workspaces/ws"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with control_plane() as made, used(made):
        identity.credential.cache_clear()
        yield made
        identity.credential.cache_clear()


def answered(status: int, code: str, message: str) -> HttpResponseError:
    """The SDK's error for such an answer."""
    error = HttpResponseError(message)
    error.status_code, error.error = status, SimpleNamespace(code=code, message=message, innererror=None)
    return error


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (answered(429, "TooManyRequests", "throttled, not a quota"), Unavailable, "try again"),
        (answered(503, "ServiceUnavailable", "busy"), Unavailable, "try again"),
        (ServiceRequestError("timed out"), Unavailable, "check that it can be reached"),
        (ClientAuthenticationError("no credential"), Unavailable, "AZURE_CLIENT_ID"),
        (answered(401, "ExpiredAuthenticationToken", "expired"), Unavailable, "asks for a new one"),
        (answered(403, "AuthorizationFailed", "no"), Unavailable, "role AzureML Data Scientist"),
        (answered(404, "UserError", "Run r1 was not found"), NotFound, "there is no job 'r1'"),
        (answered(404, "ResourceGroupNotFound", "no group"), Unavailable, "correct DROPFORGE_AML_WORKSPACE"),
        (
            answered(
                404, "ResourceNotFound", "The Resource 'a/workspaces/ws' under resource group 'rg' was not found."
            ),
            *(Unavailable, "there is no Azure ML workspace 'ws'"),
        ),
        (answered(400, "UserError", "A job with this name already exists. Use"), Conflict, "there already"),
        (answered(409, "Conflict", "being changed"), Conflict, "being changed"),
        (answered(400, "UserError", "exceed the vCPU quota of the subscription"), QuotaExceeded, "request more quota"),
        (
            answered(400, "UserError", "distribution is wrong\nlong details"),
            BadInput,
            "refused job 'r1': distribution is",
        ),
    ],
)
def test_an_error_of_azure_becomes_ours_and_says_what_to_do(
    error: HttpResponseError, kind: type[DropforgeError], said: str
) -> None:
    found = mapped(error, WORKSPACE, "job 'r1'", run="r1")
    assert type(found) is kind and said in found.message and "\n" not in found.message


@pytest.mark.parametrize(
    ("code", "message", "said", "again"),
    [
        (
            "UserError",
            "AzureMLCompute job failed.\nPreemptionError: Nodes of this job got pre-empted.",
            "low-prio",
            True,
        ),
        ("NodeLost", "The node became unusable.", "the node it ran on was lost", True),
        ("AllocationFailed", "The cluster could not be resized.", "no node could be had", True),
        ("AmlComputeQuotaExceeded", "Could not allocate nodes: the vCPU quota is used up.", "no quota", False),
        (
            "UserError",
            "AggregatedUnauthorizedAccessError: Failed to pull Docker image x.azurecr.io/y.",
            "AcrPull",
            False,
        ),
        ("ScriptExecution.StreamAccess.Authentication", "Denied.", "Storage Blob Data Reader", False),
        ("UserError", "The process exited with status code 137.", "out of memory", False),
        ("JobExceededTimeLimit", "Cancelled because it ran longer than its limit allows.", "compute.timeout", False),
        ("UserError", "User process exited with status code 1. Error: the node was lost", "status code 1", False),
        ("", "", "Azure ML gives no reason", False),
    ],
)
def test_the_end_of_a_job_is_named_and_another_node_is_tried_only_where_it_helps(
    code: str, message: str, said: str, again: bool
) -> None:
    found = ending("r1", code, message)
    assert said in found.reason and found.again is again and found.reason.startswith("job r1 failed: ")


def test_many_threads_share_one_client_and_leave_the_environment_as_it_was(plane: ControlPlane) -> None:
    before = dict(os.environ)

    def ask(_: int) -> Any:
        with asking(plane.workspace, "the jobs"):
            client = ml_client(plane.workspace)
            list(client.jobs.list())
            return client

    with ThreadPoolExecutor(8) as pool:
        clients = set(pool.map(ask, range(16)))
    assert len(clients) == 1 and dict(os.environ) == before


def test_a_cloud_that_cannot_be_read_is_not_taken_for_the_public_one(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZUREML_CURRENT_CLOUD")
    monkeypatch.setenv("ARM_CLOUD_METADATA_URL", f"{plane.url}/nothing-here")
    with pytest.raises(Unavailable, match="ARM_CLOUD_METADATA_URL did not describe a cloud"):
        ml_client(plane.workspace)
    assert "AZUREML_CURRENT_CLOUD" not in os.environ


def test_the_sdk_logs_through_our_loggers_and_only_errors(plane: ControlPlane) -> None:
    ml_client(plane.workspace)
    theirs = [name for name in logging.Logger.manager.loggerDict if name.startswith("azure.ai.ml")]
    handlers = [(name, each) for name in theirs for each in logging.getLogger(name).handlers]
    assert [name for name, each in handlers if type(each) is logging.StreamHandler] == []
