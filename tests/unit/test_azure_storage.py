"""What the adapters over a storage account share: the identity, the errors, and that no secret is told."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
)

from dropforge.adapters.azure import identity, storage
from dropforge.adapters.azure.artifacts import BlobArtifacts
from dropforge.adapters.azure.ledger import TableLedger
from dropforge.adapters.azure.run_files import RunFiles
from dropforge.adapters.azure.serving import ServingBlobs
from dropforge.adapters.azure.tables import _RETRIES, _Options, delta_tables
from dropforge.adapters.delta import DeltaTables
from dropforge.domain.errors import BadInput, Conflict, DropforgeError, NotFound, Unavailable
from tests.contract.web import Web, web

CONTAINER = storage.Place("acc", "artifacts")
TABLE = storage.Place("acc", "dropforge", "Storage Table Data Contributor", "DROPFORGE_LEDGER", "table")


def answered(status: int, code: str = "", kind: type[HttpResponseError] = HttpResponseError) -> HttpResponseError:
    """An error as the SDKs raise it."""
    response: Any = SimpleNamespace(status_code=status, reason="why", headers={}, content_type="")
    error = kind(message=f"the answer\nErrorCode:{code}", response=response)
    error.error_code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "wanted", "says"),
    [
        (answered(404, "BlobNotFound", ResourceNotFoundError), NotFound, "there is no 'a' in container 'artifacts'"),
        (answered(404, "ContainerNotFound"), Unavailable, "there is no container 'artifacts' of storage account 'acc'"),
        (answered(412, "ConditionNotMet"), Conflict, "written by somebody else"),
        (answered(409, "BlobAlreadyExists"), Conflict, "written by somebody else"),
        (
            answered(412, "LeaseIdMissing"),
            Unavailable,
            "'a' in container 'artifacts' .* has a lease .* break the lease",
        ),
        (answered(412, "LeaseIdMismatchWithBlobOperation"), Unavailable, "break the lease"),
        (answered(409, "BlobArchived"), Unavailable, "in the archive tier .* rehydrate"),
        (answered(403, "AuthorizationPermissionMismatch"), Unavailable, "the role Storage Blob Data Contributor"),
        (answered(401, "NoAuthenticationInformation"), Unavailable, "the role Storage Blob Data Contributor"),
        (ClientAuthenticationError("no token"), Unavailable, "set AZURE_CLIENT_ID"),
        (answered(400, "InvalidBlobOrBlock"), BadInput, "refused 'a': InvalidBlobOrBlock"),
        (answered(413, "RequestBodyTooLarge"), BadInput, "RequestBodyTooLarge"),
        (answered(409, "ContainerBeingDeleted"), Unavailable, "did not answer: ContainerBeingDeleted"),
        (answered(429), Unavailable, "did not answer"),
        (answered(503, "ServerBusy"), Unavailable, "did not answer: ServerBusy"),
        (ServiceRequestError("connection refused"), Unavailable, "did not answer: connection refused"),
    ],
)
def test_each_error_of_azure_is_one_of_ours_that_says_what_to_do(
    error: AzureError, wanted: type[DropforgeError], says: str
) -> None:
    with pytest.raises(wanted, match=says) as found, storage.errors(CONTAINER, "a"):
        raise error
    assert type(found.value) is wanted
    assert found.value.__cause__ is error


@pytest.mark.parametrize("found", [(412, "LeaseIdMissing"), (412, "ConditionNotMet"), (409, "BlobAlreadyExists")])
def test_what_is_put_once_is_there_when_it_has_a_lease(found: tuple[int, str]) -> None:
    # Azurite says that it is there before it looks at the lease; what Azure says first is documented nowhere.
    refused = (found[0], {"x-ms-error-code": found[1]}, b"")
    bytes_there = {"ETag": '"0x1"', "Last-Modified": "Sat, 28 Nov 2026 07:00:00 GMT", "Content-Range": "bytes 0-0/1"}
    with web() as account:
        setting = f"AccountName=acc;AccountKey=c2VjcmV0;BlobEndpoint={account.url}"
        artifacts, serving = BlobArtifacts(setting), ServingBlobs(setting)
        files = RunFiles(setting, artifacts)
        account.answers = [refused, refused, refused, (206, bytes_there, b"x")]
        assert not files.put_mark("r1", "stop.json", b"{}")
        serving.write_log("logs/a.parquet", b"x")
        assert artifacts.put("a", b"x") == hashlib.sha256(b"x").hexdigest()
        for each in (artifacts, serving, files):
            each.close()


def test_a_table_names_its_own_role_and_setting() -> None:
    found = storage.mapped(answered(403, "AuthorizationFailure"), TABLE)
    assert "table 'dropforge' of storage account 'acc'" in found.message
    assert "the role Storage Table Data Contributor" in found.message and "DROPFORGE_LEDGER" in found.message


def test_a_signature_is_in_no_message_and_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    storage.hide_signatures()
    storage.hide_signatures()
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("urllib3.connectionpool").debug('%s "GET /a?sv=1&sig=s3cret%%3D&se=2 HTTP/1.1" 200', "acc")
    assert 'acc "GET /a?sv=1&sig=…&se=2 HTTP/1.1" 200' in caplog.text
    found = storage.mapped(ServiceRequestError("Max retries exceeded with url: /a?sig=s3cret%3D&se=2 (x)"), CONTAINER)
    assert "sig=…&se=2" in found.message and "s3cret" not in found.message


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("https://acc.blob.core.windows.net", "https://acc.blob.core.windows.net"),
        ("https://acc.dfs.core.windows.net/", "https://acc.blob.core.windows.net"),
        ("https://acc.blob.core.usgovcloudapi.net", "https://acc.blob.core.usgovcloudapi.net"),
        ("AccountName=acc;AccountKey=c2VjcmV0", "https://acc.blob.core.windows.net"),
        (
            "AccountName=acc;AccountKey=c2VjcmV0;BlobEndpoint=https://lake.example.org",
            "https://acc.blob.core.windows.net",
        ),
        ("UseDevelopmentStorage=true", "http://127.0.0.1:10000/devstoreaccount1"),
    ],
)
def test_an_artifact_is_where_a_reader_outside_finds_it(setting: str, url: str) -> None:
    artifacts = BlobArtifacts(setting)
    assert artifacts.uri("models/a.onnx") == f"{url}/artifacts/models/a.onnx"
    artifacts.close()


@pytest.mark.parametrize(
    ("setting", "account", "url"),
    [
        ("https://acc.blob.core.windows.net", "acc", "https://acc.table.core.windows.net"),
        ("https://acc.dfs.core.windows.net/", "acc", "https://acc.table.core.windows.net"),
        ("https://acc.table.core.windows.net", "acc", "https://acc.table.core.windows.net"),
        ("AccountName=acc;AccountKey=c2VjcmV0", "acc", "https://acc.table.core.windows.net"),
        ("UseDevelopmentStorage=true;", "devstoreaccount1", "http://127.0.0.1:10002/devstoreaccount1"),
    ],
)
def test_the_ledger_is_in_the_table_service_of_the_account(setting: str, account: str, url: str) -> None:
    ledger = TableLedger(setting)
    assert (ledger._place.account, ledger._table.url) == (account, url)
    ledger.close()


@pytest.mark.parametrize("make", [BlobArtifacts, TableLedger, delta_tables])
def test_no_key_is_in_what_an_adapter_says_of_itself(make: Any) -> None:
    made = make("AccountName=acc;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net")
    assert "c2VjcmV0" not in f"{made!r} {made} {vars(made)}"


# ---------------------------------------------------------------------------------------------- identity
@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No credential from before, and none left."""
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "AZURE_TOKEN_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    identity.credential.cache_clear()
    yield monkeypatch
    identity.credential.cache_clear()


@pytest.fixture
def issuer(clean: pytest.MonkeyPatch) -> Iterator[Web]:
    """The endpoint that gives out tokens of a managed identity, as a Function App has it."""
    with web() as issuer:
        clean.setenv("IDENTITY_ENDPOINT", f"{issuer.url}/token")
        clean.setenv("IDENTITY_HEADER", "shown")
        issuer.answers = [token(f"t0ken-{number}", lives=3600 if number else 300) for number in range(9)]
        yield issuer


def token(text: str, lives: int) -> tuple[int, dict[str, str], bytes]:
    said = {"access_token": text, "expires_on": str(int(time.time()) + lives), "resource": "r", "token_type": "Bearer"}
    return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()


def asked(issuer: Web) -> list[dict[str, list[str]]]:
    return [parse_qs(urlsplit(each.path).query) for each in issuer.requests]


def test_all_of_a_process_share_one_credential(clean: pytest.MonkeyPatch) -> None:
    assert identity.credential() is identity.credential()
    assert identity.credential("id-1") is identity.credential("id-1") is not identity.credential()


def test_no_credential_that_waits_for_a_person_or_an_editor_is_tried(clean: pytest.MonkeyPatch) -> None:
    tried = [type(each).__name__ for each in identity.credential().credentials]
    assert "ManagedIdentityCredential" in tried and "AzureCliCredential" in tried
    assert not {
        name for name in tried for slow in ("Interactive", "Code", "PowerShell", "Shared", "Broker") if slow in name
    }


def test_the_managed_identity_is_the_one_that_the_environment_or_the_caller_names(
    clean: pytest.MonkeyPatch, issuer: Web
) -> None:
    clean.setenv("AZURE_CLIENT_ID", "of-the-app")
    identity.credential().get_token("https://storage.azure.com/.default")
    identity.credential("of-the-bus").get_token("https://servicebus.azure.net/.default")
    assert [(each["client_id"], each["resource"]) for each in asked(issuer)] == [
        (["of-the-app"], ["https://storage.azure.com"]),
        (["of-the-bus"], ["https://servicebus.azure.net"]),
    ]


def test_delta_tables_show_a_token_of_the_apps_identity_and_a_new_one_before_it_ends(issuer: Web) -> None:
    options = _Options("https://acc.blob.core.windows.net", "tables")
    assert [options._shown() for _ in range(3)] == [
        # The first has five minutes left, which is not enough for what begins with it.
        {"bearer_token": "t0ken-0"},
        {"bearer_token": "t0ken-1"},
        {"bearer_token": "t0ken-1"},
    ]
    assert "t0ken" not in repr(options)


def test_the_token_is_what_delta_sends_whatever_the_environment_says(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    clean.setenv("AZURE_CLIENT_ID", "of-the-app")
    with web() as account:
        account.answers = [(403, {}, b"")] * 20
        told = {
            **_RETRIES,
            "account_name": "acc",
            "endpoint": account.url,
            "allow_http": "true",
            "bearer_token": "t0ken",
        }
        with pytest.raises(Unavailable, match="the role Storage Blob Data Contributor") as found:
            DeltaTables("az://tables", lambda: told).find("flights", 1)
        assert {each.headers["authorization"] for each in account.requests} == {"Bearer t0ken"}
    assert "t0ken" not in found.value.message and "\x1b" not in found.value.message


def test_who_has_no_identity_is_told_what_to_set(clean: pytest.MonkeyPatch) -> None:
    # Without this the machine's own address for tokens would be asked.
    clean.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    with pytest.raises(Unavailable, match=r"sign in with `az login`.*Storage Blob Data Contributor"):
        _Options("https://acc.blob.core.windows.net", "tables")._shown()
