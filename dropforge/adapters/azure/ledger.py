"""The ledger in a table of a storage account."""

from __future__ import annotations

import json
import re
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azure.core.exceptions import AzureError, ServiceResponseError

from dropforge.adapters.azure import places
from dropforge.adapters.azure.identity import credential
from dropforge.adapters.azure.storage import (
    SETTING,
    Place,
    code_of,
    connection,
    hide_signatures,
    is_url,
    line_of,
    mapped,
    refused_for_good,
    status_of,
    unusable,
)
from dropforge.adapters.azure.table_keys import decoded, encoded, end_of
from dropforge.adapters.ledger_rows import checked_key, checked_scan, checked_writes, conflict
from dropforge.domain.errors import Unavailable
from dropforge.ports import Delete, Insert, Replace, Row, Write

if TYPE_CHECKING:
    from azure.data.tables import TableClient

SETTINGS = f"{SETTING} or DROPFORGE_LEDGER"
ROLE = "Storage Table Data Contributor"
# The service's own limit.
PAGE = 1000
# Of a property; text to this length is kept as it is, to be read in the portal. Longer text is packed.
PLAIN_BYTES = 8 * 1024
PACKED_BYTES = 64_000
PAUSES = (0.2, 1.0)
# What the service says of a write whose row is not as it expects.
_UNEXPECTED = (404, 409, 412)
_ETAG = re.compile(r'W/"[^"\s]+"')


class TableLedger:
    """`Ledger` over one table, which is made on first use; any number of hosts, processes and threads share it.

    A scan or a count is of one moment as far as one page of the service goes (at most 1000 rows); a commit may come
    between two pages. A delete without an etag that finds no row is left out of its commit.
    """

    def __init__(self, storage: str, table: str = places.LEDGER, pauses: Sequence[float] = PAUSES) -> None:
        """`storage`: a connection string, or the account's URL, which is then reached as the app's identity (or with the
        SAS in it). Raises `BadInput` that names the setting. `pauses`: in seconds, before a commit that got no answer is
        sent again."""
        self._table = _connect(storage, table)
        self._pauses = pauses
        self._place = Place(str(self._table.account_name), table, ROLE, SETTINGS, "table")

    def close(self) -> None:
        """Close the connections."""
        self._table.close()

    def get(self, partition: str, key: str) -> Row | None:
        checked_key(partition, "partition")
        found = self._found(partition, checked_key(key, "key"))
        return None if found is None else _row(found)

    def scan(self, partition: str, prefix: str = "", after: str = "", limit: int = 1000) -> list[Row]:
        checked_scan(partition, prefix, after, limit)
        return [_row(found) for found in self._entities(partition, _range(prefix, after), limit)]

    def count(self, partition: str, prefix: str, limit: int) -> int:
        checked_scan(partition, prefix, "", limit)
        return sum(1 for _ in self._entities(partition, _range(prefix, ""), limit, ["RowKey"]))

    def commit(self, partition: str, writes: Sequence[Write]) -> None:
        """As the port says. When an answer got lost, the rows tell by a token whether the commit was done. Where they do
        not, it is `Unavailable` and never `Conflict`: what refuses the second try may be the first."""
        left = checked_writes(partition, writes)
        for write, _ in left:
            # The service calls it bad input; no row ever had it.
            if not isinstance(write, Insert) and write.etag is not None and not _ETAG.fullmatch(write.etag):
                raise conflict(partition, write)
        token = secrets.token_hex(8)
        pauses = iter(self._pauses)
        lost: AzureError | None = None
        while left:
            try:
                self._send(partition, left, token)
                return
            except AzureError as error:
                status = status_of(error)
                if code_of(error) == "TableNotFound":
                    self._create()
                elif status in _UNEXPECTED:
                    refused = left[min(getattr(error, "index", 0), len(left) - 1)][0]
                    if status == 404 and _is_blind(refused):
                        left = self._without_gone(partition, left, refused)
                        continue
                    if lost is None:
                        raise conflict(partition, refused) from error
                    break
                elif refused_for_good(status):
                    raise mapped(error, self._place) from error
                else:
                    lost = error
                pause = next(pauses, None)
                if pause is None:
                    lost = error
                    break
                time.sleep(0 if lost is None else pause)
        if lost is not None and left and not self._was_done(partition, left, token):
            raise Unavailable(
                f"{self._place} did not say whether {len(left)} writes to {partition!r} were done: "
                f"{code_of(lost) or line_of(lost)}; read again and decide again",
                partition=partition,
            ) from lost

    # ------------------------------------------------------------------------------------------------ writing
    def _send(self, partition: str, writes: Sequence[tuple[Write, str]], token: str) -> None:
        # In a transaction even when it is one: there the keys stand in the body, and a URL has less room than a key.
        operations = [_operation(partition, write, text, token) for write, text in writes]
        try:
            # The SDK's own second try would not tell that it was one.
            self._table.submit_transaction(operations, retry_total=0)
        except OSError as error:
            # An answer that breaks off comes as it is through the SDK.
            raise ServiceResponseError(f"the answer broke off: {type(error).__name__}") from error

    def _without_gone(
        self, partition: str, writes: Sequence[tuple[Write, str]], gone: Write
    ) -> list[tuple[Write, str]]:
        """The writes without that one, and without other deletes of no row."""
        return [
            (write, text)
            for write, text in writes
            if write is not gone and not (_is_blind(write) and self._found(partition, write.key) is None)
        ]

    def _was_done(self, partition: str, writes: Sequence[tuple[Write, str]], token: str) -> bool:
        """Whether some row bears the commit's token: all of it was done then."""
        found = (self._found(partition, write.key) for write, _ in writes if not isinstance(write, Delete))
        return any(entity is not None and entity.get("token") == token for entity in found)

    def _create(self) -> None:
        try:
            self._table.create_table()
        except AzureError as error:
            if code_of(error) != "TableAlreadyExists":
                raise mapped(error, self._place) from error

    # ------------------------------------------------------------------------------------------------ reading
    def _found(self, partition: str, key: str) -> Mapping[str, Any] | None:
        # As a query: the keys stand in it, and not in the path of a URL, which has less room than a key.
        return next(self._entities(partition, f"RowKey eq '{encoded(key)}'", 1), None)

    def _entities(
        self, partition: str, rows: str, limit: int, select: Sequence[str] | None = None
    ) -> Iterator[Mapping[str, Any]]:
        query = " and ".join(filter(None, (f"PartitionKey eq '{encoded(partition)}'", rows)))
        found = self._table.query_entities(query, results_per_page=min(limit, PAGE), select=select)
        try:
            for entity in found:
                yield entity
                limit -= 1
                if not limit:
                    return
        except AzureError as error:
            if code_of(error) != "TableNotFound":
                raise mapped(error, self._place) from error


def _range(prefix: str, after: str) -> str:
    """The condition for rows that start with the prefix and sort after that key. No encoded key has a quote in it."""
    end = end_of(prefix)
    first = f"RowKey gt '{encoded(after)}'" if after >= prefix else f"RowKey ge '{encoded(prefix)}'"
    return " and ".join(filter(None, (first if prefix or after else "", f"RowKey lt '{end}'" if end else "")))


def _operation(partition: str, write: Write, text: str, token: str) -> tuple[Any, ...]:
    from azure.core import MatchConditions

    keys = {"PartitionKey": encoded(partition), "RowKey": encoded(write.key)}
    if isinstance(write, Insert):
        return ("create", {**keys, **_columns(text), "token": token})
    condition = {} if write.etag is None else {"etag": write.etag, "match_condition": MatchConditions.IfNotModified}
    if isinstance(write, Replace):
        return ("update", {**keys, **_columns(text), "token": token}, {"mode": "replace", **condition})
    return ("delete", keys, condition)


def _is_blind(write: Write) -> bool:
    return isinstance(write, Delete) and write.etag is None


def _columns(text: str) -> dict[str, str | bytes]:
    if len(text) <= PLAIN_BYTES and text.isascii():
        return {"value": text}
    packed = zlib.compress(text.encode())
    starts = range(0, len(packed), PACKED_BYTES)
    return {f"packed{number}": packed[start : start + PACKED_BYTES] for number, start in enumerate(starts)}


def _row(entity: Mapping[str, Any]) -> Row:
    text = entity.get("value")
    if text is None:
        names = sorted(name for name in entity if name.startswith("packed"))
        text = zlib.decompress(b"".join(entity[name] for name in names)).decode()
    return Row(decoded(entity["RowKey"]), json.loads(text), entity.metadata["etag"])  # type: ignore[attr-defined]


def _connect(storage: str, table: str) -> TableClient:
    from azure.core.credentials import AzureSasCredential
    from azure.data.tables import TableClient

    # As for blobs: whoever asked tries again anyway.
    options = {"retry_total": 2, "retry_backoff_factor": 0.5, "connection_timeout": 10, "read_timeout": 40}
    text = connection(storage)
    hide_signatures()
    try:
        if not is_url(text):
            _check_endpoint(text)
            return TableClient.from_connection_string(text, table, **options)
        url = urlsplit(text.replace(".dfs.", ".table.", 1).replace(".blob.", ".table.", 1))
        # Not in the URL: the SDK leaves it out of a transaction's.
        shown = AzureSasCredential(url.query) if url.query else credential()
        return TableClient(url._replace(query="").geturl(), table, credential=shown, **options)
    except ValueError as error:
        raise unusable(error, SETTINGS) from error


def _check_endpoint(text: str) -> None:
    """An emulator whose Table service is not named would be looked for on the internet."""
    names = {part.partition("=")[0].strip().lower() for part in text.split(";")}
    if "blobendpoint" in names and not names & {"tableendpoint", "endpointsuffix"}:
        raise ValueError("it has a BlobEndpoint and no TableEndpoint")
