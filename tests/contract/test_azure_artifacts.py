"""What the artifacts on Blob Storage promise beyond every store, on Azurite: pieces, races, lost answers."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from azure.storage.blob import BlobClient, BlobServiceClient, ContainerClient, generate_account_sas

from dropforge.adapters.azure.artifacts import BLOCK_BYTES, BlobArtifacts
from dropforge.domain.errors import Conflict, NotFound, Unavailable
from tests.azurite import ACCOUNT, KEY, Azurite
from tests.contract.conftest import fresh
from tests.contract.lossy import Lossy, lossy

LARGE = 3 * BLOCK_BYTES + 17


@pytest.fixture
def container(azurite: Azurite) -> Iterator[ContainerClient]:
    with azurite.container(fresh("own")) as client:
        yield client


@pytest.fixture
def artifacts(azurite: Azurite, container: ContainerClient) -> Iterator[BlobArtifacts]:
    with closing(BlobArtifacts(azurite.connection_string, container.container_name)) as made:
        yield made


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[Lossy]:
    with lossy(azurite.url) as proxy:
        yield proxy


@pytest.fixture
def far(azurite: Azurite, container: ContainerClient, proxy: Lossy) -> Iterator[BlobArtifacts]:
    """The same artifacts, reached through the proxy."""
    storage = azurite.connection_string.replace(azurite.url, proxy.url)
    with closing(BlobArtifacts(storage, container.container_name)) as made:
        yield made


def large(path: Path, filler: bytes = b"\x00") -> str:
    """A file of several pieces; returns its hash."""
    path.write_bytes(filler * LARGE)
    return hashlib.sha256(filler * LARGE).hexdigest()


def test_a_large_file_goes_up_and_down_in_pieces(far: BlobArtifacts, proxy: Lossy, tmp_path: Path) -> None:
    sha256 = large(tmp_path / "model")
    assert far.put("m/model.onnx", tmp_path / "model") == sha256
    assert max(size for _, _, size in proxy.requests) == BLOCK_BYTES
    assert far.fetch("m/model.onnx", tmp_path / "copy") == sha256
    assert (tmp_path / "copy").stat().st_size == LARGE


def test_memory_does_not_grow_with_a_file(artifacts: BlobArtifacts, tmp_path: Path) -> None:
    with (tmp_path / "model").open("wb") as file:
        file.truncate(9 * BLOCK_BYTES)
    tracemalloc.start()
    artifacts.put("model", tmp_path / "model")
    put = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    artifacts.fetch("model", tmp_path / "copy")
    fetched = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The piece, the one before, and what the client makes of it to send; and several copies of a smaller piece.
    assert put < 4 * BLOCK_BYTES
    assert fetched < 8 * BLOCK_BYTES


def test_a_large_file_that_is_there_is_not_sent_again(far: BlobArtifacts, proxy: Lossy, tmp_path: Path) -> None:
    large(tmp_path / "model")
    far.put("model", tmp_path / "model")
    proxy.requests.clear()
    far.put("model", tmp_path / "model")
    large(tmp_path / "other", b"x")
    with pytest.raises(Conflict):
        far.put("model", tmp_path / "other")
    assert {method for method, _, _ in proxy.requests} == {"HEAD", "GET"}


def test_of_two_large_files_under_one_name_one_is_there_whole(artifacts: BlobArtifacts, tmp_path: Path) -> None:
    hashes = {name: large(tmp_path / name, name.encode()) for name in "ab"}
    together = Barrier(2)

    def put(name: str) -> str | None:
        together.wait()
        try:
            return artifacts.put("model", tmp_path / name)
        except Conflict:
            return None

    with ThreadPoolExecutor(2) as pool:
        won = [sha256 for sha256 in pool.map(put, "ab") if sha256]
    assert len(won) == 1 and won[0] in hashes.values()
    assert artifacts.fetch("model", tmp_path / "copy") == won[0]


def test_pieces_of_an_upload_that_died_are_no_artifact(
    artifacts: BlobArtifacts, container: ContainerClient, tmp_path: Path
) -> None:
    container.get_blob_client("model").stage_block("f" * 40, b"half of it")
    assert list(artifacts.list("")) == []
    with pytest.raises(NotFound, match="no artifact 'model'"):
        artifacts.read("model")
    assert artifacts.put("model", tmp_path / "model") if large(tmp_path / "model") else None
    assert list(artifacts.list("")) == ["model"]


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_put_whose_answer_is_lost_is_no_conflict(far: BlobArtifacts, proxy: Lossy, tmp_path: Path, size: int) -> None:
    (tmp_path / "model").write_bytes(b"x" * size)
    proxy.fates = ["lose"] if size == 10 else ["answer"] * 4 + ["lose"]
    assert far.put("model", tmp_path / "model") == hashlib.sha256(b"x" * size).hexdigest()
    assert proxy.fates == []
    assert far.read("model") == b"x" * size


def test_what_somebody_wrote_past_the_adapter_is_found_by_its_bytes(
    artifacts: BlobArtifacts, container: ContainerClient
) -> None:
    sha256 = hashlib.sha256(b"content").hexdigest()
    container.upload_blob("forged", b"forgery", metadata={"sha256": sha256})
    container.upload_blob("bare", b"content")
    with pytest.raises(Conflict, match=hashlib.sha256(b"forgery").hexdigest()):
        artifacts.put("forged", b"content")
    assert artifacts.put("bare", b"content") == sha256


def test_an_artifact_in_the_archive_tier_is_not_missing_but_to_be_rehydrated(
    artifacts: BlobArtifacts, container: ContainerClient, tmp_path: Path
) -> None:
    artifacts.put("a", b"content")
    container.get_blob_client("a").set_standard_blob_tier("Archive")
    for call in (
        lambda: artifacts.read("a"),
        lambda: artifacts.fetch("a", tmp_path / "a"),
        lambda: artifacts.put("a", b"content"),
    ):
        with pytest.raises(Unavailable, match=r"'a' .* is in the archive tier .* rehydrate it"):
            call()
    container.get_blob_client("a").set_standard_blob_tier("Hot")
    assert artifacts.read("a") == b"content"


def test_the_hash_lies_beside_the_bytes(artifacts: BlobArtifacts, container: ContainerClient) -> None:
    sha256 = artifacts.put("a", b"content")
    assert container.get_blob_client("a").get_blob_properties().metadata == {"sha256": sha256}


def test_a_reader_that_knows_nothing_of_us_finds_an_artifact_by_its_uri(artifacts: BlobArtifacts) -> None:
    artifacts.put("models/a.onnx", b"content")
    with BlobClient.from_blob_url(
        artifacts.uri("models/a.onnx"), {"account_name": ACCOUNT, "account_key": KEY}
    ) as blob:
        assert blob.download_blob().readall() == b"content"


def test_folders_of_a_data_lake_are_no_artifacts(artifacts: BlobArtifacts, container: ContainerClient) -> None:
    container.upload_blob("models", b"", metadata={"hdi_isfolder": "true"})
    artifacts.put("models/a", b"x")
    assert list(artifacts.list("")) == ["models/a"]


def test_the_container_is_made_by_who_may_and_missed_by_who_may_not(azurite: Azurite) -> None:
    name = fresh("absent")
    sas = generate_account_sas(ACCOUNT, KEY, "sco", "rl", datetime.now(UTC) + timedelta(hours=1))
    with closing(BlobArtifacts(f"{azurite.url}/{ACCOUNT}?{sas}", name)) as reader:
        with pytest.raises(Unavailable, match=f"no container '{name}'.*may not make it.*Storage Blob Data Contributor"):
            reader.read("a")
        with closing(BlobArtifacts(azurite.connection_string, name)) as writer:
            with pytest.raises(NotFound):
                writer.read("a")
            writer.put("a", b"content")
        assert reader.read("a") == b"content"
        with pytest.raises(Unavailable, match="the role Storage Blob Data Contributor"):
            reader.put("b", b"content")
    with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        assert service.get_container_client(name).exists()
