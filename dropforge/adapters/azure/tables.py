"""Tables on Delta Lake in a container of a storage account: `az://tables/flights`."""

from __future__ import annotations

import os
import time
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from azure.storage.blob import BlobServiceClient

from dropforge.adapters.azure import places
from dropforge.adapters.azure.identity import credential
from dropforge.adapters.azure.storage import Place, account_name, endpoint, errors, is_emulator, make_container, service
from dropforge.adapters.delta import DeltaTables

SCOPE = "https://storage.azure.com/.default"
# Before it ends, a token is replaced: what has begun with it must come to its end.
TOKEN_MARGIN_SECONDS = 600
# As for blobs: whoever asked tries again anyway. delta-rs alone would try ten times, for three minutes.
_RETRIES = {"max_retries": "2", "retry_timeout": "30s", "connect_timeout": "10s"}


def delta_tables(storage: str, container: str = places.TABLES) -> DeltaTables:
    """`Tables` over one container, which is made on first use if the app's identity may. Writers at once are safe, because
    a version's file is put only where there is none.

    `storage`: a connection string, or the account's URL, which is then reached as the app's identity (or with the SAS in
    it). Raises `BadInput` that names the setting.
    """
    return DeltaTables(f"az://{container}", _Options(storage, container))


class _Options:
    """What delta-rs has to know to reach the account, asked for anew each time: tokens end.

    delta-rs could look for an identity itself, but does not find all of those that azure-identity does.
    """

    def __init__(self, storage: str, container: str) -> None:
        self._service = service(storage)
        self._place = Place(account_name(self._service), container)
        self._lock = Lock()
        self._is_made = False
        self._token: Any = None

    def __call__(self) -> dict[str, str]:
        with self._lock:
            if not self._is_made:
                self._make()
            return {**_RETRIES, "account_name": self._place.account, **_reached(self._service), **self._shown()}

    def _make(self) -> None:
        client = self._service.get_container_client(self._place.name)
        with errors(self._place):
            there = client.exists()
        if not there:
            make_container(client, self._place)
        self._is_made = True

    def _shown(self) -> dict[str, str]:
        """What shows who asks: a key, a SAS, or a token of the app's identity."""
        key = getattr(self._service.credential, "account_key", None)
        if key:
            return {"account_key": str(key)}
        sas = str(self._service.primary_endpoint).partition("?")[2]
        if sas:
            return {"sas_token": sas}
        if self._token is None or self._token.expires_on < time.time() + TOKEN_MARGIN_SECONDS:
            with errors(self._place):
                self._token = credential().get_token(SCOPE)
        return {"bearer_token": str(self._token.token)}


def _reached(service: BlobServiceClient) -> dict[str, str]:
    url = endpoint(service)
    if not is_emulator(url):
        return {"endpoint": url, "allow_http": str(url.startswith("http://")).lower()}
    # Azurite knows no `startFrom` in a listing. delta-rs does without it for what it calls the emulator, and where that is
    # it takes from the environment alone.
    parts = urlsplit(url)
    os.environ["AZURITE_BLOB_STORAGE_URL"] = f"{parts.scheme}://{parts.netloc}"
    return {"use_emulator": "true"}
