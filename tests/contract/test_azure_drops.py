"""What the drop store on Azure Blob Storage promises beyond the port, on Azurite."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import BlobType, ContainerClient, generate_account_sas

from dropforge.adapters.azure.blobs import BlobDrops
from dropforge.domain.blobs import parse_url
from dropforge.domain.errors import BadInput, Conflict, NotFound, Unavailable
from tests.azurite import ACCOUNT, KEY, Azurite


@pytest.fixture
def client(azurite: Azurite) -> Iterator[ContainerClient]:
    with azurite.container("drops") as client:
        yield client


@pytest.fixture
def drops(azurite: Azurite, client: ContainerClient) -> Iterator[BlobDrops]:
    with closing(BlobDrops(azurite.connection_string, "drops")) as drops:
        yield drops


def listed(drops: BlobDrops, prefix: str = "") -> list[str]:
    return [parse_url(drop.url).path for drop in drops.list("drops", prefix)]


def test_a_url_of_the_emulator_names_the_same_file(azurite: Azurite, client: ContainerClient, drops: BlobDrops) -> None:
    client.upload_blob("a b.csv", b"x")
    (drop,) = drops.list("drops", "")
    emulated = f"{azurite.url}/{ACCOUNT}/drops/a%20b.csv"
    assert drops.locate(emulated).url == drop.url
    assert drops.look(emulated) == drop


@pytest.mark.parametrize("place", ["drops", "drops/", "drops/%2e%2e/a.csv", "other/a.csv", "drops/%ff"])
def test_a_url_of_the_emulator_leads_nowhere_else(azurite: Azurite, drops: BlobDrops, place: str) -> None:
    with pytest.raises((BadInput, NotFound)):
        drops.look(f"{azurite.url}/{ACCOUNT}/{place}")


def test_another_port_of_this_machine_is_never_asked(drops: BlobDrops) -> None:
    with pytest.raises(BadInput):
        drops.look(f"http://127.0.0.1:1/{ACCOUNT}/drops/a.csv")


def test_a_listing_of_many_pages_is_whole_and_in_order(azurite: Azurite, client: ContainerClient) -> None:
    names = [f"a/{number:02}.csv" for number in range(7)] + ["a.csv", "b/x.csv"]
    for name in names:
        client.upload_blob(name, b"x")
    with closing(BlobDrops(azurite.connection_string, "drops", page=2)) as drops:
        assert listed(drops) == sorted(names)
        assert listed(drops, "a/") == names[:7]


def test_folders_of_a_data_lake_and_blobs_that_grow_are_no_files(client: ContainerClient, drops: BlobDrops) -> None:
    client.upload_blob("flights", b"", metadata={"hdi_isfolder": "true"})
    client.upload_blob("log.csv", b"one line\n", blob_type=BlobType.APPENDBLOB)
    client.upload_blob("flights/day.csv", b"x")
    assert listed(drops) == ["flights/day.csv"]
    assert drops.look("https://local.blob.localhost/drops/flights") is None
    growing = drops.look("https://local.blob.localhost/drops/log.csv")
    assert growing is not None and not growing.finished


def test_an_empty_blob_is_a_file_once_it_has_stayed_so(azurite: Azurite, client: ContainerClient) -> None:
    client.upload_blob("a.csv", b"")
    later = lambda: datetime.now(UTC) + timedelta(minutes=2)  # noqa: E731
    with closing(BlobDrops(azurite.connection_string, "drops")) as now:
        assert listed(now) == []
    with closing(BlobDrops(azurite.connection_string, "drops", clock=later)) as drops:
        assert listed(drops) == ["a.csv"]


def test_names_that_no_url_leads_to_are_passed_over(
    client: ContainerClient, drops: BlobDrops, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a//b.csv", "good.csv", "folder/"):
        client.upload_blob(name, b"x")
    assert listed(drops) == ["good.csv"]
    assert "a//b.csv" in caplog.text


def test_a_large_blob_is_copied_whole_and_under_one_etag(
    client: ContainerClient, drops: BlobDrops, tmp_path: Path
) -> None:
    # More than the client fetches in one piece.
    content = bytes(range(256)) * (40 * 4096)
    (tmp_path / "source").write_bytes(content)
    dropped = drops.put("drops", "large.bin", tmp_path / "source")
    drops.fetch(dropped.url, dropped.etag, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    client.upload_blob("large.bin", content[::-1], overwrite=True)
    with pytest.raises(Conflict):
        drops.fetch(dropped.url, dropped.etag, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_container_that_is_missing_is_trouble_and_not_a_file_that_is_gone(azurite: Azurite, tmp_path: Path) -> None:
    url = "https://local.blob.localhost/nowhere/a.csv"
    with closing(BlobDrops(azurite.connection_string, "nowhere")) as drops:
        with pytest.raises(Unavailable, match="there is no container 'nowhere'"):
            list(drops.list("nowhere", ""))
        with pytest.raises(Unavailable, match="there is no container 'nowhere'"):
            drops.look(url)
        with pytest.raises(Unavailable, match="there is no container 'nowhere'"):
            drops.fetch(url, "0x1", tmp_path / "copy")


def test_a_name_that_the_service_refuses_is_not_there(drops: BlobDrops, tmp_path: Path) -> None:
    url = "https://local.blob.localhost/drops/" + "/".join("ab" for _ in range(300))
    assert drops.look(url) is None
    with pytest.raises(NotFound):
        drops.fetch(url, "0x1", tmp_path / "copy")


def test_who_drops_over_a_lease_is_told_to_break_it(drops: BlobDrops, client: ContainerClient, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"new")
    with client.upload_blob("a.csv", b"old").acquire_lease():
        with pytest.raises(Unavailable, match=r"'a\.csv' .* has a lease .* break the lease"):
            drops.put("drops", "a.csv", tmp_path / "a.csv")
        # Whoever only reads needs none.
        (drop,) = drops.list("drops", "")
        drops.fetch(drop.url, drop.etag, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"old"


def test_a_file_in_the_archive_tier_is_unfinished_and_counts_as_missing(
    drops: BlobDrops, client: ContainerClient, tmp_path: Path
) -> None:
    client.upload_blob("a.csv", b"x").set_standard_blob_tier("Archive")
    found = drops.look("https://local.blob.localhost/drops/a.csv")
    assert found is not None and not found.finished and listed(drops) == []
    with pytest.raises(NotFound, match=r"is in the archive tier .* rehydrate it"):
        drops.fetch(found.url, found.etag, tmp_path / "copy")


def test_a_sas_url_opens_the_account_it_names(azurite: Azurite, client: ContainerClient) -> None:
    client.upload_blob("a.csv", b"x")
    sas = generate_account_sas(ACCOUNT, KEY, "sco", "rl", datetime.now(UTC) + timedelta(hours=1))
    with closing(BlobDrops(f"{azurite.url}/{ACCOUNT}?{sas}", "drops")) as drops:
        assert listed(drops) == ["a.csv"]
        assert drops.look("https://local.dfs.core.windows.net/drops/a.csv") is not None


def test_a_wrong_key_says_what_to_do_and_not_what_the_key_is(azurite: Azurite, client: ContainerClient) -> None:
    wrong = azurite.connection_string.replace(KEY, "d3Jvbmc=")
    with closing(BlobDrops(wrong, "drops")) as drops, pytest.raises(Unavailable, match="DROPFORGE_STORAGE") as found:
        list(drops.list("drops", ""))
    assert "d3Jvbmc=" not in found.value.message


@pytest.mark.parametrize("setting", ["AccountKey=c2VjcmV0", "secret", "http://account.blob.core.windows.net"])
def test_a_setting_that_names_no_account_is_refused_without_showing_it(setting: str) -> None:
    with pytest.raises(BadInput, match="setting DROPFORGE_STORAGE cannot be used") as found:
        list(BlobDrops(setting, "drops").list("drops", ""))
    assert "secret" not in found.value.message and "c2VjcmV0" not in found.value.message


def test_a_store_that_does_not_answer_is_unavailable() -> None:
    nobody = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint=http://127.0.0.1:1/{ACCOUNT}"
    with closing(BlobDrops(nobody, "drops")) as drops, pytest.raises(Unavailable, match="did not answer"):
        drops.look("https://local.blob.localhost/drops/a.csv")


def test_many_threads_may_ask_at_once(client: ContainerClient, drops: BlobDrops) -> None:
    client.upload_blob("a.csv", b"x")
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(drops.look("https://local.blob.localhost/drops/a.csv")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and None not in found
