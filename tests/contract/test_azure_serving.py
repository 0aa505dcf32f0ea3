"""The blobs that serving shares with the inference servers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from azure.storage.blob import ContainerClient

from dropforge.adapters.azure.serving import FORGET, BlobServing, Published, ServingBlobs
from dropforge.domain.endpoints import Desired, ReplicaState
from dropforge.domain.errors import BadName, Conflict, Unavailable
from dropforge.wire import from_json, to_json
from tests.azurite import ACCOUNT, KEY, Azurite
from tests.contract.test_serving import state, wanted


@pytest.fixture
def client(azurite: Azurite) -> Iterator[ContainerClient]:
    with azurite.container("serving") as made:
        yield made


@pytest.fixture
def port(azurite: Azurite, client: ContainerClient) -> Iterator[BlobServing]:
    with closing(BlobServing(azurite.connection_string)) as made:
        yield made


@pytest.fixture
def replica(azurite: Azurite, client: ContainerClient) -> Iterator[ServingBlobs]:
    with closing(ServingBlobs(azurite.connection_string)) as made:
        yield made


def found(replica: ServingBlobs, endpoint: str = "flights") -> Published:
    published = replica.read_desired(endpoint)
    assert published is not None
    return published


def test_a_server_reads_what_was_published(port: BlobServing, replica: ServingBlobs, client: ContainerClient) -> None:
    port.publish(wanted(3))
    port.publish(wanted(1, "weather"))
    assert found(replica).desired == wanted(3)
    assert replica.list_desired() == {name: found(replica, name).etag for name in ("flights", "weather")}
    assert from_json(Desired, client.download_blob("desired/flights.json").readall()) == wanted(3)


def test_a_server_that_comes_before_anything_was_published_finds_nothing(replica: ServingBlobs) -> None:
    assert replica.read_desired("flights") is None
    assert replica.list_desired() == {}


def test_what_was_not_written_again_is_not_sent_again(port: BlobServing, replica: ServingBlobs) -> None:
    port.publish(wanted(1))
    first = found(replica)
    assert replica.read_desired("flights", first) is first
    port.publish(wanted(2))
    second = replica.read_desired("flights", first)
    assert second is not None and second.desired == wanted(2) and second.etag != first.etag


def test_what_was_taken_away_is_told(port: BlobServing, replica: ServingBlobs, client: ContainerClient) -> None:
    port.publish(wanted(1))
    first = found(replica)
    client.delete_blob("desired/flights.json")
    assert replica.read_desired("flights", first) is None


def test_a_report_is_a_blob_of_the_replica(replica: ServingBlobs, client: ContainerClient) -> None:
    replica.write_report(state("host-1.2"))
    text = client.download_blob("replicas/host-1.2/flights.json").readall()
    assert from_json(ReplicaState, text) == state("host-1.2")


def test_a_report_that_is_taken_away_is_not_observed(port: BlobServing, replica: ServingBlobs) -> None:
    replica.write_report(ReplicaState("one", "flights", 1, 1, (1,), True, 0, 0, 0, datetime.now(UTC)))
    assert [each.replica for each in port.observe("flights")] == ["one"]
    replica.remove_report("one", "flights")
    replica.remove_report("one", "flights")
    assert port.observe("flights") == []


def test_a_file_of_a_log_is_put_down_once(replica: ServingBlobs, client: ContainerClient) -> None:
    name = "logs/flights/date=2026-01-31/hour=07/r1-1.parquet"
    replica.write_log(name, b"whole")
    # As who was told that it failed does.
    replica.write_log(name, b"whole")
    assert client.download_blob(name).readall() == b"whole"
    assert replica.list_desired() == {}


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a b"])
def test_a_replica_without_a_proper_name_is_refused(replica: ServingBlobs, name: str) -> None:
    with pytest.raises(BadName, match="replica"):
        replica.write_report(state(name))


def test_who_publishes_over_something_else_than_he_read_is_told(replica: ServingBlobs) -> None:
    replica.write_desired(wanted(1), None)
    with pytest.raises(Conflict):
        replica.write_desired(wanted(2), None)
    read = found(replica)
    replica.write_desired(wanted(3), read.etag)
    with pytest.raises(Conflict):
        replica.write_desired(wanted(2), read.etag)
    assert found(replica).desired == wanted(3)


def test_of_many_hosts_the_newest_revision_wins_and_readers_never_see_an_older_one(
    azurite: Azurite, replica: ServingBlobs
) -> None:
    def publish(first: int) -> None:
        with closing(BlobServing(azurite.connection_string)) as host:
            for revision in range(first, 24, 3):
                host.publish(wanted(revision))

    seen = [-1]
    with ThreadPoolExecutor(3) as pool:
        hosts = [pool.submit(publish, first) for first in (0, 1, 2)]
        while not all(host.done() for host in hosts):
            published = replica.read_desired("flights")
            if published is not None and isinstance(published.desired, Desired):
                seen.append(published.desired.revision)
        for host in hosts:
            host.result()
    assert seen == sorted(seen)
    assert found(replica).desired == wanted(23)


def test_who_publishes_over_a_lease_is_told_to_break_it(port: BlobServing, client: ContainerClient) -> None:
    port.publish(wanted(1))
    told = r"'desired/flights\.json' .* has a lease .* break the lease"
    with client.get_blob_client("desired/flights.json").acquire_lease(), pytest.raises(Unavailable, match=told):
        port.publish(wanted(2))
    port.publish(wanted(2))
    assert port.desired("flights") == wanted(2)


def test_a_desired_state_in_the_archive_tier_is_not_taken_for_none(port: BlobServing, client: ContainerClient) -> None:
    port.publish(wanted(1))
    client.get_blob_client("desired/flights.json").set_standard_blob_tier("Archive")
    for call in (lambda: port.desired("flights"), lambda: port.publish(wanted(2))):
        with pytest.raises(Unavailable, match=r"is in the archive tier .* rehydrate it"):
            call()


def test_a_damaged_desired_state_is_told_and_never_taken_for_none(
    port: BlobServing, replica: ServingBlobs, client: ContainerClient
) -> None:
    client.upload_blob("desired/flights.json", to_json(wanted(3))[:50])
    assert isinstance(found(replica).desired, Unavailable)
    for call in (lambda: port.desired("flights"), lambda: port.publish(wanted(4))):
        with pytest.raises(Unavailable, match=r"flights\.json in container 'serving' .* cannot be read"):
            call()


def test_a_damaged_report_hides_its_replica_only(
    port: BlobServing, replica: ServingBlobs, client: ContainerClient
) -> None:
    now = datetime.now(UTC)
    for name in ("one", "two"):
        replica.write_report(ReplicaState(name, "flights", 1, 1, (1,), True, 0, 0, 0, now))
    client.upload_blob("replicas/one/flights.json", b"", overwrite=True)
    assert [each.replica for each in port.observe("flights")] == ["two"]


def test_reports_of_replicas_that_ended_long_ago_are_taken_away(
    azurite: Azurite, replica: ServingBlobs, client: ContainerClient
) -> None:
    replica.write_report(state("ended"))
    with closing(BlobServing(azurite.connection_string, clock=lambda: datetime.now(UTC) + timedelta(hours=2))) as later:
        assert later.observe("flights") == []
    assert list(client.list_blob_names()) == []


def test_the_folder_of_a_replica_in_a_data_lake_goes_when_it_is_empty_and_not_before(
    azurite: Azurite, replica: ServingBlobs, client: ContainerClient
) -> None:
    # A lake lists folders as empty blobs, as old as the first report in them, and deletes none that holds something.
    client.upload_blob("replicas/one", b"", metadata={"hdi_isfolder": "true"})
    first = client.get_blob_client("replicas/one").get_blob_properties().last_modified
    # Times are told in whole seconds.
    now = first + FORGET + timedelta(seconds=1)
    while datetime.now(UTC) < first + timedelta(seconds=1):
        time.sleep(0.05)
    replica.write_report(replace(state("one"), reported_at=now))
    with closing(BlobServing(azurite.connection_string, clock=lambda: now)) as later:
        assert [each.replica for each in later.observe("flights")] == ["one"]
        assert list(client.list_blob_names()) == ["replicas/one", "replicas/one/flights.json"]
        replica.remove_report("one", "flights")
        assert later.observe("flights") == []
    assert list(client.list_blob_names()) == []


def test_a_store_that_cannot_be_asked_is_unavailable_and_never_empty(azurite: Azurite) -> None:
    missing, wrong = azurite.connection_string, azurite.connection_string.replace(KEY, "d3Jvbmc=")
    for account, container, told in (
        (missing, "nowhere", "there is no container 'nowhere'"),
        (wrong, "serving", "Storage Blob Data Contributor"),
    ):
        with closing(ServingBlobs(account, container)) as store:
            for call in (store.list_desired, lambda store=store: store.read_desired("flights")):
                with pytest.raises(Unavailable, match=told) as raised:
                    call()
                assert ACCOUNT in raised.value.message and "d3Jvbmc" not in raised.value.message
