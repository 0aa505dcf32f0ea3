"""What a replica sees of a storage account: desired states when they change, and models of that account only."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from dropforge.adapters.azure.serving import BlobServing, ServingBlobs
from dropforge.domain.blobs import BlobRef
from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import BadInput, BadName, NotFound, Unavailable
from dropforge.serving.blobs import LIST_SECONDS, Blobs, open_blobs
from dropforge.serving.cache import Cache
from dropforge.serving.source import Folder, open_source
from tests.azurite import ACCOUNT, Azurite
from tests.contract.test_serving import state, wanted

MODEL = bytes(range(256)) * 64
SHA256 = hashlib.sha256(MODEL).hexdigest()
REQUESTS = "azure.core.pipeline.policies.http_logging_policy"


@dataclass
class Time:
    """Seconds that pass when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A replica's source, the port that publishes, and the containers behind both."""

    source: Blobs
    port: BlobServing
    serving: ContainerClient
    artifacts: ContainerClient
    time: Time = field(default_factory=Time)

    def list_again(self) -> None:
        self.time.now += LIST_SECONDS


@pytest.fixture
def bench(azurite: Azurite, tmp_path: Path) -> Iterator[Bench]:
    account, time = azurite.connection_string, Time()
    with (
        azurite.container("serving") as serving,
        azurite.container("artifacts") as artifacts,
        closing(ServingBlobs(account)) as blobs,
        closing(BlobServing(account)) as port,
    ):
        source = Blobs(blobs, "r1", Cache(tmp_path, 2**20), "s12345678", time)
        yield Bench(source, port, serving, artifacts, time)


def deployment(uri: str, sha256: str = SHA256) -> Deployment:
    return Deployment("flights", 1, uri, sha256, dataset_version=1)


def asked(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Method and status of every request since the last call."""
    text = "\n".join(record.getMessage() for record in caplog.records if record.name == REQUESTS)
    caplog.clear()
    return [
        f"{method} {status}"
        for method, status in zip(
            re.findall(r"Request method: '(\w+)'", text), re.findall(r"Response status: (\d+)", text), strict=True
        )
    ]


def test_the_first_look_tells_all_and_the_next_what_changed(bench: Bench) -> None:
    bench.port.publish(wanted(1))
    bench.port.publish(wanted(1, "weather"))
    assert bench.source.changes() == {"flights": wanted(1), "weather": wanted(1, "weather")}
    assert bench.source.changes() == {}
    bench.port.publish(wanted(2))
    assert bench.source.changes() == {"flights": wanted(2)}


def test_a_look_at_what_has_not_changed_is_one_small_answer(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.port.publish(wanted(1))
    bench.source.changes()
    with caplog.at_level(logging.INFO, REQUESTS):
        assert bench.source.changes() == {}
        assert asked(caplog) == ["GET 304"]
        # The listing tells the etags: nothing needs to be read.
        bench.list_again()
        assert bench.source.changes() == {}
        assert asked(caplog) == ["GET 200"]


def test_an_endpoint_that_is_new_is_found_by_the_next_listing(bench: Bench) -> None:
    assert bench.source.changes() == {}
    bench.port.publish(wanted(1))
    assert bench.source.changes() == {}
    bench.list_again()
    assert bench.source.changes() == {"flights": wanted(1)}


@pytest.mark.parametrize("listing", [False, True])
def test_what_was_taken_away_is_told_once(bench: Bench, listing: bool) -> None:
    bench.port.publish(wanted(1))
    bench.source.changes()
    bench.serving.delete_blob("desired/flights.json")
    if listing:
        bench.list_again()
    assert bench.source.changes() == {"flights": None}
    assert bench.source.changes() == {}


def test_what_cannot_be_read_is_told_once_and_what_is_published_after_it_too(bench: Bench) -> None:
    bench.serving.upload_blob("desired/flights.json", b"{")
    bench.serving.upload_blob("desired/not a name.json", b"{}")
    found = bench.source.changes()
    assert list(found) == ["flights"] and isinstance(found["flights"], Unavailable)
    assert bench.source.changes() == {}
    bench.serving.delete_blob("desired/flights.json")
    bench.port.publish(wanted(1))
    assert bench.source.changes() == {"flights": wanted(1)}


def test_a_container_that_is_gone_takes_nothing_away(azurite: Azurite, tmp_path: Path) -> None:
    with closing(ServingBlobs(azurite.connection_string, "nowhere")) as blobs:
        source = Blobs(blobs, "r1", Cache(tmp_path, 1))
        with pytest.raises(Unavailable, match="there is no container 'nowhere'"):
            source.changes()


def test_a_report_says_which_deployment_it_is_from(bench: Bench) -> None:
    bench.source.report(state("r1"))
    text = bench.serving.download_blob("replicas/r1/flights.json").readall()
    assert b'"deployment":"s12345678"' in text and b'"url":"http://localhost:1"' in text
    bench.source.forget("flights")
    assert list(bench.serving.list_blob_names()) == []


def test_a_model_is_fetched_by_either_name_of_its_account(azurite: Azurite, bench: Bench) -> None:
    bench.artifacts.upload_blob("models/flights/a b.onnx", MODEL)
    public = BlobRef(ACCOUNT, "artifacts", "models/flights/a b.onnx").url
    for uri in (public, f"{azurite.url}/{ACCOUNT}/artifacts/models/flights/a%20b.onnx"):
        path = bench.source.fetch(deployment(uri), ())
        assert path.read_bytes() == MODEL
        path.unlink()


def test_a_model_that_is_here_is_not_fetched_again(bench: Bench) -> None:
    bench.artifacts.upload_blob("m.onnx", MODEL)
    one = deployment(BlobRef(ACCOUNT, "artifacts", "m.onnx").url)
    path = bench.source.fetch(one, ())
    bench.artifacts.delete_blob("m.onnx")
    assert bench.source.fetch(one, ()) == path


@pytest.mark.parametrize(
    "uri",
    [
        "https://other.blob.core.windows.net/artifacts/m.onnx",
        "https://local.blob.core.windows.net/serving/desired/flights.json",
        "https://local.example.com/artifacts/m.onnx",
        "https://local.blob.core.windows.net/artifacts/../serving/m.onnx",
        "http://169.254.169.254/metadata/identity",
        "file:///etc/passwd",
        "/etc/passwd",
    ],
)
def test_a_model_from_anywhere_else_is_refused(bench: Bench, uri: str) -> None:
    with pytest.raises(BadInput):
        bench.source.fetch(deployment(uri), ())


def test_a_model_that_is_not_there_is_not_found_and_other_bytes_are_refused(bench: Bench) -> None:
    one = deployment(BlobRef(ACCOUNT, "artifacts", "m.onnx").url)
    with pytest.raises(NotFound, match=r"there is no 'm\.onnx' in container 'artifacts'"):
        bench.source.fetch(one, ())
    bench.artifacts.upload_blob("m.onnx", MODEL[:-1])
    with pytest.raises(BadInput, match=f"wanted sha256 {SHA256}, found"):
        bench.source.fetch(one, ())


# ---------------------------------------------------------------------------------------------- roots
def test_a_root_is_a_folder_or_a_container(azurite: Azurite, bench: Bench, tmp_path: Path) -> None:
    bench.port.publish(wanted(1))
    environment = {"DROPFORGE_STORAGE": azurite.connection_string, "DROPFORGE_SERVE_CACHE": str(tmp_path / "cache")}
    assert isinstance(open_source(tmp_path, "r1", {}), Folder)
    for root in ("", f"{azurite.url}/{ACCOUNT}/serving", f"{azurite.url}/{ACCOUNT}/serving/"):
        assert open_source(root, "r1", environment).changes() == {"flights": wanted(1)}
    with pytest.raises(Unavailable, match="there is no container 'another'"):
        open_source(f"{azurite.url}/{ACCOUNT}/another", "r1", environment).changes()
    assert (tmp_path / "cache").is_dir()


def test_a_root_that_makes_no_sense_is_told(azurite: Azurite, tmp_path: Path) -> None:
    cache, environment = Cache(tmp_path, 1), {"DROPFORGE_STORAGE": azurite.connection_string}
    with pytest.raises(BadInput, match="is of another storage account than DROPFORGE_STORAGE"):
        open_blobs("https://other.blob.core.windows.net/serving", "r1", cache, environment)
    with pytest.raises(BadInput, match="names no container"):
        open_blobs("https://other.blob.core.windows.net/", "r1", cache, {})
    with pytest.raises(BadInput, match="DROPFORGE_SERVE_CACHE_MB is 'x'"):
        open_source("", "r1", {**environment, "DROPFORGE_SERVE_CACHE_MB": "x"})
    with pytest.raises(BadName):
        open_source("https://other.blob.core.windows.net/serving", "../x", environment)
