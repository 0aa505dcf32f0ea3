"""The managed endpoint promises what every serving store does, once it is where the settings want it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import pytest

from dropforge.adapters.azure import identity
from dropforge.adapters.azure.aml_endpoint import ManagedEndpointServing
from dropforge.adapters.azure.aml_rollout import Plan
from dropforge.adapters.azure.serving import BlobServing, ServingBlobs
from dropforge.settings import AzureML
from tests.azure.aml_bench import SDK_WARNINGS
from tests.azure.control_plane import ControlPlane, control_plane, used
from tests.azurite import ACCOUNT, Azurite, azurite
from tests.contract.conftest import Clock, ServingBench
from tests.contract.test_serving import (
    test_a_newer_revision_takes_the_place_of_an_older_one,
    test_a_replica_that_reports_again_is_observed_again,
    test_a_replica_that_stops_reporting_is_not_observed,
    test_an_endpoint_nobody_published_is_none,
    test_an_endpoint_without_a_proper_name_is_refused,
    test_an_older_revision_has_no_effect,
    test_endpoints_have_revisions_of_their_own,
    test_of_many_threads_the_newest_revision_wins,
    test_one_replica_may_serve_many_endpoints,
    test_the_replicas_of_an_endpoint_are_observed_as_they_report,
    test_the_same_revision_again_has_no_effect,
    test_what_was_published_is_desired,
)

__all__ = [
    "azurite",
    "test_a_newer_revision_takes_the_place_of_an_older_one",
    "test_a_replica_that_reports_again_is_observed_again",
    "test_a_replica_that_stops_reporting_is_not_observed",
    "test_an_endpoint_nobody_published_is_none",
    "test_an_endpoint_without_a_proper_name_is_refused",
    "test_an_older_revision_has_no_effect",
    "test_endpoints_have_revisions_of_their_own",
    "test_of_many_threads_the_newest_revision_wins",
    "test_one_replica_may_serve_many_endpoints",
    "test_the_replicas_of_an_endpoint_are_observed_as_they_report",
    "test_the_same_revision_again_has_no_effect",
    "test_what_was_published_is_desired",
]

pytestmark = SDK_WARNINGS


@pytest.fixture(scope="module")
def settled(azurite: Azurite) -> Iterator[ControlPlane]:
    """A workspace whose endpoint has all its traffic on the deployment that is wanted."""
    with control_plane() as plane, used(plane):
        identity.credential.cache_clear()
        where = f"{plane.workspace}/onlineEndpoints/online"
        name = Plan(_settings(plane), f"{azurite.url}/{ACCOUNT}").name
        there = {"authMode": "Key", "traffic": {name: 100}, "provisioningState": "Succeeded"}
        plane.store.put(where, {"location": "westeurope", "properties": there}, "onlineEndpoints")
        made = {"location": "westeurope", "properties": {"provisioningState": "Succeeded"}}
        plane.store.put(f"{where}/deployments/{name}", made, "onlineEndpoints/deployments")
        yield plane
        identity.credential.cache_clear()


def _settings(plane: ControlPlane) -> AzureML:
    return AzureML(plane.workspace, endpoint="online", serve_image="r.azurecr.io/serving:1")


@pytest.fixture
def serving(settled: ControlPlane, azurite: Azurite) -> Iterator[ServingBench]:
    account, clock = azurite.connection_string, Clock()
    blobs = BlobServing(account, alive=timedelta(seconds=10), clock=clock)
    managed = ManagedEndpointServing(blobs, _settings(settled), account, clock=clock)
    with azurite.container("serving"), closing(ServingBlobs(account)) as replica, closing(managed):
        yield ServingBench(managed, replica.write_report, clock)
    assert [each.method for each in settled.requests if each.method not in ("GET", "POST")] == []
